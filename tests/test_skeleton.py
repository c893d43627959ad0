"Skeletons: trees, mirror images and forward kinematics against independent loops, on every layout."
import numpy as np, pytest, torch
from dataclasses import replace

from hypothesis import given, settings, strategies as st

from posebook import kinematics
from posebook.rotations import axis_angle_to_matrix, random_rotations
from posebook.skeleton import (Skeleton, convert_pose, forward_kinematics, get_skeleton,
    global_to_local, joint_subset, list_skeletons, local_to_global, mirror_joints, mirror_pose,
    parse_skeleton, pose_to_joints, register_skeleton, rest_joints)

POSED = [n for n in list_skeletons() if get_skeleton(n).offsets is not None]
SEEDS = st.integers(0, 2**31)

def rotations(*shape, seed=0, dtype=torch.float64):
    "Random rotations of shape (*shape, 3, 3)"
    g = torch.Generator().manual_seed(seed)
    return random_rotations(int(np.prod(shape)), dtype=dtype, generator=g).view(*shape, 3, 3)

def loop(R, parents, offsets):
    "Forward kinematics by the definition, one joint at a time, in numpy; any storage order"
    R, offsets = R.detach().numpy(), offsets.detach().numpy()
    P, G = np.zeros(R.shape[:-1]), np.zeros(R.shape)
    todo = [parents.index(-1)]
    while todo:
        j = todo.pop()
        p = parents[j]
        G[:, j] = R[:, j] if p < 0 else G[:, p] @ R[:, j]
        P[:, j] = offsets[..., j, :] + (0 if p < 0 else P[:, p])
        if p >= 0: P[:, j] = P[:, p] + np.einsum('bij,...j->bi', G[:, p], offsets[j])
        todo += [k for k, q in enumerate(parents) if q == j]
    return P, G

@st.composite
def trees(draw):
    "Parents of a random tree, stored in a random order"
    J = draw(st.integers(1, 12))
    up = [-1] + [draw(st.integers(0, j-1)) for j in range(1, J)]
    order = draw(st.permutations(range(J)))
    place = {j: i for i, j in enumerate(order)}
    return tuple(place[up[j]] if up[j] >= 0 else -1 for j in order)

def tree_of(parents, offsets=None):
    "An unnamed skeleton without mirror images"
    J = len(parents)
    return Skeleton('t', [f'j{i}' for i in range(J)], parents, range(J), offsets)

# ---- layouts

@pytest.mark.parametrize('name', list_skeletons())
def test_layout(name):
    s = get_skeleton(name)
    assert len(set(s.joints)) == len(s) == s.n_joints
    assert [s.mirror[m] for m in s.mirror] == list(range(len(s)))
    assert sorted(s.left + s.right + s.center) == list(range(len(s)))
    assert sorted(j for level in s.levels for j in level) == list(range(len(s)))
    assert len(s.bones) == len(s)-1
    for p, j in s.bones:   # the mirror image of a bone is a bone
        assert s.mirror[p] == s.parents[s.mirror[j]] or 'face' in s.joints[j]

def spelled(name):
    "A joint's name with the sides exchanged"
    for a, b in (('left_', 'right_'), ('Left', 'Right')):
        if name.startswith(a): return b + name[len(a):]
        if name.startswith(b): return a + name[len(b):]
    return None

@pytest.mark.parametrize('name', list_skeletons())
def test_mirror_exchanges_left_and_right(name):
    s = get_skeleton(name)
    for j, n in enumerate(s.joints):
        if (twin := spelled(n)) and 'face' not in n: assert s.joints[s.mirror[j]] == twin
    for a, b in zip(s.left, s.right): assert s.joints[a][0] in 'lLwma' and s.mirror[a] == b

@pytest.mark.parametrize('name', POSED)
def test_rest_offsets_are_symmetric(name):
    s = get_skeleton(name)
    flip = torch.ones(3)
    flip[s.side] = -1
    assert torch.equal(s.offsets[list(s.mirror)]*flip, s.offsets)
    assert all(p < j for p, j in s.bones), 'an articulated skeleton stores parents first'

