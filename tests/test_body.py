"Bodies beside the smplx package, and insects beside what Unreal rendered"
import contextlib, io, itertools, os, pickle
from pathlib import Path

import numpy as np, pytest, smplx, torch
from posebook.body import Body, list_bodies
from posebook.body_files import SMPLX_KEYPOINTS, BodyError, body_data
from posebook.kinematics import has_numba
from posebook.replicant import read_replicant
from posebook.rotations import axis_angle_to_matrix
from posebook.skeleton import get_skeleton

BACKENDS = ['torch']+['numba']*has_numba()
INSECTS = Path(os.environ.get('POSEBOOK_DATA', Path(__file__).resolve().parents[2]/'shared'/'data'))/'insects'
REAL = pytest.mark.skipif(not INSECTS.is_dir(), reason='no shared insect data here')

@pytest.fixture
def small_ids(monkeypatch):
    "smplx with keypoints among few vertices, so that a model may be small"
    for k in ('smplx', 'smplh'): monkeypatch.setitem(smplx.body_models.VERTEX_IDS, k, {n: i for i, n in enumerate(SMPLX_KEYPOINTS)})

def official(kind, S=20, V=300, seed=0):
    "A random model by the keys of the official files"
    parents, J = get_skeleton(kind).parents, len(get_skeleton(kind))
    r = np.random.default_rng(seed)
    w, reg = np.zeros((V, J)), r.random((J, V))**20
    np.put_along_axis(w, np.argsort(r.random((V, J)), 1)[:, :4], r.random((V, 4))+.01, 1)
    table = np.array([parents, range(J)])
    table[0, 0] = 2**32-1
    out = dict(v_template=r.normal(size=(V, 3))*.4, f=r.integers(0, V, (2*V, 3)).astype(np.uint32), kintree_table=table,
        weights=w/w.sum(1, keepdims=True), J_regressor=reg/reg.sum(1, keepdims=True), shapedirs=r.normal(size=(V, 3, S))*.01,
        posedirs=r.normal(size=(V, 3, 9*(J-1)))*.003, bs_type='lrotmin', bs_style='lbs')
    if kind == 'smpl': return out
    for s in 'lr': out |= {f'hands_components{s}': r.normal(size=(45, 45)), f'hands_mean{s}': r.normal(size=45)*.1}
    if kind == 'smplx': out |= dict(lmk_faces_idx=r.integers(0, V, 51), lmk_bary_coords=np.full((51, 3), 1/3),
        part2num=np.array({'head': 1}, dtype=object), joint2num=np.array({'jaw': 1}, dtype=object))
    return out

def write(arrays, path):
    "A model file as the authors publish them"
    if path.suffix == '.npz': np.savez(path, **arrays)
    else: path.write_bytes(pickle.dumps(arrays, 2))
    return path

def peer(path, kind, B, **options):
    "The model in smplx"
    with contextlib.redirect_stdout(io.StringIO()): return smplx.create(str(path), kind, batch_size=B, ext=path.suffix[1:], **options)

def smplx_call(m, kind, p, betas, expression=None, transl=None):
    "Vertices and joints of smplx for a whole pose"
    x = dict(betas=betas, global_orient=p[:, 0], transl=transl)
    if kind == 'smpl': x |= dict(body_pose=p[:, 1:].flatten(1))
    else: x |= dict(body_pose=p[:, 1:22].flatten(1), left_hand_pose=p[:, -30:-15].flatten(1), right_hand_pose=p[:, -15:].flatten(1))
    if kind == 'smplx': x |= dict(jaw_pose=p[:, 22], leye_pose=p[:, 23], reye_pose=p[:, 24], expression=expression)
    out = m(**x)
    return out.vertices, out.joints[:, :p.shape[1]]

CASES = [('smplx', '.npz', 20), ('smplx', '.pkl', 20), ('smplx', '.npz', 400),
    ('smplh', '.pkl', 10), ('smplh', '.npz', 16), ('smpl', '.pkl', 10)]

