"Files of 2D and 3D poses: each format written as its makers do, then broken in every way; cameras; attacks."
import json, math, os, pickle, warnings
from pathlib import Path

import numpy as np, pytest, torch
from posebook.camera import Camera, Distortion, H36M_LENSES
from posebook.keypoints import KeypointError
from posebook.lift_cameras import H36M_CAMERAS, fit_lens, in_metres, numbers, open_arrays, read_cameras
from posebook.lift_data import LiftSet
from posebook.lift_files import (H36M_ACTIONS, MISANNOTATED, lift_format, read_h3wb, read_lift_data, read_mmpose, read_motionbert,
                                 read_mpi_inf_3dhp, read_videopose3d)
from posebook.skeleton import get_skeleton
from posebook.tracks import Track

KEPT = [0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27] # of 32, in Human3.6M
column = lambda v: np.asarray(v, float)[:, None]

def camera(lens='54138969', x=4., y=4.):
    "A camera of Human3.6M in the corner of a room with z up"
    eye, L = Camera.look_at((x, y, 1.6), (0, 0, .9), up=(0, 0, 1)), H36M_LENSES[lens]
    d = Distortion(torch.tensor(L['radial']), torch.tensor(L['tangential']), 'h36m')
    return Camera(L['focal'], L['center'], eye.R, eye.t, L['width'], L['height'], d)

ROOM = {(s, n): camera(n, x, y) for s, far in (('S1', 0), ('S9', .3)) for n, x, y in
        zip(H36M_CAMERAS, (4+far, -4, 4.2, -4.5), (4.5, 4+far, -4, -4))}

def people(T=5, seed=0, K=17):
    "Random people in the room, metres"
    return torch.randn(T, K, 3, generator=torch.Generator().manual_seed(seed))*torch.tensor([.25, .25, .4])+torch.tensor([0, 0, .95])

def mmpose_cameras(room=ROOM):
    return {k: dict(R=c.R.mT.double().numpy(), T=column(c.position), c=column(c.center), f=column(c.focal), w=c.width, h=c.height,
                    k=column(c.distortion.radial), p=column(c.distortion.tangential.flip(0)), name='camera1', id=k[1])
            for k, c in room.items()}

class Call:
    "Pickles as a call"
    def __init__(self, f, *args): self.f, self.args = f, args
    def __reduce__(self): return self.f, self.args

# ---- attacks

def attacks(mark):
    return {'posix.system': Call(os.system, f'touch {mark}'), 'builtins.eval': Call(eval, f'open({str(mark)!r}, "w")'),
            'builtins.getattr': Call(getattr, 'x', 'upper'), 'numpy.load': Call(np.load, str(mark)), 'pathlib': Call(Path, str(mark)),
            'collections.Counter': Call(__import__('collections').Counter, 'a'),
            'posebook.lift_data.LiftSet': Call(LiftSet, 1)}

@pytest.mark.parametrize('name', attacks(''))
@pytest.mark.parametrize('where', ['positions_3d', 'positions_2d', 'data', 'train_data', 'imgname', 'pickle', 'cameras'])
def test_nothing_is_run(name, where, tmp_path):
    mark = tmp_path/'mark'
    bad = attacks(mark)[name]
    if where in ('pickle', 'cameras'):
        for protocol in (0, 2, 4):
            f = tmp_path/('cameras.pkl' if where == 'cameras' else 'h36m.pkl')
            f.write_bytes(pickle.dumps({('S1', '1'): bad} if where == 'cameras' else dict(train=dict(joint_2d=bad)), protocol))
            with pytest.raises(KeypointError, match='the pickle asks for') as e:
                read_cameras(f) if where == 'cameras' else read_motionbert(f)
            assert name.split('.')[-1] in str(e.value) and f.name in str(e.value)
    else:
        f = tmp_path/'a.npz'
        more = dict(part=np.zeros((1, 17, 3))) if where == 'imgname' else {}
        np.savez(f, **{where: np.array([bad], dtype=object) if where == 'imgname' else dict(S1=dict(Walking=bad))}, **more)
        with pytest.raises(KeypointError, match='the pickle asks for') as e: read_lift_data(f)
        assert f"key '{where}'" in str(e.value)
    assert not mark.exists()

def test_plain_pickles_refuse_what_bodies_may_hold(tmp_path):
    (tmp_path/'a.pkl').write_bytes(b'cchumpy.ch\nCh\n)R.')
    with pytest.raises(KeypointError, match='asks for chumpy.ch.Ch: expected arrays of numpy only'): open_arrays(tmp_path/'a.pkl')

# ---- cameras

def karfly(room=ROOM):
    lens = {n: dict(calibration_matrix=[[L['focal'][0], 0, L['center'][0]], [0, L['focal'][1], L['center'][1]], [0, 0, 1]],
                    distortion=[*L['radial'][:2], L['tangential'][1], L['tangential'][0], L['radial'][2]])
            for n, L in H36M_LENSES.items()}
    outer = {}
    for (s, n), c in room.items(): outer.setdefault(s, {})[n] = dict(R=c.R.tolist(), t=(1000*c.t)[:, None].tolist())
    return dict(intrinsics=lens, extrinsics=outer)

def videopose():
    view = lambda c: dict(orientation=c.to_h36m()[0].tolist(), translation=c.to_h36m()[1].tolist())
    return {s: [view(c) for (t, _), c in ROOM.items() if t == s] for s in ('S1', 'S9')}|dict(S2=[{}, {}, {}, {}])

def full_videopose():
    "As VideoPose3D's class completes them: lens beside place, metres"
    full = videopose()
    for s in ('S1', 'S9'):
        for n, v in zip(H36M_CAMERAS, full[s]):
            L = H36M_LENSES[n]
            v |= dict(id=n, center=L['center'], focal_length=L['focal'], radial_distortion=L['radial'], res_w=L['width'],
                      res_h=L['height'], tangential_distortion=L['tangential'], translation=np.array(v['translation'])/1000)
    return full

@pytest.mark.parametrize('form', [karfly, mmpose_cameras, videopose, full_videopose, lambda: ROOM])
def test_every_spelling_is_the_same_camera(form):
    got, x = read_cameras(form()), people(30)
    assert sorted(got) == sorted(ROOM)
    for k, c in ROOM.items():
        assert (got[k].project(x)-c.project(x)).norm(dim=-1).max() < 3e-3
        assert (got[k].width, got[k].height) == (c.width, c.height)

