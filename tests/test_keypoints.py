"Readers of OpenPose and COCO: bad files by file and key, versions, hands and face, real files where they are at hand."
import json, warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from posebook.keypoints import (Keypoints, KeypointError, detector_joints, plot_keypoints, read_alphapose, read_coco, read_keypoints,
                                read_mmpose_predictions, read_openpose, write_openpose)
from posebook.skeleton import get_skeleton, pose_to_joints

HERE = Path(__file__).resolve()
DATA = next((p for f in HERE.parents for p in (f/'shared/data', f.parent/'shared/data') if p.is_dir()), None)
real = pytest.mark.skipif(DATA is None, reason='no real keypoints at hand')

def triples(n, seed=0):
    "x, y in a picture of 640 x 480 and a confidence"
    x = np.random.default_rng(seed).uniform(size=(n, 3))*[640, 480, 1]
    return x.round(3)

def frame(folder, people, name='a_000000000000_keypoints.json', version=1.3):
    path = Path(folder)/name
    path.write_text(json.dumps(dict(version=version, people=people)))
    return path

# ---- OpenPose

@pytest.mark.parametrize('version', [1.2, 1.3])
@pytest.mark.parametrize('n, layout', [(25, 'body25'), (18, 'openpose18')])
def test_openpose(tmp_path, n, layout, version):
    a, b = triples(n), triples(n, 1)
    people = [dict(person_id=[-1], pose_keypoints_2d=x.ravel().tolist(), face_keypoints_2d=[], hand_left_keypoints_2d=[],
                   hand_right_keypoints_2d=[], pose_keypoints_3d=[]) for x in (a, b)]
    k = read_keypoints(frame(tmp_path, people, version=version))
    assert (len(k), k.layout.name, k.images) == (2, layout, ('a_000000000000',)*2)
    assert np.allclose(k.points[1], b[:, :2], atol=1e-3) and np.allclose(k.confidence[0], a[:, 2], atol=1e-6)

def test_openpose18_in_other_layouts(tmp_path):
    x = triples(18)
    k = read_openpose(frame(tmp_path, [dict(pose_keypoints_2d=x.ravel().tolist())]))
    body = k.to('body25')
    mid, s = get_skeleton('body25').index('mid_hip'), get_skeleton('openpose18')
    hips = x[[s.index('left_hip'), s.index('right_hip')]]
    assert np.allclose(body.points[0, mid], hips[:, :2].mean(0), atol=1e-2)
    assert np.isclose(body.confidence[0, mid], hips[:, 2].min()) # as sure as the less sure hip
    assert (body.confidence[0, -6:] == 0).all() # no feet
    for n in ('nose', 'left_ear', 'right_wrist', 'left_knee'):
        assert np.allclose(k.to('coco17').points[0, get_skeleton('coco17').index(n)], x[s.index(n), :2], atol=1e-3)

def test_whole_body(tmp_path):
    body, left, right, face = triples(25), triples(21, 1), triples(21, 2), triples(70, 3)
    p = dict(pose_keypoints_2d=body.ravel().tolist(), hand_left_keypoints_2d=left.ravel().tolist(),
             hand_right_keypoints_2d=right.ravel().tolist(), face_keypoints_2d=face.ravel().tolist())
    k = read_openpose(frame(tmp_path, [p]), whole=True)
    s, t = get_skeleton('coco_wholebody133'), get_skeleton('body25')
    at = lambda n: k.points[0, s.index(n)].numpy()
    for n in ('nose', 'left_wrist', 'right_big_toe', 'left_heel'): assert np.allclose(at(n), body[t.index(n), :2], atol=1e-3)
    assert np.allclose(at('left_hand'), left[0, :2], atol=1e-3) and np.allclose(at('right_pinky4'), right[20, :2], atol=1e-3)
    assert np.allclose(at('left_index1'), left[5, :2], atol=1e-3) # thumb 1-4, then the index
    assert np.allclose(k.points[0, 23:91], face[:68, :2], atol=1e-3)
    p['hand_left_keypoints_2d'] = []
    assert (read_openpose(frame(tmp_path, [p]), whole=True).confidence[0, 91:112] == 0).all()

def test_frames_in_order_and_mixed_layouts(tmp_path):
    for i, n in ((10, 25), (2, 25), (1, 18)):
        frame(tmp_path, [dict(pose_keypoints_2d=triples(n, i).ravel().tolist())], f'v_{i:012d}_keypoints.json')
    frame(tmp_path, [], 'v_000000000003_keypoints.json') # nobody there
    k = read_openpose(tmp_path)
    assert [int(n[-2:]) for n in k.images] == [1, 2, 10] and k.skipped == ()

def test_confidence_above_one_is_one(tmp_path):
    x = triples(25)
    x[0, 2] = 1.04
    assert read_openpose(frame(tmp_path, [dict(pose_keypoints_2d=x.ravel().tolist())])).confidence[0, 0] == 1

