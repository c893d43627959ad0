"""`posebook.lift_baselines` and `posebook.lift_scores`: baselines, numbers of frames, boards, files, the command"""
import json, math, warnings
from dataclasses import replace
from types import SimpleNamespace
import numpy as np, pytest, torch
from posebook.coordinates import PriorError
from posebook.joint_metrics import FrameErrors, bone_consistency
from posebook.keypoints import KeypointError
from posebook.lift_baselines import METRICS, FlatLifter, NearestLifter, frame_metrics, lifted, plot_lifts, runs_of, true_joints
from posebook.lift_batches import LiftDataModule
from posebook.lift_data import Clip, LiftSet
from posebook.lift_scores import (COMMANDS, LiftBoard, compare_lifters, evaluate_lifting, gather_views, is_lift_file, load_lifters, name_of,
                                  plain_name, run_lifting, score_lifter, trained_on, unseen_clips)
from posebook.lifting import Lifter
from posebook.metrics import bootstrap_ci, mpjpe, pa_mpjpe
from posebook.poses import embedded_data
from posebook.skeleton import get_skeleton
from posebook.virtual_views import see_poses

@pytest.fixture(scope='module')
def parts(): return see_poses(embedded_data(), views=1, seed=3).split(fractions=(.6, 0, .4), seed=0)

@pytest.fixture(scope='module')
def held(parts): return parts['test']

@pytest.fixture(scope='module')
def board(parts, held):
    return compare_lifters(dict(flat=FlatLifter().fit(parts['train']), nearest=NearestLifter(parts['train'])), held, views='clips')

class Oracle:
    "Knows the truth, and adds what it is told to"
    def __init__(self, data, noise=0., name='oracle', card=None):
        self.layout, self.data, self.noise, self.name, self.card = data.layout, data, noise, name, card or {}
    def lift(self, points, flip=False, batch_size=256):
        self.flip = flip
        g = torch.Generator().manual_seed(0)
        return lifted(points, self.data.root_relative()+self.noise*torch.randn(self.data.joints.shape, generator=g))


# ---- baselines

def test_flat_has_no_depth_and_the_pelvis_at_the_origin(held):
    x = FlatLifter().lift(held).joints
    assert (x[..., 2] == 0).all() and x[:, 0].abs().max() == 0
    front = held.points-held.points[:, :1]
    assert (torch.nn.functional.cosine_similarity(x[..., :2].flatten(1), front.flatten(1)) > .9999).all()

def test_flat_does_not_mind_where_and_how_near_somebody_is(held):
    a = FlatLifter().lift(held.points[:9]).joints
    b = FlatLifter().lift(3*held.points[:9]+500).joints
    assert torch.allclose(a, b, atol=1e-4)

def test_flat_takes_all_that_a_lifter_takes(held):
    flat, nearest = FlatLifter(), NearestLifter(held)
    for l in (flat, nearest):
        assert len(l.lift(held.points[:3])) == 3 and len(l.lift(held, flip=True, batch_size=7)) == len(held)
        with pytest.raises(KeypointError, match='17, 2'): l.lift(held.points[:3, :16])

def test_the_fitted_size_is_the_least_squares_one(parts):
    f = FlatLifter().fit(parts['train'])
    g = parts['train'].root_relative()
    error = lambda s: (FlatLifter(size=s).lift(parts['train']).joints-g).square().sum().item()
    assert error(f.size) < min(error(f.size*.99), error(f.size*1.01))

def test_nearest_compares_only_what_was_seen(parts):
    t = parts['train']
    worse = replace(t, points=t.points+300*(torch.arange(17) == 13)[None, :, None], confidence=t.confidence*(torch.arange(17) != 13))
    n = NearestLifter(t)
    off = (n.lift(worse).joints-t.root_relative()).norm(dim=-1).amax(1)
    assert (off < 1e-3).float().mean() > .9
    assert n.n_parameters == len(t)*17*5 and set(n.card['data']['train']) == {c.group for c in t.clips}

def test_nearest_in_batches_is_the_same(parts, held):
    n = NearestLifter(parts['train'])
    assert torch.equal(n.lift(held).joints, n.lift(held, batch_size=11).joints)