@pytest.mark.parametrize('protocol', range(6))
def test_camera_pickles_of_every_protocol(protocol, tmp_path):
    (tmp_path/'cameras.pkl').write_bytes(pickle.dumps(mmpose_cameras(), protocol))
    assert len(read_cameras(tmp_path/'cameras.pkl')) == 8

def test_camera_pickles_of_python_2_and_of_both_numpys(tmp_path):
    data = pickle.dumps(mmpose_cameras(), 2)
    old, new = data.replace(b'numpy._core.', b'numpy.core.'), data.replace(b'numpy.core.', b'numpy._core.')
    old2 = pickle.dumps(mmpose_cameras(), 0).replace(b'_codecs\nencode', b'_codecs\nencode')
    for d in (data, old, new, old2):
        (tmp_path/'cameras.pkl').write_bytes(d)
        assert torch.allclose(read_cameras(tmp_path/'cameras.pkl')['S1', '54138969'].t, ROOM['S1', '54138969'].t, atol=1e-5)

def test_3dhp_cameras_are_the_other_way_round():
    c = camera().replaced(distortion=None)
    d = dict(R=c.R.numpy(), T=column(c.t), c=column(c.center), f=column(c.focal), w=2048, h=2048, name='train_cam_0')
    flat = {k: v for k, v in d.items() if k not in ('R', 'T')}
    got = read_cameras(dict(S4_Seq2_Cam0=d, TS1=flat))
    assert torch.allclose(got['S4_Seq2', '0'].t, c.t, atol=1e-6) and torch.equal(got['TS1', ''].R, torch.eye(3))

@pytest.mark.parametrize('change, says', [
    (dict(R=np.zeros((2, 3))), r"R: expected numbers of shape \(3, 3\)"), (dict(T=np.zeros(2)), 'T: expected'),
    (dict(f=None), 'f: expected'),
    (dict(R=np.eye(3)*1.1), 'expected rotations'), (dict(c=column([math.nan, 1])), r'c\[0\]: expected a finite number'),
    (dict(f=column([-1, 1])), 'focal: expected positive')])
def test_bad_cameras(change, says):
    d = mmpose_cameras()
    d['S1', '54138969'] |= change
    with pytest.raises(KeypointError, match=says) as e: read_cameras(d)
    assert "('S1', '54138969')" in str(e.value)

def test_cameras_that_are_none(tmp_path):
    for d in ({}, dict(extrinsics={}), dict(extrinsics=dict(S1={}), intrinsics={}), {('S1', '1'): 3}, {('S1', '1'): {}},
              dict(extrinsics=dict(S1={'1': {}}), intrinsics={})):
        with pytest.raises(KeypointError): read_cameras(d)
    (tmp_path/'a.json').write_text('{')
    for f in ('a.json', 'no.json', 'no.pkl'):
        with pytest.raises(KeypointError, match=f): read_cameras(tmp_path/f)

def test_fit_lens_of_noise_and_of_nothing():
    c, x = camera().replaced(distortion=None), people(50)
    y, p = c.to_camera(x), c.project(x)
    assert (fit_lens(p, y, (1000, 1002)).focal-c.focal).abs().max() < .5
    assert fit_lens(torch.rand(p.shape)*1000, y, (1000, 1002)) is None and fit_lens(p*math.nan, y, (1000, 1002)) is None
    assert fit_lens(p, y*torch.tensor([1, 1, -1]), (1000, 1002)) is None

# ---- VideoPose3D

def vp3d(folder, T=5, longer=0, subjects=('S1', 'S9'), actions=('Walking 1', 'Eating'), wide=True, columns=2, meta=None, drop=()):
    "The pair of files, and what is in them"
    x = {s: {a: people(T+i, 10*j+i) for i, a in enumerate(actions)} for j, s in enumerate(subjects)}
    def spread(v):
        w = np.zeros((len(v), 32, 3), 'f4')
        w[:, KEPT] = v.numpy()
        return w if wide else v.numpy()
    def views(s, v):
        flat = [ROOM[s, n].project(v).numpy() for n in H36M_CAMERAS]
        flat = [np.concatenate([f, f[-1:].repeat(longer, 0)]) for f in flat]
        return [np.concatenate([f, np.full((*f.shape[:2], columns-2), .7, 'f4')], -1) for f in flat]
    m = dict(layout_name='h36m', num_joints=17, keypoints_symmetry=[[4, 5, 6, 11, 12, 13], [1, 2, 3, 14, 15, 16]])|(meta or {})
    m = {k: v for k, v in m.items() if k not in drop}
    np.savez_compressed(folder/'data_3d_h36m.npz', positions_3d={s: {a: spread(v) for a, v in d.items()} for s, d in x.items()})
    np.savez_compressed(folder/'data_2d_h36m_gt.npz', positions_2d={s: {a: views(s, v) for a, v in d.items()} for s, d in x.items()},
                        metadata=m)
    return folder/'data_3d_h36m.npz', folder/'data_2d_h36m_gt.npz', x

@pytest.mark.parametrize('wide', [True, False])
@pytest.mark.parametrize('longer', [0, 4])
def test_videopose3d(tmp_path, wide, longer):
    a, b, x = vp3d(tmp_path, wide=wide, longer=longer)
    s = read_videopose3d(a, b, mmpose_cameras())
    assert [c.name for c in s.clips[:5]] == [f'S1/Walking 1/{n}' for n in H36M_CAMERAS]+[f'S1/Eating/{H36M_CAMERAS[0]}']
    assert len(s) == 4*(5+6)*2 and s.labelled.all() and s.absolute and s.layout.name == 'h36m17'
    assert s.reprojection_error().max() < 3e-3
    assert [c.size for c in s.clips[:4]] == [(1000, 1002), (1000, 1000), (1000, 1000), (1000, 1002)]
    for c in s.clips:
        assert c.fps == 50 and torch.allclose(c.extrinsics.to_world(s.joints[c.start:c.stop]), x[c.subject][c.action], atol=1e-5)
    assert set(s.split('subject', (.5, 0, .5))) == {'train', 'test'}
    assert {c.subject for c in read_videopose3d(a, b, ROOM, subjects=['S9']).clips} == {'S9'}

