"Lifting from the shell: every format of keypoints in, every format out, tables of bad input."
import json, warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from posebook.keypoints import KeypointError, Keypoints, read_keypoints, write_openpose
from posebook.lift_commands import (COMMANDS, choose_device, find_devices, lift, lift_tracks, open_tracks, person_names,
                                    plot_lift, write_people)
from posebook.lifting import Lifter
from posebook.motion import read_motion
from posebook.skeleton import get_skeleton

HERE = Path(__file__).resolve()
DATA = next((p for f in HERE.parents for p in (f/'shared/data', f.parent/'shared/data') if p.is_dir()), None)
real = pytest.mark.skipif(DATA is None, reason='no real keypoints at hand')
COCO, BODY = get_skeleton('coco17'), get_skeleton('body25')

@pytest.fixture(scope='session')
def model(tmp_path_factory):
    "A lifter that has learned nothing"
    path = tmp_path_factory.mktemp('lifter')/'fresh'
    Lifter(size='nano', frames=3).save_pretrained(path)
    return str(path)

def person(T=30, x=200., layout=COCO, seed=0):
    "Somebody of 200 pixels, (T, K, 2)"
    g = torch.Generator().manual_seed(seed)
    at = dict(nose=(0, 0), eye=(5, -6), ear=(9, -2), neck=(0, 35), shoulder=(22, 35), elbow=(30, 75), wrist=(32, 110), hip=(14, 110),
              knee=(16, 155), ankle=(17, 200), toe=(22, 207), heel=(14, 206))
    rows = [(-1 if 'right' in n else 1, *at[n.split('_')[-1]]) for n in layout.joints]
    still = torch.tensor([[s*a if n != 'mid_hip' else 0, b] for (s, a, b), n in zip(rows, layout.joints)], dtype=torch.float32)
    swing = 15*(torch.arange(T)/4).sin()[:, None]*torch.tensor([s*(b > 60) for s, a, b in rows])
    p = still+torch.tensor([x, 100.])+torch.stack([3*torch.arange(T)[:, None]+swing, torch.zeros(T, len(layout))], -1)
    return p+torch.randn(p.shape, generator=g)*.7

def results(p, name='{}.jpg', **more):
    "AlphaPose's list"
    flat = lambda v: torch.cat([v, torch.full((len(v), 1), .9)], -1).reshape(-1).tolist()
    return [dict(image_id=name.format(i), category_id=1, keypoints=flat(v), score=2.5)|more for i, v in enumerate(p)]

def put(path, data):
    path.write_text(json.dumps(data))
    return str(path)

def openpose(folder, people, layout='body25', name='v_{:012d}'):
    x, names = torch.cat(list(people)), [name.format(i) for i in range(len(people[0]))]*len(people)
    k = Keypoints(x, torch.full(x.shape[:2], .9), layout, names)
    write_openpose(k, folder)
    return str(folder)

# ---- formats in

def test_every_detector(tmp_path, model):
    p, q = person(), person(layout=BODY)
    instance = lambda v: dict(keypoints=v.tolist(), keypoint_scores=[.9]*17)
    mmpose = dict(instance_info=[dict(frame_id=i, instances=[instance(v)]) for i, v in enumerate(p)])
    labelled = lambda v: torch.cat([v, torch.full((17, 1), 2.)], -1).reshape(-1).tolist()
    coco = dict(images=[dict(id=i, file_name=f'{i}.jpg', width=640, height=480) for i in range(30)],
                annotations=[dict(image_id=i, keypoints=labelled(v)) for i, v in enumerate(p)])
    inputs = [openpose(tmp_path/'op', [q])]
    inputs += [put(tmp_path/f'{n}.json', d) for n, d in dict(alpha=results(p), mmpose=mmpose, coco=coco).items()]
    for i, path in enumerate(inputs):
        lift([path], model, str(tmp_path/f'{i}.npz'))
        with np.load(tmp_path/f'{i}.npz') as f:
            assert f['joints'].shape == (30, 17, 3) and f['frame'].tolist() == [*range(30)] and f['people'].tolist() == ['person1']
            assert np.isfinite(f['joints']).all() and np.abs(f['joints'][:, 0]).max() < 1e-6 # relative to the pelvis

def test_videopose3d(tmp_path, model):
    h36m = person(layout=COCO)[None].numpy()
    np.savez(tmp_path/'data_2d_custom.npz', positions_2d=np.array(dict(me=dict(custom=[h36m[0]])), dtype=object),
             metadata=np.array(dict(layout_name='coco', num_joints=17, keypoints_symmetry=[[*range(1, 17, 2)], [*range(2, 17, 2)]],
                                    video_metadata=dict(me=dict(w=640, h=480, fps=25))), dtype=object))
    lift([str(tmp_path/'data_2d_custom.npz')], model, str(tmp_path/'out.json'))
    out = json.loads((tmp_path/'out.json').read_text())
    assert len(out['instance_info']) == 30 and out['meta_info']['dataset_name'] == 'h36m17'