# ---- labels and runs

def test_only_whole_poses_count(held):
    x = held.joints.clone()
    x[::3, 5] = math.nan
    s = replace(held, joints=x)
    assert len(true_joints(s)) == len(held)-len(range(0, len(held), 3))
    score = score_lifter(Oracle(held), s)
    assert len(score) == len(true_joints(s)) and score.mean().mean < 1e-3
    assert torch.isnan(score.errors.errors['acceleration']).all()          # never three frames in a row

def test_pixels_become_metres(held):
    s = replace(held, joints=held.joints*500, unit='pixels', to_metres=torch.full((len(held),), 1/500), absolute=False)
    assert torch.allclose(true_joints(s), held.joints, atol=1e-5)

def test_no_labels_is_an_error(held):
    for s in (replace(held, joints=None), held.without_labels()):
        with pytest.raises(PriorError, match='no labels'): score_lifter(FlatLifter(), s)

def test_runs_break_at_clips_and_gaps(held):
    r = runs_of(held)
    assert [int((r == k).sum()) for k in r.unique()] == [len(c) for c in held.clips]
    x = held.joints.clone(); x[10] = math.nan
    r = runs_of(replace(held, joints=x))
    assert len(r) == len(held)-1 and r[9] != r[10] and r[8] == r[9]


# ---- numbers of frames

def test_frame_metrics_by_hand(held):
    g = true_joints(held)
    p = g+.02*torch.randn(g.shape, generator=torch.Generator().manual_seed(1))
    m = frame_metrics(p, g, runs_of(held))
    rel = lambda x: x-x[:, :1]
    assert torch.allclose(m['MPJPE'].float(), 1000*mpjpe(rel(p), rel(g)), atol=1e-2)
    assert torch.allclose(m['PA-MPJPE'].float(), 1000*pa_mpjpe(p, g), atol=1e-2)
    first = len(held.clips[0])
    limbs = [i for i, (_, b) in enumerate(get_skeleton('h36m17').bones) if b in (2, 3, 5, 6, 12, 13, 15, 16)]
    assert m['bones'][0].item() == pytest.approx(bone_consistency(p[:first])[limbs].mean().item(), rel=1e-4)
    assert (m['bones'][:first] == m['bones'][0]).all() and m['bones'][first] != m['bones'][0]
    v = (rel(p)-rel(g)).diff(dim=0)[:first-1].norm(dim=-1).mean(-1)
    assert math.isnan(m['MPJVE'][0]) and torch.allclose(m['MPJVE'][1:first].float(), 1000*v, atol=1e-2)

def test_mirrored_counts_what_a_mirror_would_mend(held):
    g = true_joints(held)
    flip = (torch.arange(len(g)) % 4 == 0)[:, None, None]
    m = frame_metrics(torch.where(flip, g*torch.tensor([1, 1, -1]), g+.003*torch.randn(g.shape)), g, runs_of(held))
    assert m['mirrored'].mean() == pytest.approx(100*flip.float().mean().item(), abs=1.5)

def test_whole_bodies_have_the_errors_of_parts():
    g = .4*torch.randn(4, 133, 3, generator=torch.Generator().manual_seed(0))
    m = frame_metrics(g+.01, g, torch.zeros(4), 'coco_wholebody133')
    assert m['H3WB hands from wrist'].max() < 1e-3 and {'H3WB face', 'H3WB whole body'} <= set(m)
    assert set(frame_metrics(g[:, :17], g[:, :17], torch.zeros(4), 'coco17')) == set(METRICS)   # PCK of all joints

def test_lone_frames_have_no_velocity(held):
    g = true_joints(held)[:5]
    m = frame_metrics(g, g, torch.arange(5))
    for k in ('MPJVE', 'acceleration', 'bones'): assert torch.isnan(m[k]).all()


# ---- one lifter