def test_confidence_and_holes(tmp_path):
    a, b, x = vp3d(tmp_path, columns=3)
    s = read_videopose3d(a, b, ROOM)
    assert torch.allclose(s.confidence, torch.tensor(.7))
    d = open_arrays(b)
    d['positions_2d']['S1']['Eating'][2][3, 5, 0] = np.nan
    d['positions_2d']['S1']['Eating'][2][4, :, 2] = 1.3
    np.savez(b, **d)
    e = read_videopose3d(a, b, ROOM).select(lambda c: c.name == 'S1/Eating/58860488')
    assert (e.confidence[3, 5], e.confidence[3, 6].isclose(torch.tensor(.7)), e.confidence[4, 0]) == (0, True, 1)
    assert (e.points[3, 5] == 0).all() and e.labelled.all()

def test_unlabelled_subjects_come_along(tmp_path):
    a, b, x = vp3d(tmp_path)
    d = open_arrays(b)
    d['positions_2d']['S2'] = dict(Walking=d['positions_2d']['S1']['Eating'])
    np.savez(b, **d)
    s = read_videopose3d(a, b, ROOM)
    assert s.labelled.sum() == 4*11*2 and len(s) == 4*11*2+24 and s.clips[-1].size == (1000, 1002) and s.clips[-1].camera is None
    assert read_videopose3d(None, b).joints is None

def test_without_cameras(tmp_path):
    a, b, x = vp3d(tmp_path)
    for args in ((a, b), (a,)):
        with pytest.raises(KeypointError, match='cannot be put before an unknown camera.*world=True'): read_videopose3d(*args)
    s = read_videopose3d(a, b, world=True)
    assert not s.absolute and torch.allclose(s.joints[:5, :, 1], -x['S1']['Walking 1'][..., 2]) and s.reprojection_error().isnan().all()
    only = read_videopose3d(a, world=True)
    assert (only.confidence == 0).all() and len(only.clips) == 4 and only.labelled.all()

def test_other_layouts(tmp_path):
    a, b, x = vp3d(tmp_path)
    d = open_arrays(b)
    d['metadata'] = dict(layout_name='coco', num_joints=17, keypoints_symmetry=[[1, 3, 5, 7, 9, 11, 13, 15], [2, 4, 6, 8, 10, 12, 14, 16]])
    np.savez(b, **d)
    with pytest.warns(UserWarning, match="'coco17' as 'h36m17'.*train and test on one layout"): s = read_videopose3d(a, b, ROOM)
    assert s.layout.name == 'h36m17' and torch.allclose(s.joints[:5], ROOM['S1', '54138969'].to_camera(x['S1']['Walking 1']))
    hips = [get_skeleton('coco17').index(f'{n}_hip') for n in ('left', 'right')]
    assert torch.allclose(s.points[0, 0], torch.tensor(d['positions_2d']['S1']['Walking 1'][0][0, hips]).mean(0), atol=1e-3)
    flat = read_videopose3d(None, b, layout=None)
    assert flat.layout.name == 'coco17'

def save2d(path, **change):
    d = open_arrays(path)
    for k, v in change.items(): d[k] = v(d[k]) if callable(v) else v
    np.savez(path, **d)

BAD_2D = [(dict(metadata=lambda m: m|dict(num_joints=16)), 'metadata.num_joints: expected 17'),
    (dict(metadata=lambda m: m|dict(layout_name='dog')), 'metadata.layout_name: expected h36m, coco.*found dog; give `source`'),
    (dict(metadata=lambda m: {}), 'metadata.layout_name: expected this key'),
    (dict(positions_2d={}), 'positions_2d: expected a dictionary with entries, found an empty'),
    (dict(positions_2d=np.zeros(3)), 'positions_2d: expected a dictionary'),
    (dict(positions_2d=lambda p: dict(S1=dict(Eating=3))), 'positions_2d.S1.Eating: expected a list with an array for each camera'),
    (dict(positions_2d=lambda p: {'S1': {'Eating': p['S1']['Eating'][:3]}}), 'positions_2d.S1.Eating: expected 4 views, found 3'),
    (dict(positions_2d=lambda p: {'S1': {'Eating': [v[:2] for v in p['S1']['Eating']]}}), 'at least 6 frames, as many as in 3D'),
    (dict(positions_2d=lambda p: {'S1': {'Eating': [v[:, :16] for v in p['S1']['Eating']]}}), r'Eating.54138969.: expected numbers'),
    (dict(positions_2d=lambda p: {'S1': {'Eating': [v/0 for v in p['S1']['Eating']]}}), 'a finite number, found'),
    (dict(positions_2d=lambda p: {'S1': {'Eating': [v.astype(str) for v in p['S1']['Eating']]}}), 'expected numbers of shape.*<U')]

@pytest.mark.filterwarnings('ignore:divide')
@pytest.mark.parametrize('change, says', BAD_2D, ids=range(len(BAD_2D)))
def test_bad_2d(tmp_path, change, says):
    a, b, _ = vp3d(tmp_path)
    save2d(b, **change)
    with pytest.raises(KeypointError, match=says) as e: read_videopose3d(a, b, ROOM)
    assert str(e.value).startswith(str(b))

BAD_3D = [(lambda x: x*1000, 'people of .3 to 5 m, in metres, found'), (lambda x: x[:, :20], 'expected numbers of shape'),
    (lambda x: x*np.nan, 'expected a finite number, found nan'), (lambda x: x.astype(object), 'found object of shape'),
    (lambda x: x.tolist()[:-1]+[[1]], 'found object of shape'), (lambda x: 'text', 'expected numbers'),
    (lambda x: None, 'expected numbers')]

@pytest.mark.parametrize('change, says', BAD_3D, ids=range(len(BAD_3D)))
def test_bad_3d(tmp_path, change, says):
    a, b, _ = vp3d(tmp_path)
    d = open_arrays(a)['positions_3d']
    d['S9']['Eating'] = change(d['S9']['Eating'])
    np.savez(a, positions_3d=d)
    with pytest.raises(KeypointError, match=says) as e: read_videopose3d(a, b, ROOM)
    assert f'{a}: positions_3d.S9.Eating' in str(e.value)