def test_coco_face_mirror():
    s = get_skeleton('coco_wholebody133')
    pairs = {0: 16, 8: 8, 17: 26, 21: 22, 27: 27, 31: 35, 36: 45, 39: 42, 40: 47, 41: 46, 48: 54,
             51: 51, 55: 59, 60: 64, 65: 67, 66: 66}
    assert {i: s.mirror[23+i]-23 for i in pairs} == pairs
    assert s.joints[23].startswith('right') and s.joints[23+45].startswith('left')
    assert (s.joints[91], s.joints[112], s.joints[96]) == ('left_hand', 'right_hand', 'left_index1')

def test_smplx_names():
    names = pytest.importorskip('smplx.joint_names')
    ours = [n+'_smplhf' if n.endswith('_eye') else n for n in get_skeleton('smplx').joints]
    assert ours == names.JOINT_NAMES[:55]
    assert list(get_skeleton('smplh').joints) == names.SMPLH_JOINT_NAMES[:52]

@pytest.mark.parametrize('name, file', [('cmu_mb', 'bvh_mb/01_01.bvh'),
                                        ('cmu_daz', 'bvh_daz/salsa/01.bvh')])
def test_bvh_rigs(real_data, name, file):
    joints, parents, stack = [], [], []
    for words in map(str.split, (real_data/'cmu'/file).read_text().splitlines()):
        if words[:1] == ['MOTION']: break
        if words[:1] in (['ROOT'], ['JOINT']):
            parents.append(stack[-1] if stack else -1)
            joints.append(words[1])
        elif words[:1] == ['{']: stack.append(len(joints)-1)
        elif words[:1] == ['}']: stack.pop()
    s = get_skeleton(name)
    assert (s.joints, s.parents) == (tuple(joints), tuple(parents))

def test_asf_rig(real_data):
    text = (real_data/'cmu/amc/01.asf').read_text().split(':hierarchy')[1]
    s, rows = get_skeleton('cmu_amc'), [l.split() for l in text.splitlines()]
    pairs = {(p, c) for p, *kids in rows[2:-1] if p != 'end' for c in kids}
    assert {(s.joints[p], s.joints[j]) for p, j in s.bones} == pairs

def test_smil(real_data):
    with np.load(real_data/'insects/smil_ant_template.npz', allow_pickle=False) as z:
        s = get_skeleton('smil')
        assert s.joints == tuple(z['J_names'].tolist())
        assert s.parents == tuple(z['kintree_table'][0].tolist())

@pytest.mark.parametrize('change, says', [
    (dict(joints=['a', 'a', 'c']), 'repeat'), (dict(parents=[-1, 0]), '2 parents'),
    (dict(parents=[0, 1, 2]), 'exactly one root'), (dict(parents=[-1, 0, 3]), 'no joint'),
    (dict(parents=[-1, 2, 1]), 'circle'), (dict(mirror=[1, 2, 0]), 'in pairs'),
    (dict(mirror=[0, 1, 5]), 'in pairs'), (dict(offsets=torch.zeros(2, 3)), r'\(3, 3\)')])
def test_bad_trees(change, says):
    good = dict(name='t', joints=['a', 'b', 'c'], parents=[-1, 0, 1], mirror=[0, 1, 2])
    Skeleton(**good)
    with pytest.raises(ValueError, match=says): Skeleton(**good | change)

def test_registry():
    smplx = get_skeleton('smplx')
    assert register_skeleton(replace(smplx)) is smplx                    # the same once more is no mistake
    for change in (dict(offsets=smplx.offsets+.01), dict(joints=[j.upper() for j in smplx.joints])):
        with pytest.raises(ValueError, match='another skeleton .* already'): register_skeleton(replace(smplx, **change))
    with pytest.raises(ValueError, match="unknown skeleton 'nope'"): get_skeleton('nope')
    assert get_skeleton(get_skeleton('smil')) is get_skeleton('smil')

# ---- forward kinematics

@given(trees(), SEEDS)
def test_any_tree(parents, seed):
    g = torch.Generator().manual_seed(seed)
    o = torch.randn(len(parents), 3, generator=g, dtype=torch.double)
    R = rotations(3, len(parents), seed=seed)
    for ours, theirs in zip(forward_kinematics(R, tree_of(parents, o)), loop(R, parents, o)):
        assert np.allclose(ours.numpy(), theirs, atol=1e-9)