def test_several_inputs(tmp_path, model):
    a, b = openpose(tmp_path/'a', [person(layout=BODY)], name='a_{}'), openpose(tmp_path/'b', [person(20, layout=BODY)], name='b_{}')
    lift([a, b], model, str(tmp_path/'out.json'))
    out = json.loads((tmp_path/'out.json').read_text())
    assert out['meta_info']['people'] == ['a-person1', 'b-person1'] and [e['recording'] for e in out['instance_info']] == ['a']*30+['b']*20

# ---- people

def test_several_people(tmp_path, model, capsys):
    path = openpose(tmp_path/'op', [person(layout=BODY), person(x=450., layout=BODY, seed=1)])
    lift([path], model, str(tmp_path/'out.json'))
    said = capsys.readouterr().out
    assert 'person1: 30 frames' in said and 'person2: 30 frames' in said and 'one set of bones' in said
    out = json.loads((tmp_path/'out.json').read_text())
    assert [[i['track_id'] for i in e['instances']] for e in out['instance_info']] == [[1, 2]]*30
    lift([path], model, str(tmp_path/'one.json'), person=2, raw=True)
    assert 'one set of bones' not in capsys.readouterr().out
    assert [i['person'] for e in json.loads((tmp_path/'one.json').read_text())['instance_info'] for i in e['instances']] == ['person2']*30
    lift([path], model, str(tmp_path/'out.bvh'))
    assert {f.name for f in tmp_path.glob('*.bvh')} == {'out-person1.bvh', 'out-person2.bvh'}

def test_moments_are_left_out(tmp_path, capsys):
    p = person(120, layout=BODY)
    people = results(p[:, :17], '{}')+results(person(3, 900.), '{}') # somebody else for three frames
    tracks = open_tracks([put(tmp_path/'a.json', people)])
    assert [len(t) for t in tracks] == [120] and 'left out 1 people who were seen in fewer than 10 frames' in capsys.readouterr().out
    assert len(open_tracks([put(tmp_path/'a.json', people)], shortest=1)) == 2

def test_photographs(tmp_path, model):
    lift([put(tmp_path/'a.json', results(person(2), 'photo{}x.jpg'))], model, str(tmp_path/'out.npz'))
    with np.load(tmp_path/'out.npz') as f: assert len(f['joints']) == 2

def test_one_frame(tmp_path, model, capsys):
    lift([openpose(tmp_path/'op', [person(1, layout=BODY)])], model, str(tmp_path/'out.png'), visualize=True)
    assert 'person1: 1 frames; bones vary by 0.0 %' in capsys.readouterr().out and (tmp_path/'out.html').exists()

# ---- bones, smoothing, flips

def test_one_set_of_bones(tmp_path, model):
    lifter = Lifter.from_pretrained(model)
    tracks = open_tracks([openpose(tmp_path/'op', [person(layout=BODY)])])
    steady, raw = lift_tracks(lifter, tracks)[0], lift_tracks(lifter, tracks, raw=True)[0]
    assert steady.variation[0] == raw.variation[0] == raw.variation[1] > .005 and steady.variation[1] < 1e-5
    flip = lift_tracks(lifter, tracks, raw=True, flip=True)[0]
    assert not torch.allclose(flip.lifted.joints, raw.lifted.joints)

# ---- formats out

@pytest.mark.parametrize('name, more', [('o.bvh', {}), ('o.npz', dict(amass=True)), ('o.smpl', {})])
def test_motion(tmp_path, model, name, more):
    if name.endswith('.smpl'): pytest.importorskip('smplcodec')
    lift([openpose(tmp_path/'op', [person(layout=BODY)])], model, str(tmp_path/name), fps=25., **more)
    m = read_motion(tmp_path/name)
    assert len(m) == 30 and m.fps == 25 and m.poses.isfinite().all()

@pytest.mark.parametrize('name', ['o.html', 'o.gif', 'o.png', 'o.svg', 'deep/down/o.json'])
def test_pictures_and_folders(tmp_path, model, name):
    lift([openpose(tmp_path/'op', [person(8, layout=BODY)])], model, str(tmp_path/name))
    assert (tmp_path/name).stat().st_size > 1000 and not list((tmp_path/name).parent.glob('.*part*'))

def test_json_is_what_mmpose_writes(tmp_path, model):
    lift([openpose(tmp_path/'op', [person(12, layout=BODY)])], model, str(tmp_path/'o.json'))
    out = json.loads((tmp_path/'o.json').read_text())
    one = out['instance_info'][3]['instances'][0]
    assert out['instance_info'][3]['frame_id'] == 3 and np.shape(one['keypoints']) == (17, 3) and len(one['keypoint_scores']) == 17
    assert np.shape(one['bbox']) == (1, 4) and out['meta_info']['keypoint_id2name']['0'] == 'pelvis'
    with pytest.raises(KeypointError, match='lifted already'): read_keypoints(tmp_path/'o.json')