def test_wrong_symmetry_and_normalised_pictures_are_said(tmp_path):
    a, b, _ = vp3d(tmp_path, meta=dict(keypoints_symmetry=[[1, 2, 3], [4, 5, 7]]))
    with pytest.warns(UserWarning, match='keypoints_symmetry: expected the sides of .h36m17.'): read_videopose3d(a, b, ROOM)
    small = lambda p: {'S1': {'Eating': [v/1000 for v in p['S1']['Eating']]}}
    save2d(b, metadata=lambda m: m|dict(keypoints_symmetry=None), positions_2d=small)
    with pytest.warns(UserWarning, match='expected pixels, found numbers below 3'): read_videopose3d(None, b)

def test_custom_videos(tmp_path):
    x = np.random.default_rng(0).uniform(0, 300, (2, 8, 17, 2)).astype('f4')
    x[1, 3] = np.nan
    meta = dict(layout_name='coco', num_joints=17, keypoints_symmetry=[[1, 3, 5, 7, 9, 11, 13, 15], [2, 4, 6, 8, 10, 12, 14, 16]],
                video_metadata={'a.mp4': dict(w=300, h=200), 'b.mp4': dict(w=1920, h=1080)})
    f = tmp_path/'data_2d_custom_wild.npz'
    for one in (lambda v: [v], lambda v: v): # some scripts forget the list
        np.savez(f, positions_2d={'a.mp4': {'custom': one(x[0])}, 'b.mp4': {'custom': one(x[1])}}, metadata=meta)
        s = read_lift_data(f, layout=None)
        assert [(c.name, c.size, len(c)) for c in s.clips] == [('a.mp4/custom', (300, 200), 8), ('b.mp4/custom', (1920, 1080), 8)]
        assert s.confidence[11].sum() == 0 and s.confidence.sum() == 15*17 and math.isnan(s.clips[0].fps)
    np.savez(f, positions_2d={'a.mp4': {'custom': [x[0]]}})
    with pytest.raises(KeypointError, match='metadata: expected this key'): read_lift_data(f)
    assert read_lift_data(f, source='h36m').layout.name == 'h36m17'

# ---- MotionBERT

def motionbert(N=9, seed=0, test=True, **change):
    rng = np.random.default_rng(seed)
    sources = ['s_09_act_05_subact_02_ca_01']*4+['s_09_act_02_subact_01_ca_02']*3+['s_11_act_16_subact_02_ca_04']*2
    flat = rng.uniform(100, 900, (N, 17, 3)).astype('f4')
    d = dict(joint_2d=flat[..., :2], confidence=rng.uniform(0, 1, (N, 17, 1)).astype('f4'), joint3d_image=flat,
             camera_name=np.array(['54138969']*4+['55011271']*3+['60457274']*2), source=sources)
    if test:
        factor = rng.uniform(2., 3., N).astype('f4')
        d |= {'action': ['greet']*4+['direct']*3+['walktog']*2, '2.5d_factor': factor, 'joints_2.5d_image': flat*factor[:, None, None]}
    return d|change

def mb(tmp_path, train=None, **test):
    f = tmp_path/'h36m_sh_conf_cam_source_final.pkl'
    f.write_bytes(pickle.dumps(dict(train=train or motionbert(test=False), test=motionbert(**test)), 4))
    return f

def test_motionbert(tmp_path):
    f, d = mb(tmp_path), motionbert()
    s = read_lift_data(f, part='test')
    assert (s.unit, s.absolute, [len(c) for c in s.clips]) == ('pixels', False, [4, 3, 2])
    assert [(c.subject, c.action, c.group, c.size, c.fps) for c in s.clips[::2]] == [
        ('S9', 'greet', 's_09_act_05_subact_02', (1000, 1002), 50), ('S11', 'walktog', 's_11_act_16_subact_02', (1000, 1002), 50)]
    assert np.allclose(s.to_metres, d['2.5d_factor']/1000) and np.allclose(s.joints, d['joint3d_image'])
    assert np.allclose(s.confidence, d['confidence'][..., 0]) and s.reprojection_error().isnan().all()
    m = read_motionbert(f, 'test', metres=True)
    assert m.unit == 'metres' and np.allclose(m.joints, d['joints_2.5d_image']/1000, atol=1e-5) and not m.absolute
    t = read_motionbert(f)
    assert t.to_metres is None and [c.action for c in t.clips] == ['Greeting', 'Directions', 'WalkTogether']
    kept = read_motionbert(f, 'test', skip=MISANNOTATED)
    assert len(kept) == 5 and len(kept.to_metres) == 5 and 's_09_act_05_subact_02_ca_01: left out' in kept.skipped[0]

def test_actions_of_the_skip_list():
    assert [H36M_ACTIONS[int(n.split('_')[3])] for n in MISANNOTATED] == ['Greeting', 'SittingDown', 'Waiting']
    assert len(H36M_ACTIONS) == 15

@pytest.mark.parametrize('change, says', [
    (dict(joint_2d=np.zeros((9, 16, 2))), 'test.joint_2d: expected numbers of shape'),
    (dict(joint3d_image=np.zeros((8, 17, 3))), 'joint3d_image'),
    (dict(confidence=np.zeros((9, 18))), 'test.confidence'), (dict(source=['a']*8), 'test.source: expected 9 names, one a frame, found 8'),
    (dict(camera_name=['a']), 'test.camera_name'), ({'2.5d_factor': np.zeros(3)}, '2.5d_factor'),
    (dict(joint3d_image=np.full((9, 17, 3), np.nan)), 'a finite number'), (dict(joint_2d=np.array(['a'])), 'found <U1')])
def test_bad_motionbert(tmp_path, change, says):
    with pytest.raises(KeypointError, match=says) as e: read_motionbert(mb(tmp_path, **change), 'test')
    assert 'h36m_sh_conf' in str(e.value)

def test_motionbert_without_what_it_needs(tmp_path):
    f = mb(tmp_path, train={k: v for k, v in motionbert(test=False).items() if k != 'source'})
    with pytest.raises(KeypointError, match='train.source: expected this key, found joint_2d'): read_motionbert(f)
    with pytest.raises(KeypointError, match='validate: expected this key, found train, test'): read_motionbert(f, 'validate')
    with pytest.raises(KeypointError, match='joints_2.5d_image'): read_motionbert(mb(tmp_path), 'train', metres=True)
    f.write_bytes(f.read_bytes()[:999])
    with pytest.raises(KeypointError, match='cannot be read'): read_motionbert(f)
    f.write_bytes(pickle.dumps([1]))
    with pytest.raises(KeypointError, match='expected a dictionary'): read_motionbert(f)