@pytest.mark.parametrize('batch', [1, 2, 3, 4, 300, 8193])
def test_smplx_loop(batch):
    lbs = pytest.importorskip('smplx.lbs')
    s = get_skeleton('smplx')
    R = rotations(batch, 55, dtype=torch.float32).requires_grad_()
    P, G = forward_kinematics(R)
    rest = rest_joints().expand(batch, 55, 3)
    P2, T = lbs.batch_rigid_transform(R, rest, torch.tensor(s.parents))
    assert torch.allclose(P, P2, atol=1e-5) and torch.allclose(G, T[..., :3, :3], atol=1e-5)
    w, v = torch.randn_like(P), torch.randn_like(G)
    ours, = torch.autograd.grad((P*w).sum()+(G*v).sum(), R)
    theirs, = torch.autograd.grad((P2*w).sum()+(T[..., :3, :3]*v).sum(), R)
    assert torch.allclose(ours, theirs, atol=2e-4)

@pytest.mark.parametrize('lead', [(), (1,), (0,), (2, 3), (4, 0, 2)])
@pytest.mark.parametrize('name', POSED)
def test_leading_shapes(name, lead):
    J = len(get_skeleton(name))
    R = torch.eye(3).expand(*lead, J, 3, 3)
    P, G = forward_kinematics(R, name, translation=torch.ones(3))
    assert P.shape == (*lead, J, 3) and G.shape == (*lead, J, 3, 3)
    assert torch.allclose(P, (rest_joints(name)+1).expand(P.shape), atol=1e-6)

@settings(max_examples=25)
@given(trees(), SEEDS)
def test_gradients(parents, seed):
    J, g = len(parents), torch.Generator().manual_seed(seed)
    n = lambda *x: torch.randn(*x, generator=g, dtype=torch.double).requires_grad_()
    s = tree_of(parents)
    f = lambda R, o, t: forward_kinematics(R, s, o, t)
    for o in (n(J, 3), n(2, J, 3)):
        assert torch.autograd.gradcheck(f, (n(2, J, 3, 3), o, n(2, 3)), fast_mode=True)
        assert torch.autograd.gradgradcheck(f, (n(2, J, 3, 3), o, n(2, 3)), fast_mode=True)

@pytest.mark.parametrize('output', [0, 1])
def test_gradient_of_one_output(output):
    "Only positions, or only rotations, reach the loss; batches beyond one chunk"
    R = rotations(9000, 15).requires_grad_()
    o = get_skeleton('deepmimic').offsets.double().requires_grad_()
    s = get_skeleton('deepmimic')
    a = forward_kinematics(R, s, o)[output].sin().sum()
    b = kinematics._plain(R, o[None], s.parents)[output].sin().sum()
    for x, y in zip(torch.autograd.grad(a, (R, o), allow_unused=True, materialize_grads=True),
                    torch.autograd.grad(b, (R, o), allow_unused=True, materialize_grads=True)):
        assert torch.allclose(x, y, atol=1e-8)

def test_offsets_broadcast_against_poses():
    o = torch.randn(4, 1, 15, 3, dtype=torch.double)
    R = rotations(5, 15)
    P, _ = forward_kinematics(R, 'deepmimic', o)
    assert P.shape == (4, 5, 15, 3)
    for k in range(4): assert torch.allclose(P[k], forward_kinematics(R, 'deepmimic', o[k, 0])[0])

def test_inputs_are_left_alone():
    R = rotations(3, 55)
    before, kept = R.clone(), get_skeleton('smplx').offsets.clone()
    forward_kinematics(R.requires_grad_())[0].sum().backward()
    assert torch.equal(R.detach(), before) and torch.equal(get_skeleton('smplx').offsets, kept)

def test_views_and_half_precision():
    R = rotations(55, 6).transpose(0, 1)
    assert torch.allclose(forward_kinematics(R)[0], forward_kinematics(R.contiguous())[0])
    with torch.autocast('cpu', dtype=torch.bfloat16): P = forward_kinematics(R.float())[0]
    assert P.dtype == torch.float32
    assert torch.allclose(P, forward_kinematics(R)[0].float(), atol=1e-5)

@given(SEEDS)
def test_equivariance(seed):
    R, turn = rotations(4, 55, seed=seed), rotations(1, seed=seed+1)[0]
    turned = R.clone()
    turned[:, 0] = turn @ R[:, 0]
    (P, G), (P2, G2) = forward_kinematics(R), forward_kinematics(turned)
    assert torch.allclose(P2, P @ turn.T, atol=1e-9) and torch.allclose(G2, turn @ G, atol=1e-9)
    own, same = (forward_kinematics(x, root=False)[0] for x in (R, turned))
    assert torch.allclose(own, same)