@pytest.mark.parametrize('kind,suffix,S', CASES)
@pytest.mark.parametrize('mean', [False, True])
def test_equals_smplx(kind, suffix, S, mean, tmp_path, small_ids):
    mean = mean and kind != 'smpl' # which has no hands
    path = write(official(kind, S), tmp_path/f'{kind}_model{suffix}')
    g, B = torch.Generator().manual_seed(1), 3
    J = len(get_skeleton(kind))
    p, betas, e, t = (torch.randn(*n, generator=g) for n in ((B, J, 3), (B, 10), (B, 10), (B, 3)))
    m = peer(path, kind, B, **({} if kind == 'smpl' else dict(use_pca=False, flat_hand_mean=not mean)))
    want = smplx_call(m, kind, p, betas, e, t)
    for backend in BACKENDS:
        body = Body.load(path, hand_mean=mean, backend=backend)
        assert body.kind == kind and (body.num_shapes, body.num_expressions) == {400: (300, 100), 20: (10, 10)}.get(S, (S, 0))
        out = body(p, betas, e if kind == 'smplx' else None, t)
        for a, b in zip(out, want): assert (a-b).abs().max() < 1e-5
        assert (body.joints(p, betas, e if kind == 'smplx' else None, t)-want[1]).abs().max() < 1e-5

@pytest.mark.parametrize('backend', BACKENDS)
def test_gradients_equal_smplx(backend, tmp_path, small_ids):
    path = write(official('smplx'), tmp_path/'smplx_model.npz')
    m, body = peer(path, 'smplx', 2, use_pca=False, flat_hand_mean=True), Body.load(path, backend=backend)
    g = torch.Generator().manual_seed(2)
    inputs = [torch.randn(*n, generator=g).requires_grad_() for n in ((2, 55, 3), (2, 10), (2, 10), (2, 3))]
    loss = lambda out: (out[0]**2).mean()+out[1].sin().mean()
    ours = torch.autograd.grad(loss(body(*inputs)), inputs)
    theirs = torch.autograd.grad(loss(smplx_call(m, 'smplx', *inputs)), inputs)
    for a, b in zip(ours, theirs): assert (a-b).abs().max() < 1e-4*b.abs().max()+1e-6

@pytest.mark.parametrize('combination', list(itertools.product([None, 3, 10], [None, 4, 10], [22, 55])), ids=str)
def test_any_part_of_the_basis(combination):
    "Fewer shapes, fewer expressions, no hands: what is left out is zero"
    S, E, n = combination
    g, body = torch.Generator().manual_seed(0), Body(body_data(official('smplx', V=60)), dtype=torch.double)
    p = torch.randn(2, 55, 3, generator=g).double()
    p[:, n:] = 0
    full = lambda k: torch.cat([torch.randn(2, k or 0, generator=g), torch.zeros(2, 10-(k or 0))], 1).double()
    b, e = full(S), full(E)
    want = body(p, b, e)
    got = body(p[:, :n], None if S is None else b[:, :S], None if E is None else e[:, :E])
    for x, y in zip(got, want): assert torch.allclose(x, y, atol=1e-12)
    one = body(p[:, :n], b[0], None if E is None else e[:, :E]) # one shape for all
    assert torch.allclose(one.vertices[0], want.vertices[0], atol=1e-12)

def test_shapes_without_poses_of_their_own():
    "One pose for many shapes"
    body = Body(body_data(official('smpl', 10, V=50)), dtype=torch.double)
    p, b = torch.randn(24, 3).double(), torch.randn(5, 10).double()
    out = body(p.expand(5, 24, 3), b)
    assert torch.allclose(out.vertices[3], body(p, b[3]).vertices)
    assert body(torch.zeros(0, 24, 3), b[:0]).vertices.shape == (0, 50, 3)
    assert body(axis_angle_to_matrix(p)[None], b[:1]).joints.shape == (1, 24, 3)

WRONG = [(dict(poses=torch.zeros(2, 21, 3)), 'poses of shape'), (dict(poses=torch.zeros(2, 72)), 'poses of shape'),
    (dict(poses=torch.zeros(2, 24, 3), shape=torch.zeros(2, 11)), 'shape of shape'),
    (dict(poses=torch.zeros(2, 24, 3), translation=torch.zeros(2)), 'translation of shape'),
    (dict(poses=torch.zeros(2, 24, 3), log_scales=torch.zeros(24, 1)), 'log_scales of shape')]