# ---- MPI-INF-3DHP

PINHOLE = Camera([1497., 1500.], [1024., 1030.], torch.eye(3), torch.zeros(3), 2048, 2048)
def view3dhp(T=6, seed=0, K=17):
    x = people(T, seed, K)-torch.tensor([0, 0, .95])+torch.tensor([0, 0, 4.])
    return dict(data_2d=PINHOLE.project(x).numpy(), data_3d=1000*x.numpy()), x

@pytest.mark.parametrize('K', [17, 28])
def test_3dhp(tmp_path, K):
    v, x = view3dhp(K=K)
    f = tmp_path/'data_train_3dhp.npz'
    np.savez(f, data={'S1 Seq1': [{'0': v, '8': view3dhp(seed=1, K=K)[0]}, 25], 'S2 Seq2': [{'4': v}, 50]})
    s = read_lift_data(f)
    assert [(c.name, c.subject, c.action, c.fps, c.size) for c in s.clips[1:]] == [
        ('S1 Seq1/cam8', 'S1', 'Seq1', 25, (2048, 2048)), ('S2 Seq2/cam4', 'S2', 'Seq2', 50, (2048, 2048))]
    of28 = [7, 5, 14, 15, 16, 9, 10, 11, 23, 24, 25, 18, 19, 20, 4, 3, 6]
    assert s.layout.name == 'mpi_inf_3dhp17' and torch.allclose(s.joints[:6], x[:, of28] if K == 28 else x, atol=1e-4)
    assert s.layout.joints[14] == 'pelvis' and (s.root_relative()[:, 14] == 0).all() and s.absolute
    assert s.reprojection_error().max() < .05 and (s.clips[0].camera.focal-PINHOLE.focal).abs().max() < .5
    with pytest.warns(UserWarning, match='stand-ins'): assert read_mpi_inf_3dhp(f, 'h36m17').layout.name == 'h36m17'

def test_3dhp_test_frames_that_count(tmp_path):
    f = tmp_path/'data_test_3dhp.npz'
    v = view3dhp()[0]
    np.savez(f, data=dict(TS1=v|dict(valid=np.array([0, 1, 1, 0, 1, 1])), TS6=v|dict(valid=np.ones((6, 1)))))
    s = read_lift_data(f)
    assert s.labelled.tolist() == [False, True, True, False, True, True]+[True]*6
    assert [c.size for c in s.clips] == [(2048, 2048), (1920, 1080)]
    assert (s.confidence == 1).all()

@pytest.mark.parametrize('change, says', [
    (lambda v: v|dict(data_3d=v['data_3d']/1000), 'people of .3 to 5 m, in millimetres'),
    (lambda v: dict(data_2d=v['data_2d']), 'data.TS1.data_3d'),
    (lambda v: v|dict(data_3d=v['data_3d'][:3]), 'as many frames in data_3d as in data_2d, 6, found 3'),
    (lambda v: v|dict(valid=np.ones(5)), 'data.TS1.valid'), (lambda v: [v], r'data.TS1: expected \[views by camera, frames a second\]'),
    (lambda v: 3, 'data.TS1'), (lambda v: v|dict(data_2d=v['data_2d'][:, :5]), 'data.TS1.data_2d: expected numbers of shape')])
def test_bad_3dhp(tmp_path, change, says):
    np.savez(tmp_path/'a.npz', data=dict(TS1=change(view3dhp()[0])))
    with pytest.raises(KeypointError, match=says): read_mpi_inf_3dhp(tmp_path/'a.npz')

# ---- H3WB

LENS = camera().replaced(R=torch.eye(3), t=torch.zeros(3))
def whole(n=4, seed=0): return people(n, seed, 133)-torch.tensor([0, 0, .95])+torch.tensor([0, 0, 4.5])
def points(axes, rows): return {str(j): dict(zip(axes, v)) for j, v in enumerate(rows.tolist())}

@pytest.mark.parametrize('key', ['keypoints', 'keypont'])
def test_h3wb_json(tmp_path, key):
    x = whole(12)
    p = LENS.project_camera(x)
    order = [3, 11, 0, 10, 1, 2, 4, 5, 6, 7, 8, 9]
    shuffled = lambda d: {k: d[k] for k in sorted(d)} # 0, 1, 10, 100, as text sorts
    text = {str(i): {f'{key}_2d': shuffled(points('xy', p[i])), f'{key}_3d': shuffled(points('xyz', 1000*x[i]))} for i in order}
    f = tmp_path/'2Dto3D_train.json'
    f.write_text(json.dumps(text))
    s = read_lift_data(f)
    assert [c.name for c in s.clips] == [str(i) for i in range(12)] and s.layout.name == 'coco_wholebody133'
    assert torch.allclose(s.joints, x, atol=1e-4) and torch.allclose(s.points, p, atol=1e-2)
    assert len({c.group for c in s.clips}) == 12 and len(s.windows(9)) == 12

def test_h3wb_parts_of_a_sample(tmp_path):
    x = whole(3)
    p = LENS.project_camera(x)
    text = {'0': dict(keypoints_2d=points('xy', p[0])), '1': dict(image_path='S5/Images/Eating 1.60457274/frame_1.jpg', bbox={},
            keypoints_3d=points('xyz', 1000*x[1])), '2': dict(keypoints_2d=points('xy', p[2])|{'132': dict(x=1)}),
            '3': dict(image_path='a.jpg'), '4': dict(keypoints_2d=points('xy', p[2, :99])), '5': 7,
            '6': dict(keypoints_3d=points('xyz', x[1])), '7': dict(keypoints_2d=points('xy', p[2]*math.nan))}
    f = tmp_path/'a.json'
    f.write_text(json.dumps(text))
    says = '6 of 8 samples skipped; the first: .*2.keypoints_2d: expected joints "0" to "132"'
    with pytest.warns(UserWarning, match=says): s = read_h3wb(f)
    assert len(s) == 2 and len(s.skipped) == 6 and s.labelled.tolist() == [False, True]
    assert s.confidence.sum(1).tolist() == [133, 0]
    assert (s.clips[1].subject, s.clips[1].action, s.clips[1].camera_name, s.clips[1].size) == ('S5', 'Eating 1', '60457274', (1000, 1002))
    f.write_text(json.dumps({'2': text['4']}))
    with pytest.raises(KeypointError, match='at least one of 1 samples that can be read'): read_h3wb(f)