@given(trees(), SEEDS)
def test_local_global_round_trip(parents, seed):
    R = rotations(2, len(parents), seed=seed)
    assert torch.allclose(global_to_local(local_to_global(R, parents), parents), R, atol=1e-9)
    assert torch.allclose(local_to_global(global_to_local(R, parents), parents), R, atol=1e-9)

@pytest.mark.parametrize('call, says', [
    (lambda: forward_kinematics(torch.zeros(2, 54, 3, 3)), r'\(\.\.\., 55, 3, 3\)'),
    (lambda: forward_kinematics(torch.zeros(55, 3)), r'found torch.float32 of shape \(55, 3\)'),
    (lambda: forward_kinematics(torch.zeros(55, 3, 3, dtype=torch.long)), 'floating'),
    (lambda: forward_kinematics(torch.zeros(17, 3, 3), 'coco17'), 'no rest offsets'),
    (lambda: forward_kinematics(torch.zeros(55, 3, 3), offsets=torch.zeros(54, 3)),
     r'found \(54, 3\)'),
    (lambda: pose_to_joints(torch.zeros(55, 4)), r'found \(55, 4\)'),
    (lambda: mirror_pose(torch.zeros(24, 3)), "'smplx'"),
    (lambda: mirror_joints(torch.zeros(15, 2), 'deepmimic'), r'found \(15, 2\)'),
    (lambda: global_to_local(torch.zeros(3, 3, 3), [-1, 0]), r'\(\.\.\., 2, 3, 3\)'),
    (lambda: joint_subset([]), 'are none'), (lambda: joint_subset([0, 0]), 'named twice'),
    (lambda: joint_subset([55]), '0 to 54'),
    (lambda: joint_subset('body+jaw', 'smpl'), "no joint 'jaw'"),
    (lambda: get_skeleton('smplx').subset(['left_hip', 'right_hip']), 'exactly one root'),
    (lambda: convert_pose(torch.zeros(55, 3), 'smplx', 'smil'), "found 'smil'"),
    (lambda: parse_skeleton('x', 'a b:c'), "unknown 'c'")])
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says): call()

# ---- mirroring

@pytest.mark.parametrize('name', POSED)
@given(seed=SEEDS)
def test_mirror(name, seed):
    g = torch.Generator().manual_seed(seed)
    pose = torch.randn(2, len(get_skeleton(name)), 3, generator=g, dtype=torch.double)
    assert torch.equal(mirror_pose(mirror_pose(pose, name), name), pose)
    P = pose_to_joints(pose, name)
    assert torch.allclose(mirror_joints(mirror_joints(P, name, about=.3), name, about=.3), P)
    mirrored = pose_to_joints(mirror_pose(pose, name), name)
    assert torch.allclose(mirrored, mirror_joints(P, name), atol=1e-9)

def test_mirror_of_matrices():
    "The rotation of a mirrored vector is M R M"
    M = torch.diag(torch.tensor([-1., 1, 1], dtype=torch.double))
    pose = torch.randn(10, 55, 3, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    R = axis_angle_to_matrix(pose)[:, list(get_skeleton('smplx').mirror)]
    assert torch.allclose(axis_angle_to_matrix(mirror_pose(pose)), M @ R @ M, atol=1e-9)

# ---- parts

@pytest.mark.parametrize('small', ['smplh', 'smpl', 'body22'])
def test_smpl_family_agrees_in_space(small):
    "What both members have is in the same place"
    s, full = get_skeleton(small), get_skeleton('smplx')
    pose = torch.randn(5, 55, 3, generator=torch.Generator().manual_seed(0))
    P, Q = pose_to_joints(pose), pose_to_joints(convert_pose(pose, 'smplx', small), small)
    for n in set(s.joints) & set(full.joints):
        assert torch.allclose(P[:, full.index(n)], Q[:, s.index(n)], atol=1e-5)

def test_subset_keeps_places():
    s = get_skeleton('smplx')
    ends = s.subset(['pelvis', 'head', 'left_thumb3', 'right_thumb3', 'left_wrist', 'right_wrist'])
    assert ends.parents == (-1, 0, 4, 5, 0, 0) and ends.mirror == (0, 1, 3, 2, 5, 4)
    ids = [s.index(n) for n in ends.joints]
    assert torch.allclose(rest_joints(ends), rest_joints()[ids], atol=1e-6)