@pytest.mark.parametrize('text, says', [
    ('{', 'JSON'), ('[]', 'keypoints'), ('{"people": 3}', 'people: expected a list'),
    ('{"people": [3]}', r'people\[0\]: expected an object'),
    ('{"people": [{"pose_keypoints": []}]}', r'people\[0\].pose_keypoints_2d: expected a list of numbers, found keys pose_keypoints'),
    ('{"people": [{"pose_keypoints_2d": [1, 2, 3]}]}', 'found 3 numbers'),
    ('{"people": [{"pose_keypoints_2d": "abc"}]}', 'a list of numbers, found str'),
    ('{"people": [{"pose_keypoints_2d": ['+', '.join(['NaN']*75)+']}]}', 'finite')])
def test_bad_openpose(tmp_path, text, says):
    f = tmp_path/'bad_keypoints.json'
    f.write_text(text)
    if text == '[]':
        assert len(read_keypoints(f)) == 0 # an empty list of COCO results
        return
    with pytest.raises(KeypointError, match=says) as e: read_openpose(f)
    assert 'bad_keypoints.json' in str(e.value)
    frame(tmp_path, [dict(pose_keypoints_2d=triples(25).ravel().tolist())])
    with pytest.warns(UserWarning, match='1 of 2 files skipped'): k = read_openpose(tmp_path)
    assert len(k) == 1 and len(k.skipped) == 1

def test_nothing_there(tmp_path):
    with pytest.raises(KeypointError, match='files'): read_openpose(tmp_path)
    with pytest.raises(KeypointError, match='a file'): read_keypoints(tmp_path/'no.json')

def test_writer_round_trip(tmp_path):
    x = torch.tensor(np.stack([triples(25), triples(25, 1)])).float()
    k = Keypoints(x[..., :2], x[..., 2], 'body25', ('p', 'p'))
    write_openpose(k, tmp_path/'out')
    again = read_openpose(tmp_path/'out')
    assert torch.allclose(again.points, k.points, atol=1e-3) and again.images == ('p', 'p')
    with pytest.raises(KeypointError, match='use `to`'): write_openpose(k.to('coco17'), tmp_path/'out')

# ---- COCO

def coco(folder, data):
    path = Path(folder)/'coco.json'
    path.write_text(json.dumps(data))
    return path

def test_coco_whole_body(tmp_path):
    v = triples(133)
    v[:17, 2] = 2
    flat = lambda a, b: v[a:b].ravel().tolist()
    a = dict(image_id=1, keypoints=flat(0, 17), foot_kpts=flat(17, 23), face_kpts=flat(23, 91), lefthand_kpts=flat(91, 112),
             righthand_kpts=flat(112, 133))
    k = read_coco(coco(tmp_path, dict(images=[], annotations=[a])))
    assert k.layout.name == 'coco_wholebody133' and np.allclose(k.points[0], v[:, :2], atol=1e-3) and k.sizes is None
    assert np.allclose(k.confidence[0, 17:], v[17:, 2], atol=1e-6)

@pytest.mark.parametrize('n, layout', [(17, 'coco17'), (26, 'halpe26'), (133, 'coco_wholebody133')])
def test_coco_results(tmp_path, n, layout):
    v = triples(n)
    k = read_keypoints(coco(tmp_path, [dict(image_id='x.jpg', category_id=1, keypoints=v.ravel().tolist(), score=.5)]))
    assert k.layout.name == layout and k.images == ('x.jpg',) and np.allclose(k.confidence[0], v[:, 2], atol=1e-6)

def test_results_take_the_table_of_another_file(tmp_path):
    table = tmp_path/'images.json'
    table.write_text(json.dumps(dict(images=[dict(id=5, file_name='five.png', width=30, height=20)])))
    k = read_coco(coco(tmp_path, [dict(image_id=5, keypoints=triples(17).ravel().tolist())]), images=table)
    assert k.images == ('five.png',) and k.sizes.tolist() == [[30, 20]]

@pytest.mark.parametrize('data, says', [
    ({}, 'annotations: expected a list'), (dict(annotations=[3]), r'annotations\[0\]: expected an object'),
    (dict(annotations=[dict(keypoints=[0]*51)]), r'annotations\[0\].image_id'),
    (dict(annotations=[dict(image_id=1, keypoints=[0, 0, 3]*17)]), 'visibilities'),
    (dict(annotations=[dict(image_id=1, keypoints=[1]*7)]), 'found 7 numbers'),
    ([dict(image_id=1)], r'\[0\].keypoints'), (dict(images=[3], annotations=[]), 'images: expected a list of objects')])
def test_bad_coco(tmp_path, data, says):
    with pytest.raises(KeypointError, match=says): read_coco(coco(tmp_path, data))