@pytest.mark.parametrize('scale', [1, 1000])
@pytest.mark.parametrize('rows', [2, 3])
def test_h3wb_npz(tmp_path, scale, rows):
    x = whole(5)
    k, q = LENS.distortion.radial.tolist(), LENS.distortion.tangential.tolist()
    bent = np.array([[*k[:2], q[1], q[0], k[2]]])
    meta = dict(K=LENS.K[None, :rows].numpy()/scale, R=np.eye(3)[None], T=np.zeros((1, 3)), Distortion=bent)
    view = dict(camera_3d=1000*x.numpy(), pose_2d=LENS.project_camera(x).numpy())
    f = tmp_path/'h3wb_train.npz'
    np.savez(f, bbox={('S1', 'Eating', '54138969', np.int64(3)): dict(x_min=0)}, metadata={'S1': {'54138969': meta, '55011271': meta}},
             train_data={'S1': {'Eating': {'global_3d': x.numpy(), 'frame_id': np.arange(5), '54138969': view,
                                           '55011271': view|dict(pose_2d=view['pose_2d'].copy()+300)}}})
    s = read_lift_data(f)
    assert [c.name for c in s.clips] == ['S1/Eating/54138969', 'S1/Eating/55011271'] and s.clips[0].group == 'S1/Eating'
    assert s.reprojection_error()[:5].max() < .02 and s.clips[1].camera is None # a camera that does not fit is left out

def test_bad_h3wb_npz(tmp_path):
    view = dict(camera_3d=1000*whole(5).numpy(), pose_2d=np.zeros((4, 133, 2)))
    np.savez(tmp_path/'a.npz', train_data={'S1': {'Eating': {'54138969': view}}})
    with pytest.raises(KeypointError, match=r'train_data.S1.Eating.54138969.camera_3d: expected numbers of shape \(4, 133, 3\)'):
        read_h3wb(tmp_path/'a.npz')
    np.savez(tmp_path/'a.npz', train_data={'S1': {'Eating': {'54138969': dict(camera_3d=view['camera_3d'])}}})
    with pytest.raises(KeypointError, match='pose_2d: expected this key'): read_h3wb(tmp_path/'a.npz')

# ---- MMPose

def frames(n=4, world=False, dirs=True):
    "imgname, part, S of single frames of several videos"
    rows = []
    for i, (k, c) in enumerate(list(ROOM.items())[:n]):
        x = people(1, i)
        name = f'{k[0]}_Directions_1.{k[1]}_{5*i+1:06d}.jpg'
        rows.append((f'{k[0]}/{name[:-11]}/{name}' if dirs else name, c.project(x)[0], x[0] if world else c.to_camera(x)[0]))
    names, p, x = zip(*rows)
    one = torch.ones(n, 17, 1)
    return np.array(names), torch.cat([torch.stack(p), one], -1).numpy(), torch.cat([torch.stack(x), one], -1).numpy()

def mmpose_npz(f, n=4, **change):
    names, part, S = frames(n)
    np.savez(f, **(dict(imgname=names, part=part, S=S, center=np.zeros((n, 2)), scale=np.ones(n))|change))
    return f

def test_mmpose_h36m(tmp_path):
    f = mmpose_npz(tmp_path/'test_h36m_body3d.npz')
    (tmp_path/'cameras.pkl').write_bytes(pickle.dumps(mmpose_cameras(), 2))
    s = read_mmpose(f, cameras=tmp_path/'cameras.pkl')
    assert s.reprojection_error().shape == (4, 17) and s.reprojection_error().max() < 1e-3 and s.absolute
    c = s.clips[1]
    assert (c.name, c.subject, c.action, c.camera_name) == ('S1/Directions_1/55011271', 'S1', 'Directions_1', '55011271')
    assert s.clips[0].camera.distortion.form == 'h36m' and (s.clips[0].camera.R == torch.eye(3)).all()
    assert torch.allclose(s.clips[0].extrinsics.to_world(s.joints[:1]), people(1), atol=1e-5)
    again = read_lift_data(tmp_path)
    assert again.fingerprint == s.fingerprint
    plain = read_mmpose(f)
    assert plain.reprojection_error().isnan().all() and plain.clips[0].size == (1000, 1002) and torch.equal(plain.joints, s.joints)

def test_mmpose_detections(tmp_path):
    f = mmpose_npz(tmp_path/'a.npz')
    d = frames()[1]*[1, 1, .5]+[3, 4, 0]
    np.save(tmp_path/'d.npy', d)
    s = read_mmpose(f, mmpose_cameras(), tmp_path/'d.npy')
    assert torch.allclose(s.reprojection_error(), torch.tensor(5.), atol=1e-3) and (s.confidence == .5).all()
    np.save(tmp_path/'d.npy', d[:3])
    says = r'd.npy: detections: expected numbers of shape \(4, 17, 3\)'
    with pytest.raises(KeypointError, match=says): read_mmpose(f, None, tmp_path/'d.npy')
    np.save(tmp_path/'d.npy', np.array([Call(os.system, 'true')], dtype=object))
    with pytest.raises(KeypointError, match='an npy file of numbers'): read_mmpose(f, None, tmp_path/'d.npy')

def test_mmpose_frames_out_of_order_and_with_gaps(tmp_path):
    c, x = ROOM['S1', '54138969'], people(8)
    numbers_ = [11, 1, 6, 41, 16, 46, 51, 21]
    names = [f'S1_Walk.54138969_{i:06d}.jpg' for i in numbers_]
    one = np.ones((8, 17, 1))
    part, S = (np.concatenate([v.numpy(), one], -1) for v in (c.project(x), c.to_camera(x)))
    np.savez(tmp_path/'a.npz', imgname=names, part=part, S=S)
    s = read_mmpose(tmp_path/'a.npz', mmpose_cameras())
    assert [(k.name, len(k), k.fps) for k in s.clips] == [('S1/Walk/54138969', 5, 10), ('S1/Walk/54138969#1', 3, 10)]
    assert torch.allclose(c.to_world(s.joints), x[np.argsort(numbers_)], atol=1e-5) and len({k.group for k in s.clips}) == 1
    np.save(tmp_path/'d.npy', part+[3, 4, 0])
    moved = read_mmpose(tmp_path/'a.npz', mmpose_cameras(), tmp_path/'d.npy') # a detector's rows are in the order of the file
    assert torch.allclose(moved.reprojection_error(), torch.tensor(5.), atol=1e-2)
    np.savez(tmp_path/'a.npz', imgname=names[:7]+[names[0]], part=part, S=S)
    with pytest.raises(KeypointError, match='imgname: expected each frame of a video once, found S1_Walk.54138969_000011'):
        read_mmpose(tmp_path/'a.npz')

