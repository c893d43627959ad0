"Sets for lifting: hostile shapes and numbers, selections, splits and windows for any clips, files."
import json, math

import numpy as np, pytest, torch
from dataclasses import replace
from hypothesis import given, settings, strategies as st
from posebook.camera import Camera, Distortion
from posebook.keypoints import KeypointError
from posebook.lift_data import Clip, LiftSet, assert_apart, plot_clip, root_ids
from posebook.skeleton import Skeleton, get_skeleton, list_skeletons

def some(lengths=(5, 1, 7, 0, 4), layout='h36m17', labels=True, seed=0, **fields):
    "Random people before a camera with a lens, two clips a recording"
    g, s = torch.Generator().manual_seed(seed), get_skeleton(layout)
    camera = Camera.from_h36m((1., 0, 0, 0), (0., 0, 0), '54138969')
    parts = []
    for i, T in enumerate(lengths):
        x = torch.randn(T, len(s), 3, generator=g)*.4+torch.tensor([0., 0, 5])
        clip = Clip(f'r{i//2}/c{i%2}', fps=50., subject=f's{i//4}', action=f'a{i//2%5}', camera_name=f'c{i%2}', camera=camera)
        parts.append((clip, camera.project_camera(x), None, x if labels else None))
    return LiftSet.of(layout, parts, **fields)

# ---- what is refused

@pytest.mark.parametrize('change, says', [
    (lambda s: dict(points=s.points[..., :1]), r'points: expected shape \(17, 17, 2\)'),
    (lambda s: dict(joints=s.joints[:3]), r'joints: expected shape \(17, 17, 3\)'),
    (lambda s: dict(confidence=s.confidence-2), 'expected numbers in .0, 1., found -1'),
    (lambda s: dict(confidence=s.confidence*math.nan), 'confidence, clip .r0/c0., frame 0, pelvis'),
    (lambda s: dict(points=s.points/0), 'points, clip .r0/c0., frame 0, pelvis: expected finite pixels'),
    (lambda s: dict(joints=s.joints*math.inf), 'finite numbers or NaN'),
    (lambda s: dict(layout='coco_wholebody133'), "'coco_wholebody133'"),
    (lambda s: dict(clips=s.clips[:-1]), 'clips: expected 17 rows in all, found 13'),
    (lambda s: dict(clips=s.clips[::-1]), 'rows from 0 on'),
    (lambda s: dict(to_metres=torch.ones(3)), 'to_metres'),
    (lambda s: dict(unit='feet'), "unit: expected 'metres' or 'pixels'")])
def test_bad_sets(change, says):
    s = some()
    with pytest.raises(KeypointError, match=says): replace(s, **(change(s)|dict(layout=change(s).get('layout', s.layout))))

@pytest.mark.parametrize('points, confidence, joints, says', [
    ((4, 16, 2), None, None, 'points: expected shape .4, 17, 2.'), ((4, 17, 2), (4, 16), None, 'confidence'),
    ((4, 17, 2), None, (5, 17, 3), r"clip 'a': joints: expected shape \(4, 17, 3\) for 'h36m17', found \(5, 17, 3\)"),
    ((4, 17, 3), None, None, 'points')])
def test_bad_parts(points, confidence, joints, says):
    z = lambda n: None if n is None else torch.zeros(n)
    with pytest.raises(KeypointError, match=says): LiftSet.of('h36m17', [(Clip('a'), z(points), z(confidence), z(joints))])

def test_what_is_not_seen_is_zero_and_what_is_not_known_is_nan():
    p = torch.full((3, 17, 2), 7.)
    p[1, 4] = math.nan
    c = torch.ones(3, 17)
    c[1, 4] = c[2, 5] = 0
    s = LiftSet.of('h36m17', [(Clip('a'), p, c, None)])
    assert (s.points[1, 4] == 0).all() and (s.points[2, 5] == 0).all() and (s.points[0] == 7).all()
    assert LiftSet.of('h36m17', [(Clip('a'), p, None, None)]).confidence.sum() == 3*17-1
    with pytest.raises(KeypointError, match='frame 1, left_hip'): LiftSet.of('h36m17', [(Clip('a'), p, torch.ones(3, 17), None)])

def test_absolute():
    s = some()
    assert s.absolute and not replace(s, joints=s.root_relative(), absolute=None).absolute
    assert not replace(s, unit='pixels', absolute=None).absolute and not some(labels=False).absolute

# ---- clips

@pytest.mark.parametrize('name, camera, group', [('S1/Walking 1/54138969', '54138969', 'S1/Walking 1'), ('a.54138969', '54138969', 'a'),
    ('54138969', '54138969', '54138969'), ('a', 'b', 'a'), ('S1_Seq1_Cam0', 'Cam0', 'S1_Seq1'), ('a/c1/x', 'c1', 'a/x'), ('x', '', 'x')])