# ---- real files

@real
def test_real_openpose():
    k = read_openpose(DATA/'keypoints/openpose_body25')
    assert len(k) == 81 and k.layout.name == 'body25' and k.skipped == () and k.confidence.mean() > .7

@real
def test_real_coco():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        k = read_keypoints(DATA/'keypoints/coco_keypoints.json')
    data = json.loads((DATA/'keypoints/coco_keypoints.json').read_text())
    assert len(k) == sum(a['num_keypoints'] > 0 for a in data['annotations']) and len(set(k.images)) == 4
    assert ((k.confidence > 0).sum(1) == torch.tensor([a['num_keypoints'] for a in data['annotations'] if a['num_keypoints']])).all()
    inside = (k.points <= k.sizes[:, None]).all(-1)
    assert (inside | (k.confidence == 0)).all()

# ---- bodies and figures

def test_detector_joints_have_gradients():
    pose = (torch.randn(2, 55, 3, generator=torch.Generator().manual_seed(0))*.3).double().requires_grad_()
    out, known = detector_joints(pose_to_joints(pose), 'body25')
    out.square().sum().backward()
    assert pose.grad.isfinite().all() and known.all() and out.shape == (2, 25, 3)

def test_figure_has_a_panel_a_picture():
    x = torch.tensor(triples(17)).float()[None].repeat(3, 1, 1)
    k = Keypoints(x[..., :2], x[..., 2], 'coco17', ('a', 'b', 'a'), torch.tensor([[640, 480]]*3))
    fig = plot_keypoints(k, images=dict(a=np.zeros((48, 64, 3), np.uint8)))
    assert len(fig.axes) == 2 and len(fig.axes[0].images) == 1 and not fig.axes[1].images

# ---- AlphaPose and MMPose

def alpha(n=17, **more):
    return dict(image_id='7.jpg', category_id=1, keypoints=triples(n).ravel().tolist(), score=2.9)|more

@pytest.mark.parametrize('n, layout, joints', [(17, 'coco17', 17), (26, 'halpe26', 26), (136, 'halpe26', 26)])
def test_alphapose(tmp_path, n, layout, joints):
    people = [alpha(n, image_id=f'{i}.jpg', idx=i) for i in (9, 10, 8)]
    k = read_keypoints(coco(tmp_path, people))
    assert (k.layout.name, k.images, k.ids.tolist()) == (layout, ('9.jpg', '10.jpg', '8.jpg'), [9, 10, 8])
    assert k.points.shape == (3, joints, 2) and np.allclose(k.points[0], triples(n)[:joints, :2], atol=1e-3)

@pytest.mark.parametrize('idx, want', [(3, [3]), (3., [3]), ([3], [3]), ([[3.]], [3]), (None, None), ([], None), ('x', None)])
def test_alphapose_ids(tmp_path, idx, want):
    ids = read_alphapose(coco(tmp_path, [alpha(idx=idx)])).ids
    assert (None if ids is None else ids.tolist()) == want

@pytest.mark.parametrize('entry', [dict(people=[dict(pose_keypoints_2d=[2.]*54)]), dict(bodies=[dict(joints=[2.]*54)])])
def test_alphapose_tables(tmp_path, entry):
    with pytest.warns(UserWarning, match='18 confidences above 1, up to 2, count as 1'):
        k = read_keypoints(coco(tmp_path, {'a.jpg': entry}))
    assert (k.layout.name, k.images, k.confidence.max().item()) == ('openpose18', ('a.jpg',), 1)

@pytest.mark.parametrize('data, says', [
    ([3], 'an object, found int'), ([dict(keypoints=[1.]*51)], 'image_id'), ([alpha(18)], 'found 54 numbers'),
    ([alpha(keypoints=[float('nan')]*51)], 'finite'), ({'a.jpg': 3}, 'a.jpg: expected people or bodies'), (3, 'a list of people')])
def test_bad_alphapose(tmp_path, data, says):
    with pytest.raises(KeypointError, match=says): read_alphapose(coco(tmp_path, data))

def test_bad_people_among_good_ones(tmp_path):
    with pytest.warns(UserWarning, match='2 of 3 people skipped'):
        k = read_keypoints(coco(tmp_path, [alpha(), alpha(keypoints=[float('inf')]*51), alpha(16)]))
    assert len(k) == 1 and len(k.skipped) == 2

def instance(n=17, dims=2, **more):
    x = triples(n)
    keypoints = (x[:, :2] if dims == 2 else x).tolist()
    return dict(keypoints=keypoints, keypoint_scores=x[:, 2].tolist(), bbox=[[0, 0, 9, 9]], bbox_score=.9)|more