def test_mmpose_3dhp(tmp_path):
    v, x = view3dhp(4)
    names = ['S4_Seq2_Cam0_001033.jpg', 'S8_Seq1_Cam8_002165.jpg', 'TS1_002001.jpg', 'TS6_001850.jpg']
    one = np.ones((4, 17, 1))
    np.savez(tmp_path/'a.npz', imgname=names, part=np.concatenate([v['data_2d'], one], -1), S=np.concatenate([x.numpy(), one], -1))
    lens = dict(c=column(PINHOLE.center), f=column(PINHOLE.focal), w=2048, h=2048)
    cams = {'S4_Seq2_Cam0': lens|dict(R=np.eye(3), T=np.ones((3, 1))), 'S8_Seq1_Cam8': lens|dict(R=np.eye(3), T=np.ones((3, 1))),
            'TS1': lens, 'TS6': lens|dict(w=1920, h=1080)}
    (tmp_path/'cameras_train.pkl').write_bytes(pickle.dumps(cams))
    s = read_lift_data(tmp_path)
    assert s.layout.name == 'mpi_inf_3dhp17' and s.reprojection_error().max() < 1e-3
    assert [c.name for c in s.clips] == ['S4/Seq2/0', 'S8/Seq1/8', 'TS1', 'TS6'] and s.clips[3].size == (1920, 1080)
    assert [c.size for c in read_mmpose(tmp_path/'a.npz').clips] == [(2048, 2048)]*3+[(1920, 1080)]

def test_mmpose_visibility(tmp_path):
    names, part, S = frames()
    part[0, 3, 2] = 0
    S[1, 4] = 0
    S[2, 4, 3] = 0 # outside of the picture, but known
    s = read_mmpose(mmpose_npz(tmp_path/'a.npz', part=part, S=S), mmpose_cameras())
    assert s.confidence[0, 3] == 0 and (s.points[0, 3] == 0).all() and s.labelled.tolist() == [True, False, True, True]

BAD_MM = [(dict(part=np.zeros((4, 16, 3))), r'part: expected numbers of shape \(4, 17, 3\)'), (dict(S=np.zeros((3, 17, 4))), 'S: expected'),
    (dict(S=frames()[2]*[1000, 1000, 1000, 1]), 'S: expected people of .3 to 5 m'), (dict(imgname=np.array([])), 'part'),
    (dict(part=frames()[1]*np.nan), r'part\[0, 0, 0\]: expected a finite number'),
    (dict(S=frames()[2].astype('S8')), 'S: expected numbers'),
    (dict(S=frames()[2][:, ::-1]), 'joints that the camera projects onto their points'),
    (dict(imgname=np.array(['S7_Walk.54138969_000001.jpg']*4)), 'each frame of a video once'),
    (dict(imgname=np.array([f'S7_Walk.54138969_{i}.jpg' for i in range(4)])), r"cameras: expected a camera \('S7', '54138969'\), found 8")]

@pytest.mark.parametrize('change, says', BAD_MM, ids=range(len(BAD_MM)))
def test_bad_mmpose(tmp_path, change, says):
    with pytest.raises(KeypointError, match=says) as e: read_mmpose(mmpose_npz(tmp_path/'a.npz', **change), mmpose_cameras())
    assert 'a.npz' in str(e.value)

@pytest.mark.parametrize('world', [True, False])
def test_coco_with_3d(tmp_path, world):
    names, part, S = frames(world=world, dirs=False)
    images = [dict(id=i+1, file_name=n, width=1000, height=1002) for i, n in enumerate(names)]
    flat = lambda v: v.ravel().tolist()
    people_ = [dict(id=i+1, image_id=i+1, keypoints=flat(part[i]), keypoints_3d=flat(S[i])) for i in range(4)]
    f = tmp_path/'h36m_coco.json'
    f.write_text(json.dumps(dict(categories=[], images=images, annotations=people_)))
    s = read_lift_data(f, cameras=mmpose_cameras())
    assert s.reprojection_error().max() < 1e-3 and len(s.clips) == 4 and s.absolute
    assert torch.allclose(s.joints[2], ROOM['S1', '58860488'].to_camera(people(1, 2))[0], atol=1e-5)
    with pytest.raises(KeypointError, match='to tell the room from the axes of a camera'): read_lift_data(f)
    people_[1]['keypoints_3d'] = [1, 2]
    f.write_text(json.dumps(dict(images=images, annotations=people_)))
    with pytest.raises(KeypointError, match=r'annotations\[1\].keypoints_3d: expected numbers of shape \(68,\)'): read_mmpose(f, ROOM)
    people_[1] = people_[0]|dict(image_id=9)
    f.write_text(json.dumps(dict(images=images, annotations=people_)))
    with pytest.raises(KeypointError, match='images, id 9: expected this key, found 1, 2, 3, 4'): read_mmpose(f, ROOM)

# ---- any file