def test_groups(name, camera, group): assert Clip(name, camera_name=camera).group == group

@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(1, 12), st.integers(1, 9))
def test_windows(lengths, frames, stride):
    s = some(lengths)
    w, of = s.windows(frames, stride), s.clip_of
    assert w.shape == (sum(math.ceil(n/stride) for n in lengths), frames)
    if len(w): assert (of[w] == of[w[:, :1]]).all() and (w.diff(dim=1) >= 0).all() and (w.diff(dim=1) <= 1).all()
    if stride <= frames: assert sorted(set(w.flatten().tolist())) == list(range(len(s)))
    if stride == 1: assert w[:, frames//2].tolist() == list(range(len(s)))

@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=8), st.data())
def test_select_and_join(lengths, data):
    s = some(lengths)
    cut = data.draw(st.integers(1, len(lengths)-1))
    back = LiftSet.join([s.select(range(cut)), s.select(lambda c: c.name in {d.name for d in s.clips[cut:]})])
    assert back.fingerprint == s.fingerprint
    order = data.draw(st.permutations(range(len(lengths))))
    moved = s.select(order)
    assert [c.name for c in moved.clips] == [s.clips[i].name for i in order]
    assert torch.equal(moved.select(np.argsort(order)).points, s.points)

def test_join_of_odd_sets():
    a, b = some((4,)), some((3,), labels=False, seed=1)
    j = LiftSet.join([a, b])
    assert j.labelled.tolist() == [True]*4+[False]*3 and j.absolute and j.clips[1].start == 4
    with pytest.raises(KeypointError, match='one set at least'): LiftSet.join([])
    with pytest.raises(KeypointError, match='layout: expected the same in all sets, found coco17, h36m17; use `to`'):
        LiftSet.join([a, replace(a, layout='coco17')])
    with pytest.raises(KeypointError, match='unit'): LiftSet.join([a, replace(a, unit='pixels')])

def test_thin():
    s = some((9, 4)).thin(3)
    assert [len(c) for c in s.clips] == [3, 2] and s.clips[0].fps == 50/3 and s.reprojection_error().max() < 1e-2

# ---- splits

@pytest.mark.parametrize('by', ['group', 'subject', 'action', 'clip'])
def test_splits_are_disjoint(by):
    s = some([4]*24)
    parts = s.split(by, (.5, .25, .25), seed=3)
    assert list(parts) == ['train', 'val', 'test'] and sum(map(len, parts.values())) == len(s)
    assert json.loads(json.dumps(parts.record))['parts']['val'] == [c.name for c in parts['val'].clips]
    if by != 'clip': assert_apart(parts)
    if by == 'subject':
        who = [{c.subject for c in p.clips} for p in parts.values()]
        assert not who[0]&who[1] and not who[0]&who[2] and not who[1]&who[2]
    again = s.split(by, (.5, .25, .25), seed=3)
    assert again.record == parts.record and s.split(by, (.5, .25, .25), seed=4).record != parts.record

def test_actions_that_share_a_recording_stay_together():
    s = some([4]*6)
    s = replace(s, clips=[replace(c, group='one' if i < 4 else 'two', action=f'a{i}') for i, c in enumerate(s.clips)])
    parts = s.split('action', (.5, 0, .5))
    assert {len(p.clips) for p in parts.values()} == {4, 2} and 'val' not in parts

def test_split_of_too_little():
    with pytest.raises(ValueError, match='give more data'): some((4, 4)).split()

def test_without_labels():
    s = some([5]*20)
    for share in (.5, .9):
        t = s.without_labels(share, seed=1)
        known = {c.group for i, c in enumerate(t.clips) if t.clip(i).labelled.any()}
        lost = {c.group for i, c in enumerate(t.clips) if not t.clip(i).labelled.all()}
        assert not known&lost and len(lost) == round(10*share) and torch.equal(t.points, s.points)
    assert s.without_labels(0.).labelled.all() and s.without_labels(1.).joints is None

# ---- layouts

def test_conversion_of_both():
    s = some(layout='mpi_inf_3dhp17')
    with pytest.warns(UserWarning, match='nose are stand-ins; train and test on one layout'): h = s.to('h36m17')
    a, b = get_skeleton('h36m17').index('left_wrist'), get_skeleton('mpi_inf_3dhp17').index('left_wrist')
    assert torch.equal(h.joints[:, a], s.joints[:, b]) and torch.equal(h.points[:, a], s.points[:, b])
    assert h.reprojection_error()[:, a].max() < 1e-2 and h.clips == s.clips