def test_the_truth_is_perfect(held):
    s = score_lifter(Oracle(held), held)
    for k in ('PA-MPJPE', 'MPJPE', 'N-MPJPE', 'MPJVE', 'acceleration', 'mirrored'): assert s.mean(k).mean < 1e-2
    assert s.mean('PCK').mean == 100 and s.mean('AUC').mean == pytest.approx(100*30/31)
    assert len(s) == len(held) and s.recordings == len({c.group for c in held.clips})

def test_means_are_those_of_frames_and_of_actions(held):
    s = score_lifter(Oracle(held, .03), held)
    v = s.errors.errors['MPJPE']
    assert s.mean('MPJPE') == bootstrap_ci(v, np.array([held.clips[i].group for i in held.clip_of]))
    by = [v[c.start:c.stop].mean() for c in held.clips]                     # one clip of each recording
    assert s.errors.macro('MPJPE').mean == pytest.approx(torch.stack(by).mean().item())
    assert s.per_joint.mean().item() == pytest.approx(v.mean().item(), rel=1e-5) and s.per_joint[0] == 0

def test_named_actions_are_used(held):
    clips = tuple(replace(c, action='odd' if i%2 else 'even') for i, c in enumerate(held.clips))
    s = score_lifter(Oracle(held, .03), replace(held, clips=clips))
    assert set(s.errors.by_action('MPJPE')) == {'odd', 'even'}

def test_flip_is_asked_for(held):
    o = Oracle(held)
    assert score_lifter(o, held, flip=True).flip and o.flip and not score_lifter(o, held).flip

def test_elevation_is_reported(held):
    class Tilted(Oracle):
        def lift(self, points, **k): return replace(super().lift(points, **k), elevation=torch.full((len(points),), .2))
    s = score_lifter(Tilted(held), held)
    assert s.elevation == pytest.approx((math.degrees(.2), 0), abs=1e-4) and 'elevation 11.5' in s.table

@pytest.mark.parametrize('spoil, text', [(lambda j: j[:, 1:], 'shape'), (lambda j: j[1:], 'shape'), (lambda j: j/0, 'not finite'),
                                         (lambda j: torch.where(torch.arange(len(j))[:, None, None] == 3, math.nan, j), '1 of')])
def test_a_broken_lifter_is_named(held, spoil, text):
    class Broken(Oracle):
        def lift(self, points, **k): return SimpleNamespace(joints=spoil(super().lift(points, **k).joints))
    with pytest.raises(PriorError, match=f'oracle.*{text}'): score_lifter(Broken(held), held)

def test_other_layouts_are_converted_with_a_word():
    s = see_poses(embedded_data(), views=1, seed=3, layout='body22').select(range(2))
    with pytest.warns(UserWarning, match='stand-ins'): score = score_lifter(FlatLifter(), s)
    assert score.layout.name == 'h36m17'

def test_record_is_plain(board):
    for r in board.rows:
        d = json.loads(json.dumps(r.record(), allow_nan=False))
        assert d['by_frame']['PA-MPJPE'][0] == r.mean().mean and set(d['joints']) == set(r.layout.joints) and d['poses'] == len(r)
        assert len(r.rows()) == 1+len(METRICS) and r.table.startswith(r.lifter)

def test_names():
    assert name_of(FlatLifter()) == 'flat' and name_of(object()) == 'object' and plain_name('PA reflected') == 'pa_reflected'


# ---- boards

def test_rows_are_sorted_and_paired(board):
    means = [r.mean().mean for r in board.rows]
    assert means == sorted(means) and board.best is board.rows[0]
    d = board.paired(board.rows[1])
    assert d.mean == pytest.approx(means[1]-means[0]) and board.paired(board.best) is None
    assert d == FrameErrors(dict(d=board.rows[1].errors.errors['PA-MPJPE']-board.best.errors.errors['PA-MPJPE']),
                            board.best.errors.actions, board.best.errors.groups).frame_weighted('d')
    flat = next(r for r in board.rows if r.lifter == 'flat')
    assert board.ratio(flat) == 1 and math.isnan(LiftBoard((board.best,)).ratio(board.best, 'nobody'))

def test_pairing_is_narrower(held):
    b = compare_lifters([Oracle(held, .05, 'a'), Oracle(held, .055, 'b')], held)
    wide = [r.mean() for r in b.rows]
    d = b.paired(b.rows[1])
    assert d.low > 0 and d.high-d.low < wide[0].high-wide[0].low