@pytest.mark.parametrize('x,words', WRONG)
def test_wrong_inputs(x, words):
    body = Body(body_data(official('smpl', 10, V=30)))
    for f in (body, body.joints):
        with pytest.raises(ValueError, match=words): f(**x)

@pytest.mark.parametrize('name', list_bodies())
def test_shipped_bodies(name):
    body = Body.load(name)
    assert body.kind == 'smplx' and body.skeleton.parents == get_skeleton('smplx').parents and len(set(body.shape_names)) == 10
    p = torch.randn(2, 55, 3, generator=torch.Generator().manual_seed(0))*.3
    out = body(p, torch.ones(10)*.5)
    assert all(x.isfinite().all() for x in out) and (out.joints-body.joints(p, torch.ones(10)*.5)).abs().max() < 1e-5
    assert set(body.keypoint_vertices) == set(SMPLX_KEYPOINTS)

def test_free_body_in_smplx(tmp_path):
    "`smplx.create(folder, 'smplx')` poses the free body, and finds its keypoints"
    body, g = Body.load('posebook'), torch.Generator().manual_seed(0)
    body.save(tmp_path, 'smplx')
    with contextlib.redirect_stdout(io.StringIO()): m = smplx.create(str(tmp_path), 'smplx', use_pca=False, batch_size=2, ext='npz')
    p, b, e = (torch.randn(*n, generator=g)*s for n, s in (((2, 55, 3), .3), ((2, 10), 1.), ((2, 10), 1.)))
    full = m(betas=b, expression=e, global_orient=p[:, 0], body_pose=p[:, 1:22].flatten(1), jaw_pose=p[:, 22], leye_pose=p[:, 23],
             reye_pose=p[:, 24], left_hand_pose=p[:, 25:40].flatten(1), right_hand_pose=p[:, 40:].flatten(1))
    out = body(p, b, e)
    assert (full.joints[:, :55]-out.joints).abs().max() < 1e-5
    order = np.load(tmp_path/'smplx'/'SMPLX_NEUTRAL.npz')['vertex_order']
    assert (full.vertices-out.vertices[:, order]).abs().max() < 1e-5
    for i, n in enumerate(['nose', 'reye', 'leye', 'rear', 'lear', 'LBigToe', 'LSmallToe', 'LHeel', 'RBigToe', 'RSmallToe', 'RHeel']):
        assert (full.joints[:, 55+i]-out.vertices[:, body.keypoint_vertices[n]]).abs().max() < 1e-5, n
    again = Body.load(tmp_path/'smplx')
    assert (again(p, b, e).vertices-out.vertices).abs().max() < 1e-5 and torch.equal(again.faces, body.faces)

def test_light_body_says_why_smplx_cannot_have_it(tmp_path):
    with pytest.raises(BodyError, match='more than 9,929 vertices'): Body.load('posebook-light').save(tmp_path, 'smplx')

@pytest.mark.parametrize('kind', ['smpl', 'smplh', 'smplx'])
def test_save_and_load(kind, tmp_path):
    body = Body(body_data(official(kind, 20, V=9940 if kind == 'smplx' else 100)))
    p, b = torch.randn(2, len(body.parents), 3)*.3, torch.randn(2, 10)
    for layout in ('posebook', kind):
        back = Body.load(body.save(tmp_path/f'{layout}.npz', layout))
        assert (back.kind, back.num_shapes, back.joint_names) == (body.kind, body.num_shapes, body.joint_names)
        assert (back(p, b).vertices-body(p, b).vertices).abs().max() < 1e-6

def test_moves_and_copies():
    "Precision, copies and state"
    import copy
    body = Body(body_data(official('smpl', 10, V=40)))
    p = torch.randn(2, 24, 3)
    v = body(p).vertices
    other = copy.deepcopy(body).double()
    assert other(p).vertices.dtype == torch.double and (other(p).vertices-v).abs().max() < 1e-5
    assert torch.equal(body(p).vertices, v) and not list(body.parameters()) and not body.state_dict()
    assert torch.equal(pickle.loads(pickle.dumps(body))(p).vertices, v)

# ---- animals

