"Conversions between layouts: tables by hand, compositions, confidences and real detections."
import json
import pytest, torch
from hypothesis import given, strategies as st

from posebook import layouts
from posebook.layouts import (ConversionError, convert_joints, derivable_joints, landmark, mean,
    near, register_conversion)
from posebook.skeleton import get_skeleton, list_skeletons, pose_to_joints, rest_joints

PAIRS = [(s, t) for s in list_skeletons() for t in list_skeletons() if derivable_joints(s, t)]

@pytest.mark.parametrize('source, target', PAIRS)
def test_affine(source, target):
    "Every joint moves along when the person moves, grows when they grow, and turns when they turn"
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, len(get_skeleton(source)), 3, generator=g, dtype=torch.double)
    R = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.double))[0]
    R = R*torch.linalg.det(R)
    y = convert_joints(x, source, target, missing='nan')
    moved = convert_joints(3*x @ R.T+1, source, target, missing='nan')
    assert torch.allclose(3*y @ R.T+1, moved, atol=1e-7, equal_nan=True)

@pytest.mark.parametrize('source, target', PAIRS)
def test_parts_are_sound(source, target):
    for name, p in derivable_joints(source, target).items():
        assert name in get_skeleton(target).joints and p.guesses in (0, 1)
        assert all(n in get_skeleton(source).joints for n in p.sources)
        assert sum(p.weights) == pytest.approx(1, abs=1e-9)

@pytest.mark.parametrize('name', list_skeletons())
def test_identity(name):
    x = torch.randn(2, len(get_skeleton(name)), 3)
    assert torch.equal(convert_joints(x, name, name), x)

@given(st.lists(st.floats(0, 1, width=32), min_size=25, max_size=25))
def test_confidence_is_the_least_part(c):
    _, sure = convert_joints(torch.zeros(25, 2), 'body25', 'h36m17', confidence=torch.tensor(c))
    by_hand = [c[8], *c[9:15], min(c[1], c[8]), c[1], c[0], min(c[15], c[16]), *c[5:8], *c[2:5]]
    assert sure.tolist() == pytest.approx(by_hand)

def test_unused_joints_may_be_missing():
    x = torch.zeros(17, 2)
    x[3:5] = float('nan')   # ears, which Human3.6M does not ask for
    assert convert_joints(x, 'coco17', 'h36m17').isfinite().all()
    x[5] = float('nan')
    lost = convert_joints(x, 'coco17', 'h36m17').isnan().any(-1)
    assert lost.sum() == 3   # shoulder, thorax, spine

def test_landmarks_follow_the_skull():
    "A nose is where the rotation of the head puts it, in any pose"
    from posebook.rotations import axis_angle_to_matrix
    from posebook.skeleton import forward_kinematics
    s = get_skeleton('smplx')
    pose = torch.randn(50, 55, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    P, G = forward_kinematics(axis_angle_to_matrix(pose))
    head = s.index('head')
    for joint, at in dict(nose=(0, .020, .105), left_ear=(.072, .040, -.010)).items():
        expected = P[:, head] + G[:, head] @ torch.tensor(at, dtype=torch.double)
        found = convert_joints(P, 'smplx', 'coco17')[:, get_skeleton('coco17').index(joint)]
        assert torch.allclose(found, expected, atol=1e-6)

def test_person_at_rest():
    "Feet below ankles, toes before heels, ears beside the nose, left on the left"
    b = get_skeleton('body25')
    at = dict(zip(b.joints, convert_joints(rest_joints(), 'smplx', 'body25')))
    for side, sign in (('left', 1), ('right', -1)):
        assert at[f'{side}_heel'][1] < at[f'{side}_ankle'][1]-.05
        assert at[f'{side}_big_toe'][2] > at[f'{side}_ankle'][2] > at[f'{side}_heel'][2]
        assert sign*at[f'{side}_small_toe'][0] > sign*at[f'{side}_big_toe'][0]
        assert sign*at[f'{side}_ear'][0] > .05 and at['nose'][2] > at[f'{side}_ear'][2]+.1

def test_smpl_hand_is_the_middle_knuckle():
    pose = torch.randn(3, 55, 3, generator=torch.Generator().manual_seed(0))
    s, t = get_skeleton('smplx'), get_skeleton('smpl')
    P = pose_to_joints(pose)
    hand = convert_joints(P, 'smplx', 'smpl')[:, t.index('left_hand')]
    assert torch.allclose(hand, P[:, s.index('left_middle1')])

@pytest.fixture
def registry(monkeypatch):
    "A registry that forgets what a test adds"
    copy = {s: dict(t) for s, t in layouts._CONVERSIONS.items()}
    monkeypatch.setattr(layouts, '_CONVERSIONS', copy)
    layouts._conversion.cache_clear()
    yield copy
    layouts._conversion.cache_clear()

def test_guesses_do_not_stack(registry):
    register_conversion('mpii16', 'smil', dict(b_h=near('head_top')), same=False)
    register_conversion('smil', 'deepmimic', dict(neck=near('b_h'), chest='b_h'), same=False)
    assert set(derivable_joints('mpii16', 'deepmimic')) == {'chest'}

def test_registration_is_checked(registry):
    for args, says in [(('coco17', 'h36m17', dict(tail='nose')), "no joint 'tail'"),
                       (('coco17', 'h36m17', dict(pelvis='hip')), "no joint 'hip'"),
                       (('coco18', 'h36m17'), 'unknown skeleton')]:
        with pytest.raises(ValueError, match=says): register_conversion(*args)

@pytest.mark.parametrize('call, says', [
    (lambda: convert_joints(torch.zeros(17, 3), 'coco17', 'body25'), 'left_big_toe, left_small'),
    (lambda: convert_joints(torch.zeros(31, 3), 'cmu_mb', 'h36m17'), 'any of its joints'),
    (lambda: convert_joints(torch.zeros(55, 2), 'smplx', 'coco17'), '2-dimensional')])
def test_what_cannot_be_derived(call, says):
    with pytest.raises(ConversionError, match=says): call()

@pytest.mark.parametrize('call, says', [
    (lambda: convert_joints(torch.zeros(18, 2), 'coco17', 'h36m17'), r'\(\.\.\., 17, D\)'),
    (lambda: convert_joints(torch.zeros(17), 'coco17', 'h36m17'), r'found \(17,\)'),
    (lambda: convert_joints(torch.zeros(17, 2), 'coco17', 'body25', torch.ones(17, 1)), 'confid'),
    (lambda: convert_joints(torch.zeros(17, 2), 'coco17', 'body25', missing='0'), "found '0'")])
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says): call()

def test_landmark_needs_rest_offsets():
    with pytest.raises(ValueError, match='no rest offsets'):
        landmark(('nose', 'left_eye', 'right_eye'), (0., 0., .1), 'coco17')
    assert mean('a').weights == (1.,) and near('a', 'b').weights == (.5, .5)

def test_real_detections(real_data):
    "OpenPose files become Human3.6M people: hips below the thorax, unseen stays unseen"
    seen = 0
    for f in sorted((real_data/'keypoints/openpose_body25').glob('*.json')):
        for person in json.loads(f.read_text())['people']:
            x = torch.tensor(person['pose_keypoints_2d']).view(25, 3)
            y, c = convert_joints(x[:, :2], 'body25', 'h36m17', confidence=x[:, 2])
            assert (c[7] == min(x[1, 2], x[8, 2])) and y.shape == (17, 2)
            if c[[0, 8]].min() > .5:
                seen += 1
                assert y[0, 1] > y[7, 1] > y[8, 1]
    assert seen > 50