def test_joints_that_cannot_be_had():
    s = some((3,), layout='h36m17')
    with pytest.warns(UserWarning, match='left_eye.* cannot be derived'):
        try: c = s.to('coco17')
        except ValueError: pytest.skip('no way from h36m17 to coco17')
    eye = get_skeleton('coco17').index('left_eye')
    assert (c.confidence[:, eye] == 0).all() and not c.labelled.any()

@pytest.mark.parametrize('layout', [n for n in list_skeletons() if n not in ('smil', 'deepmimic')])
def test_every_layout_has_a_root(layout):
    ids = root_ids(layout)
    assert len(ids) in (1, 2) and max(ids) < len(get_skeleton(layout))

# ---- reprojection

def test_a_wrong_camera_shows():
    s = some()
    assert s.reprojection_error().nanmean() < 1e-3
    d = s.clips[0].camera.distortion
    other = s.clips[0].camera.replaced(distortion=Distortion(d.radial, d.tangential))
    off = replace(s, clips=[replace(c, camera=other) for c in s.clips]).reprojection_error().nanmean()
    assert .001 < off < 1 # the other form of tangential distortion
    none = replace(s, clips=[replace(c, camera=None) for c in s.clips])
    assert none.reprojection_error().isnan().all() and some(labels=False).reprojection_error().isnan().all()

def test_unseen_points_do_not_count():
    s = some()
    c = s.confidence.clone()
    c[:, 3] = 0
    e = replace(s, confidence=c).reprojection_error()
    assert e[:, 3].isnan().all() and e[:, 4].isfinite().all()

# ---- files

def test_round_trip(tmp_path):
    s = some(skipped=('one was bad',))
    clips = list(s.clips)
    clips[0] = replace(clips[0], extrinsics=Camera.look_at((1., 2, 3)).to(torch.float64), size=(10, 20))
    clips[1] = replace(clips[1], camera=None, size=None, fps=math.nan)
    s = replace(s, clips=clips, joints=torch.where(torch.arange(17)[:, None, None] < 3, math.nan, s.joints))
    s.save(tmp_path/'a.npz')
    t = LiftSet.load(tmp_path/'a.npz')
    assert t.fingerprint == s.fingerprint and t.skipped == s.skipped and t.labelled.tolist() == s.labelled.tolist()
    assert t.clips[0].extrinsics.R.dtype == torch.float64 and torch.equal(t.clips[0].extrinsics.R, clips[0].extrinsics.R)
    assert t.clips[1].camera is None and t.clips[0].size == (10, 20) and t.clips[2].camera.distortion.form == 'h36m'
    with np.load(tmp_path/'a.npz', allow_pickle=False) as z: assert all(z[k] is not None for k in z.files)

def test_round_trip_of_targets_in_pixels_and_of_unknown_layouts(tmp_path):
    k = Skeleton('mine', ['a', 'left_b', 'right_b'], [-1, 0, 0], [0, 2, 1])
    s = LiftSet.of(k, [(Clip('a', fps=1.), torch.ones(4, 3, 2), None, torch.ones(4, 3, 3))], unit='pixels', to_metres=torch.arange(4.))
    s.save(tmp_path/'a.npz')
    t = LiftSet.load(tmp_path/'a.npz')
    assert t.layout.joints == k.joints and t.layout.mirror == (0, 2, 1) and t.to_metres.tolist() == [0, 1, 2, 3] and t.unit == 'pixels'

@pytest.mark.parametrize('made', ['missing', 'cut', 'text', 'other', 'pickled'])
def test_files_that_are_none(tmp_path, made):
    f = tmp_path/'a.npz'
    some().save(f)
    if made == 'missing': f.unlink()
    if made == 'cut': f.write_bytes(f.read_bytes()[:-200])
    if made == 'text': f.write_text('hello')
    if made == 'other': np.savez(f, poses=np.zeros(3))
    if made == 'pickled': np.savez(f, header=np.array({'a': 1}, dtype=object), points=np.zeros(1))
    with pytest.raises(KeypointError, match='a.npz'): LiftSet.load(f)

def test_a_failed_save_leaves_nothing(tmp_path):
    s = some((3,))
    two = Camera.look_at(torch.tensor([[1., 2, 3], [2., 2, 3]]))
    with pytest.raises(KeypointError, match='one camera a clip'):
        replace(s, clips=[replace(s.clips[0], camera=two)]).save(tmp_path/'a.npz')
    assert not list(tmp_path.iterdir())

def test_figures():
    for s in (some((6,)), some((6,), labels=False), some((1,)), some((6,), layout='coco17')):
        fig = plot_clip(s)
        assert len(fig.axes) == (1 if s.joints is None else 2)