# ---- bad input

def nan(p): p = p.clone(); p[4] = float('nan'); return p

@pytest.mark.parametrize('make, says', [
    (lambda d: str(d/'nothing'), 'a file or a folder of keypoints, found nothing'),
    (lambda d: ((d/'empty').mkdir(), str(d/'empty'))[1], r'files \*.json, found none'),
    (lambda d: put(d/'a.json', {}), 'annotations: expected a list'),
    (lambda d: put(d/'a.json', []), 'somebody, found nobody'),
    (lambda d: put(d/'a.json', results(person(5)[:, :16])), 'found 48 numbers'),
    (lambda d: put(d/'a.json', results(person(5)*float('nan'))), 'finite numbers'),
    (lambda d: openpose(d/'op', [person(4, layout=BODY)], name='f{:d}')+'/f1_keypoints.jsn', 'nothing')])
def test_bad_input(tmp_path, model, make, says):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with pytest.raises(ValueError, match=says): lift([make(tmp_path)], model, str(tmp_path/'out.json'))
    assert not (tmp_path/'out.json').exists()

def test_zero_confidence(tmp_path, model):
    p = results(person(5))
    for r in p: r['keypoints'][2::3] = [0.]*17
    with pytest.warns(UserWarning, match='5 people without a joint'), pytest.raises(KeypointError, match='somebody, found nobody'):
        lift([put(tmp_path/'a.json', p)], model, str(tmp_path/'out.json'))

def test_nan_among_good_frames(tmp_path, model, capsys):
    with pytest.warns(UserWarning, match='1 of 12 people skipped'):
        lift([put(tmp_path/'a.json', results(nan(person(12))))], model, str(tmp_path/'out.json'))
    said = capsys.readouterr().out
    assert 'skipped' in said and '12 frames, 1 made' in said

def test_missing_joints_and_frames_out_of_order(tmp_path, model, capsys):
    p = results(person(30), '{}')
    for r in p[10:13]: r['keypoints'][3*9:3*9+3] = [0., 0., 0.]
    for r in p: r['keypoints'][3*13:3*13+3] = [0., 0., 0.] # a knee that is never seen
    lift([put(tmp_path/'a.json', p[::-1])], model, str(tmp_path/'out.npz'))
    assert '3 joints filled in' in capsys.readouterr().out
    with np.load(tmp_path/'out.npz') as f: assert f['frame'].tolist() == [*range(30)] and np.isfinite(f['joints']).all()

@pytest.mark.parametrize('more, says', [
    (dict(person=9), r'--person: expected one of \[1\], found 9'), (dict(size=[640]), '--size'), (dict(size=[0, 5]), '--size'),
    (dict(batch_size=0), '--batch-size'), (dict(output='o.xls'), 'kind of file'), (dict(output='o'), 'no suffix'),
    (dict(device='cuda:77'), 'posebook devices'), (dict(device='toaster'), 'toaster'), (dict(shortest=99), 'a track of 99 frames'),
    (dict(layout='body25'), '--layout'), (dict(model='nobody'), 'nobody')])
def test_bad_options(tmp_path, model, more, says):
    options = dict(model=model, output=str(tmp_path/'o.json'))|more
    if 'output' in more: options['output'] = str(tmp_path/more['output'])
    with pytest.raises(ValueError, match=says): lift([openpose(tmp_path/'op', [person(6, layout=BODY)])], **options)

# ---- devices

def test_devices(capsys):
    COMMANDS['devices']()
    said = capsys.readouterr().out
    assert 'CPU' in said and 'CUDA' in said and 'MPS' in said and 'extra  fast: numba' in said
    COMMANDS['devices'](json=True)
    assert json.loads(capsys.readouterr().out) == find_devices()
    assert choose_device().type in ('cpu', 'cuda')

def test_from_the_shell(tmp_path, model, capsys):
    from posebook.cli import main
    main(['devices', '--json'])
    assert json.loads(capsys.readouterr().out)['cpu']['cores'] >= 1
    path = openpose(tmp_path/'op', [person(5, layout=BODY)])
    main(['lift', path, '--model', model, '-o', str(tmp_path/'o.json'), '--size', '640', '480', '--flip', '--fps', '25'])
    assert json.loads((tmp_path/'o.json').read_text())['meta_info']['fps'] == 25
    assert main(['lift', str(tmp_path/'nothing'), '--model', model]) == 1
    assert 'posebook: error:' in capsys.readouterr().err

# ---- real keypoints

@real
def test_real_openpose(tmp_path, model):
    lifter = Lifter.from_pretrained(model)
    people = lift_tracks(lifter, open_tracks([str(DATA/'keypoints/openpose_body25')]))
    assert [len(p) for p in people] == [81] and person_names([people[0].track]) == ['person1'] and people[0].variation[1] < .05
    assert len(plot_lift(people[0]).axes) == 24
    [file] = write_people(people, tmp_path/'o.html')
    assert file.stat().st_size > 10_000