def test_tables_agree_with_scores(board):
    t, md = board.table(speed=True), board.markdown
    for r in board.rows: assert f'{r.mean().mean:.1f}' in t and f'{r.mean("MPJPE").mean:.1f}<br>[' in md
    assert all(len(row) == len(board.cells()[0]) for row in board.cells())
    assert [row[0] for row in board.by_joint(True)[1:]] == list(board.best.layout.joints)
    assert board.by_joint(True)[1][1] == f'{board.best.per_joint_aligned[0]:.1f}'
    last = board.by_action(True)[-2:]
    assert last[0][2] == f'{board.best.errors.macro("PA-MPJPE").mean:.1f}' and last[1][2] == f'{board.best.mean().mean:.1f}'
    assert len(board.figure().axes) == 3 and any('PCK' in n for n in board.notes)

def test_frames_without_velocity_have_no_column(held):
    one = held.thin(1000)
    b = compare_lifters([FlatLifter()], one)
    assert not {'MPJVE', 'bones %'} & {v for v, _ in b.cells()[0]} and b.figure() and json.dumps(b.record(), allow_nan=False)

def test_save_replaces_only_boards(board, tmp_path):
    folder = board.save(tmp_path/'b', pictures=3)
    assert sorted(p.name for p in folder.iterdir()) == ['lifting.json', 'lifting.md', 'lifting.png', 'lifting.txt',
                                                        'poses-flat.png', 'poses-nearest.png']
    assert json.loads((folder/'lifting.json').read_text())['rows'][0]['to_best'] is None
    board.save(folder)
    assert not (folder/'poses-flat.png').exists()
    (tmp_path/'mine').mkdir(); (tmp_path/'mine/x').write_text('')
    with pytest.raises(PriorError, match='not a board'): board.save(tmp_path/'mine')

def test_pictures_of_any_view(board):
    r = board.rows[0]
    for v in ('side', 'front', (30., 10.)): assert plot_lifts(r.joints, r.truth, number=2, view=v)
    assert r.picture(1, procrustes=True)


# ---- what was trained on

def test_what_was_trained_on_is_left_out(parts, held):
    seen = {held.clips[0].group, held.clips[1].group}
    o = Oracle(held, card=dict(data=dict(train=[held.clips[0].group], val=[held.clips[1].group, 'elsewhere'])))
    said = []
    left = unseen_clips(held, [o, FlatLifter(), object()], lambda *w: said.append(w))
    assert trained_on(held, [o]) == seen and {c.group for c in left.clips} == {c.group for c in held.clips}-seen and said
    with pytest.warns(UserWarning, match='2 recordings were trained on'): compare_lifters([o], held)
    all_seen = Oracle(held, card=dict(data=dict(train=[c.group for c in held.clips])))
    with pytest.raises(PriorError, match='--data'): unseen_clips(held, [all_seen])

@pytest.mark.parametrize('make, text', [(lambda h: [], 'at least one'), (lambda h: [FlatLifter(), FlatLifter()], 'the same'),
                                        (lambda h: [FlatLifter(), FlatLifter('coco17')], 'different|same')])
def test_boards_refuse(held, make, text):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with pytest.raises(PriorError, match=text): compare_lifters(make(held), held)


# ---- runs

def test_a_lifter_measures_and_judges_itself(monkeypatch):
    data = LiftDataModule(fractions=(.6, .2, .2), batch_size=32)
    m = Lifter(network='mlp', size='nano').eval()
    found = m.measure(data, 'val')
    assert {'pa_mpjpe', 'mpjpe', 'mpjve', 'pck', 'bones'} <= set(found) and all(isinstance(v, float) for v in found.values())
    record, table = m.judge(data, 'mine')
    assert record['of_flat'] > 0 and record['poses'] == len(data.lift_set('test')) and 'mine' in table and 'flat' in table
    blank = data.lift_set('test').without_labels()
    monkeypatch.setattr(data, 'lift_set', lambda part: blank)
    assert m.measure(data, 'test') == {} and m.judge(data)[0] == {} and 'no labels' in m.judge(data)[1]