@pytest.mark.parametrize('n, layout', [(17, 'coco17'), (26, 'halpe26'), (133, 'coco_wholebody133')])
def test_mmpose_video(tmp_path, n, layout):
    info = [dict(frame_id=i, instances=[instance(n, track_id=4), instance(n, track_id=2)][:i]) for i in (10, 2, 0, 1)]
    k = read_keypoints(coco(tmp_path, dict(meta_info={}, instance_info=info)))
    assert (k.layout.name, k.frames.tolist(), k.ids.tolist()) == (layout, [1, 2, 2, 10, 10], [4, 4, 2, 4, 2])
    assert np.allclose(k.points[0], triples(n)[:, :2], atol=1e-3) and np.allclose(k.confidence[0], triples(n)[:, 2], atol=1e-6)
    assert read_keypoints(coco(tmp_path, info)).frames.tolist() == k.frames.tolist() # the list alone

def test_mmpose_layouts_and_shapes(tmp_path):
    meta = dict(keypoint_id2name={'0': 'root', '8': 'thorax'})
    k = read_keypoints(coco(tmp_path, dict(meta_info=meta, instance_info=[instance()])))
    assert k.layout.name == 'h36m17' and k.frames is None
    nested = instance(keypoints=[triples(17)[:, :2].tolist()], keypoint_scores=[triples(17)[:, 2].tolist()])
    assert np.allclose(read_keypoints(coco(tmp_path, [nested])).points, k.points)
    deep = read_keypoints(coco(tmp_path, [instance(dims=3)])) # pixels and a depth: the depth is left out
    assert np.allclose(deep.points, k.points)
    assert read_mmpose_predictions(coco(tmp_path, [instance(25)]), layout='body25').layout.name == 'body25'

def test_mmpose_folder_of_pictures(tmp_path):
    for i in (10, 9): (tmp_path/f'p{i}.json').write_text(json.dumps([instance()]*2))
    k = read_keypoints(tmp_path)
    assert sorted(set(k.images)) == ['p10', 'p9'] and len(k) == 4
    (tmp_path/'p10.json').write_text(json.dumps([dict(frame_id=0, instances=[instance()])]))
    with pytest.raises(KeypointError, match='read one file'): read_keypoints(tmp_path)

@pytest.mark.parametrize('info, says', [
    (3, 'instance_info: expected a list'), ([dict(frame_id=0, instances=3), dict(instances=[])], r'instance_info\[0\].instances'),
    ([dict(frame_id=5, instances=[])]*2, 'each frame once, found 5 twice'), ([dict(instances=[3])], r'instances\[0\].keypoints'),
    ([dict(instances=[instance(16)])], r'found \(16, 2\)'), ([dict(instances=[instance(keypoint_scores=[1.])])], r'and \(1,\)'),
    ([dict(instances=[instance(keypoints='no')])], 'something else'),
    ([dict(instances=[instance(keypoints=[[float('nan'), 0]]*17)])], 'finite numbers'),
    ([dict(instances=[instance(keypoints=[[.1, .2, .3]]*17)])], 'three numbers in metres; this was lifted already')])
def test_bad_mmpose(tmp_path, info, says):
    with pytest.raises(KeypointError, match=says): read_mmpose_predictions(coco(tmp_path, dict(instance_info=info)))

def test_who_and_when_are_kept(tmp_path):
    x = torch.tensor(triples(25)).float().repeat(3, 1, 1)
    k = Keypoints(x[..., :2], x[..., 2], 'body25', ('a', 'b', 'b'), ids=torch.tensor([4, 5, -1]), frames=torch.tensor([0, 1, 1]))
    assert (k[1:].ids.tolist(), k[1:].frames.tolist(), k.to('coco17')[1].ids.tolist()) == ([5, -1], [1, 1], [5])
    write_openpose(k, tmp_path)
    assert read_openpose(tmp_path).ids.tolist() == [4, 5, -1]
    with pytest.raises(KeypointError, match='ids'): Keypoints(x[..., :2], x[..., 2], 'body25', ('a', 'b', 'c'), ids=torch.tensor([1]))

def test_hidden_files_and_frames_given_twice(tmp_path):
    people = [dict(pose_keypoints_2d=triples(25).ravel().tolist())]
    frame(tmp_path, people, 'a_1_keypoints.json')
    frame(tmp_path, people, '._a_1_keypoints.json')
    (tmp_path/'.DS_Store.json').write_bytes(b'\x00\xff')
    assert len(read_keypoints(tmp_path)) == 1
    frame(tmp_path, people, 'a_1.json')
    with pytest.raises(KeypointError, match='one file a frame, found a_1.json and a_1_keypoints.json'): read_keypoints(tmp_path)

def test_folder_of_tables_is_refused(tmp_path):
    for n in 'ab': (tmp_path/f'{n}.json').write_text(json.dumps([alpha()]))
    with pytest.raises(KeypointError, match='a folder of frames, found 2 files such as a.json; name one file'): read_keypoints(tmp_path)