def test_cut_files(tmp_path):
    a, b, _ = vp3d(tmp_path)
    m = mmpose_npz(tmp_path/'m.npz')
    for f in (a, b, m):
        data = f.read_bytes()
        for n in (0, 10, len(data)//2, len(data)-30):
            f.write_bytes(data[:n])
            with pytest.raises(KeypointError, match=f.name): read_lift_data(f)

def test_files_that_are_something_else(tmp_path):
    np.savez(tmp_path/'motion.npz', poses=np.zeros(3))
    (tmp_path/'a.txt').write_text('a')
    (tmp_path/'cameras.json').write_text(json.dumps(karfly()))
    for f, says in (('motion.npz', 'none of them'), ('a.txt', 'none of them'), ('cameras.json', 'cameras alone'),
                    ('no.npz', 'a file or folder')):
        with pytest.raises(KeypointError, match=says): read_lift_data(tmp_path/f)
    with pytest.raises(KeypointError, match='files .npz'): read_lift_data(Path(tmp_path/'x').mkdir() or tmp_path/'x')

def test_folders(tmp_path):
    a, b, x = vp3d(tmp_path)
    (tmp_path/'cameras.json').write_text(json.dumps(karfly()))
    s = read_lift_data(tmp_path)
    assert s.reprojection_error().max() < 3e-3 and len(s.clips) == 16
    assert [lift_format(f) for f in (a, b, tmp_path/'cameras.json')] == ['videopose3d', 'videopose2d', 'cameras']
    (tmp_path/'data_2d_h36m_cpn.npz').write_bytes(b.read_bytes())
    with pytest.raises(KeypointError, match='one file of a kind, found data_2d_h36m_cpn.npz, data_2d_h36m_gt.npz'): read_lift_data(tmp_path)

def test_a_folder_like_mmpose_keeps_it(tmp_path):
    "Poses, cameras, detections, the COCO-style twin in the room, and a body model's archive that is none of ours"
    mmpose_npz(tmp_path/'test_h36m_body3d.npz')
    mmpose_npz(tmp_path/'test_h36m.npz', part=np.zeros((4, 24, 3)), S=np.zeros((4, 24, 4)))
    (tmp_path/'cameras.pkl').write_bytes(pickle.dumps(mmpose_cameras(), 2))
    np.save(tmp_path/'test_h36m_2d_detection.npy', frames()[1])
    names, part, S = frames(world=True, dirs=False)
    images = [dict(id=i, file_name=n, width=1000, height=1002) for i, n in enumerate(names)]
    people_ = [dict(image_id=i, keypoints=part[i].ravel().tolist(), keypoints_3d=S[i].ravel().tolist()) for i in range(4)]
    (tmp_path/'h36m_coco.json').write_text(json.dumps(dict(images=images, annotations=people_)))
    with pytest.warns(UserWarning, match='1 of 3 files skipped; the first: .*test_h36m.npz'): s = read_lift_data(tmp_path)
    assert len(s) == 8 and s.absolute and s.reprojection_error().max() < 1e-3
    assert torch.allclose(s.joints[:4], s.joints[4:], atol=1e-5)

def test_one_bad_file_among_several(tmp_path):
    mmpose_npz(tmp_path/'a.npz')
    mmpose_npz(tmp_path/'b.npz', part=np.zeros((4, 24, 3)))
    with pytest.warns(UserWarning, match='1 of 2 files skipped; the first: .*b.npz: part'): s = read_lift_data(tmp_path)
    assert len(s) == 4 and len(s.skipped) == 1
    (tmp_path/'a.npz').unlink()
    with pytest.raises(KeypointError, match='a file that can be read, found .*b.npz: part'): read_lift_data(tmp_path)

def test_saved_sets_and_joined_folders(tmp_path):
    s = read_mmpose(mmpose_npz(tmp_path/'a.npz'), mmpose_cameras())
    s.save(tmp_path/'mine.npz')
    assert read_lift_data(tmp_path/'mine.npz').fingerprint == s.fingerprint and lift_format(tmp_path/'mine.npz') == 'posebook'
    assert len(read_lift_data(tmp_path)) == 8

def test_keypoints_of_a_detector_become_clips(tmp_path):
    x = np.concatenate([np.random.default_rng(0).uniform(100, 300, (25, 2)), np.ones((25, 1))], -1)
    for i in (0, 1, 2, 4, 5):
        people_ = [dict(pose_keypoints_2d=(x+[i, 0, 0]).ravel().tolist())]
        (tmp_path/f'v_{i:012d}_keypoints.json').write_text(json.dumps(dict(version=1.3, people=people_)))
    s = read_lift_data(tmp_path)
    assert s.layout.name == 'body25' and s.joints is None and len(s.clips) == 1 and len(s) >= 5
    assert np.allclose(s.points[2], x[:, :2]+[2, 0], atol=1e-3)

def test_people_in_pictures_stand_alone(tmp_path):
    x = np.concatenate([np.random.default_rng(0).uniform(100, 300, (17, 2)), np.full((17, 1), 2.)], -1)
    images = [dict(id=i, file_name=f'{i:06d}.jpg', width=400, height=300) for i in (7, 8)]
    people_ = [dict(image_id=i, keypoints=x.ravel().tolist()) for i in (7, 7, 8)]
    f = tmp_path/'person_keypoints.json'
    f.write_text(json.dumps(dict(images=images, annotations=people_)))
    s = read_lift_data(f)
    assert lift_format(f) == 'pictures' and [len(c) for c in s.clips] == [1, 1, 1] and s.clips[0].size == (400, 300)
    assert [c.group for c in s.clips] == ['000007.jpg', '000007.jpg', '000008.jpg'] and math.isnan(s.clips[0].fps)
    f.write_text(json.dumps(dict(images=[], annotations=[])))
    with pytest.raises(KeypointError, match='a person in some frame'): read_lift_data(f)

def test_tracks_keep_time_even():
    p = torch.rand(3, 17, 2)*100
    t = Track(p, torch.ones(3, 17), 'coco17', [4, 6, 10], person=2, size=(100, 90), fps=30, name='v')
    s = t.to_lift_set()
    assert len(s) == 4 and s.confidence.sum(1).tolist() == [17, 17, 0, 17] and s.clips[0].fps == 15 and s.clips[0].size == (100, 90)
    assert torch.equal(s.points[[0, 1, 3]], p)

def test_numbers_and_metres():
    for bad in (None, 'a', [[1], [1, 2]], [object()], {}, np.array([1+2j])):
        with pytest.raises(KeypointError, match='f: k: expected numbers'): numbers(bad, 'f', 'k', (-1,))
    assert numbers([True, False], 'f', 'k', (2,)).tolist() == [1, 0]
    assert len(in_metres(torch.zeros(0, 17, 3), 'f', 'k')) == 0
    x = people(5)
    x[0] = math.nan
    assert in_metres(x, 'f', 'k') is x
    for s in (1000, .001):
        with pytest.raises(KeypointError, match='another unit'): in_metres(s*x, 'f', 'k')

def test_no_warnings_when_nothing_is_wrong(tmp_path):
    a, b, _ = vp3d(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        read_videopose3d(a, b, ROOM)
        read_mmpose(mmpose_npz(tmp_path/'m.npz'), mmpose_cameras())