# ---- the command

def test_data_of_every_kind(tmp_path, held):
    s, word = gather_views(None, views=2)
    assert len(s) == 2*len(embedded_data()) and 'two' not in word and '2 virtual cameras' in word
    assert gather_views(None, views=2)[0].fingerprint == s.fingerprint != gather_views(None, views=2, seed=1)[0].fingerprint
    held.save(tmp_path/'views.npz')
    again, word = gather_views([str(tmp_path/'views.npz')])
    assert word == 'views.npz' and len(again) == len(held) and again.labelled.all()

def test_kinds_of_files(tmp_path):
    np.savez(tmp_path/'motion.npz', poses=np.zeros((3, 165)), trans=np.zeros((3, 3)))
    np.savez(tmp_path/'lift.npz', positions_3d=np.zeros(3))
    (tmp_path/'bad.npz').write_text('no')
    (tmp_path/'a.json').write_text('{}')
    assert not is_lift_file(str(tmp_path/'motion.npz')) and is_lift_file(str(tmp_path/'lift.npz')) and is_lift_file(str(tmp_path/'a.json'))
    assert not is_lift_file(str(tmp_path))
    with pytest.raises(PriorError, match='npz'): is_lift_file(str(tmp_path/'bad.npz'))
    with pytest.raises(PriorError, match='no such'): is_lift_file(str(tmp_path/'none.npz'))
    with pytest.raises(PriorError, match='one kind'): gather_views([str(tmp_path/'motion.npz'), str(tmp_path/'lift.npz')])

def test_lifters_by_name(tmp_path):
    Lifter(network='mlp', size='nano').save_pretrained(tmp_path/'run'/'lifter')
    found = load_lifters([f'{tmp_path}/run/lifter', f'other={tmp_path}/run'])
    assert list(found) == ['run', 'other', 'flat'] and isinstance(found['flat'], FlatLifter)
    assert list(load_lifters(['cut=flat'])) == ['cut'] and list(load_lifters(['flat'], flat=False)) == ['flat']
    with pytest.raises(PriorError, match='NAME='): load_lifters([f'{tmp_path}/run', f'{tmp_path}/run'])
    with pytest.raises(PriorError, match='no lifter at nowhere'): load_lifters(['nowhere'])

def test_evaluate_lifting(tmp_path, capsys):
    m = Lifter(network='mlp', size='nano')
    m.card = dict(data=dict(train=['walk', 'run'], val=['jump']))
    m.save_pretrained(tmp_path/'tiny')
    COMMANDS['lifting']([str(tmp_path/'tiny')], views=1, per_joint=True, per_action=True, procrustes=True, visualize=True, flip=True,
                        noise='detector', via='coco17', speed=True, output=str(tmp_path/'out'))
    out = capsys.readouterr().out
    for text in ('left out 3 recordings', 'PA-MPJPE', 'joint (PA-MPJPE, mm)', 'mean of actions', 'poses/s', 'mirrored picture', 'saved'):
        assert text in out
    d = json.loads((tmp_path/'out/lifting.json').read_text())
    assert {r['lifter'] for r in d['rows']} == {'tiny', 'flat'} and d['rows'][0]['flip'] and (tmp_path/'out/poses-tiny.png').exists()
    with pytest.raises(PriorError, match='--output'): evaluate_lifting([str(tmp_path/'tiny')], views=1, visualize=True)
    with pytest.raises(PriorError, match='detector'): run_lifting(['flat'], noise='salt')

def test_files_for_lifting_from_the_command(tmp_path, held, capsys):
    held.save(tmp_path/'views.npz')
    board = run_lifting(['flat'], [str(tmp_path/'views.npz')])
    assert len(board.best) == len(held) and board.views == 'views.npz'
    no = LiftSet.of('h36m17', [(Clip('a', fps=30.), held.points[:4], None, None)])
    no.save(tmp_path/'blank.npz')
    with pytest.raises(PriorError, match='no labels'): run_lifting(['flat'], [str(tmp_path/'blank.npz')])