def by_the_book(d, R, ls, tau, propagate):
    "The formulas of SMAL and SMIL, one joint at a time, in numpy"
    J, S = d.joints, np.exp(ls)
    G = [None]*len(J)
    for i, p in enumerate(d.parents):
        L = np.eye(4)
        L[:3, :3], L[:3, 3] = R[i], J[i]
        if p >= 0: # neither scale nor translation of the root
            L[:3, :3], L[:3, 3] = R[i] @ np.diag(S[i]), J[i]-J[p]+tau[i]
            if not propagate: L[:3, :3] = np.diag(1/S[p]) @ L[:3, :3]
            L = G[p] @ L
        G[i] = L
    T = np.array(G)
    A = T.copy()
    A[:, :3, 3] -= np.einsum('jab,jb->ja', T[:, :3, :3], J)
    W = np.einsum('vj,jab->vab', d.weights, A)
    return np.einsum('vab,vb->va', W[:, :3, :3], d.template)+W[:, :3, 3], T[:, :3, 3]

@REAL
@pytest.mark.parametrize('propagate', [True, False])
def test_stick_insect_with_scales(propagate):
    body = Body.load(INSECTS/'SMILy_STICK.pkl', dtype=torch.double, propagate_scaling=propagate)
    assert body.kind == 'smil' and body.num_shapes == 5 and body.skeleton.mirror == get_skeleton('smil').mirror
    g = torch.Generator().manual_seed(0)
    p, w = torch.randn(55, 3, generator=g).double()*.3, torch.randn(5, generator=g).double()*.3
    ls, tau = body.scale_space(w), body.translation_space(w)
    out = body(p, log_scales=ls, joint_translations=tau)
    v, J = by_the_book(body.to_data(), axis_angle_to_matrix(p).numpy(), ls.numpy(), tau.numpy(), propagate)
    assert abs(out.vertices.numpy()-v).max() < 1e-12 and abs(out.joints.numpy()-J).max() < 1e-12
    raw = body.extra['transdirs']
    assert torch.allclose(tau[:, 1], -torch.einsum('k,kj->j', w, torch.from_numpy(raw[..., 1]))*.01)

@REAL
@pytest.mark.parametrize('dtype,cm,px', [(torch.double, 1e-5, 1e-4), (torch.float32, 1e-4, 1e-3)])
def test_replicant_ground_truth(dtype, cm, px):
    "Posed from the angles of the file, the ant's joints are where the file says they are, in space and in the picture"
    body, files = Body.load(INSECTS/'smil_ant_template.npz', dtype=dtype), sorted((INSECTS/'replicant_demo').glob('replicAnt*.json'))
    assert files
    for path in files:
        f, = read_replicant(path)
        out = body.posed_like(f)
        there, seen = f.ordered(f.joints3d, body.joint_names), f.ordered(f.joints2d, body.joint_names)
        assert (out.joints-there).norm(dim=-1).max()*100 < cm
        assert (f.project(out.joints)-seen).norm(dim=-1).max() < px
        assert (f.project(f.joints3d)-f.joints2d).norm(dim=-1).max() < 1e-3

@REAL
def test_replicant_camera_is_the_same():
    "The converter of the camera chapter sees the same pixels"
    from posebook.camera import Camera
    f, = read_replicant(sorted((INSECTS/'replicant_demo').glob('replicAnt*.json'))[0])
    cam = Camera.from_unreal(f.view, f.fov, *f.size)
    assert (cam.project(f.joints3d)-f.joints2d).norm(dim=-1).max() < 1e-3

@REAL
def test_old_replicant_files():
    for path in sorted((INSECTS/'replicant_masks').glob('SMIL_*.json')):
        for f in read_replicant(path):
            assert f.poses is None and f.size == (512, 512)
            assert (f.project(f.joints3d)-f.joints2d).norm(dim=-1).max() < 1e-3

def test_real_ant_notes_its_weights():
    if not INSECTS.is_dir(): pytest.skip('no shared insect data here')
    body = Body.load(INSECTS/'smil_ant_template.npz')
    assert body.notes[0].startswith('134 of 10227 vertices') and (body.weights.sum(0)-1).abs().max() < 1e-3
