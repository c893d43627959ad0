"posebook.neighbours against scipy and float64; every method, bad input"
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.spatial.transform import Rotation

from posebook import neighbours as N
from posebook.neighbours import PoseIndex, nearest_neighbour_distance, nearest_neighbours
from posebook.rotations import axis_angle_distance, axis_angle_to_quaternion

def gen(seed=0): return torch.Generator().manual_seed(seed)
def poses(n, joints=5, scale=1., seed=0):
    return scale*torch.randn(n, joints, 3, generator=gen(seed))
def scipy_angles(a, b):
    "Mean geodesic angle of all pairs by scipy, shape (Q, R)"
    q, r = (Rotation.from_rotvec(x.reshape(-1, 3).double().numpy()) for x in (a, b))
    out = np.zeros((len(a), len(b)))
    for i in range(len(a)):
        for j in range(len(b)):
            J = a.shape[1]
            out[i, j] = (q[i*J:(i+1)*J].inv()*r[j*J:(j+1)*J]).magnitude().mean()
    return out

@pytest.mark.parametrize('scale', [1e-6, 1e-3, .1, 1., 10.])
def test_neighbours_are_those_of_scipy(scale):
    q, r = poses(20, scale=scale), poses(60, scale=scale, seed=1)
    D = scipy_angles(q, r)
    d, i = nearest_neighbours(q, r, k=3)
    order = np.sort(D, 1)[:, :3]
    np.testing.assert_allclose(d, order, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(np.take_along_axis(D, i.numpy(), 1), order, rtol=1e-5, atol=1e-9)

@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 60), st.integers(1, 4),
       st.integers(1, 500))
def test_search_does_not_depend_on_chunks(seed, Q, R, k, chunk):
    q, r = poses(Q, 3, seed=seed), poses(max(R, k), 3, seed=seed+1)
    a, b = nearest_neighbours(q, r, k=k), nearest_neighbours(q, r, k=k, chunk=chunk)
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])

def test_rough_distances_keep_their_bound():
    "For near and far poses; the search is exact only while this holds"
    for scale in (0., 1e-6, 1e-4, 1e-2, .3, 3.):
        r = poses(400, 1, seed=1)
        q = N._quaternions(r[:100] + poses(100, 1, scale=scale))
        exact = N.quaternion_distance(q[:, None, 0], N._quaternions(r)[None, :, 0])
        rough = N._rough(q.float().transpose(0, 1), N._blocks(r).permute(1, 2, 0, 3).flatten(2)[..., :400])
        assert (rough-exact).abs().max() < N._SLACK

def test_many_equal_references():
    r = poses(1, 4).repeat(500, 1, 1)
    d, i = nearest_neighbours(r[:3], r, k=5)
    assert d.max() == 0 and all(len(set(row.tolist())) == 5 for row in i)

def test_half_turns_and_full_turns():
    v = torch.zeros(1, 1, 3)
    v[..., 0] = math.pi
    r = torch.cat([-v, v*2, v/2])
    d, i = nearest_neighbours(v, r, k=3)
    np.testing.assert_allclose(d[0], [0, math.pi/2, math.pi], atol=1e-6)
    assert i.tolist() == [[0, 2, 1]]

def test_skip_finds_neighbours_in_other_clips():
    x, clip = poses(90, 3, .5), torch.arange(90) // 30
    d, i = nearest_neighbours(x, x, skip=(clip, clip))
    assert (clip[i[:, 0]] != clip).all()
    D = torch.tensor(scipy_angles(x[:10], x))
    D[clip[:10, None] == clip] = 9
    np.testing.assert_allclose(d[:10, 0], D.amin(1), rtol=1e-5)

def test_a_shortlist_of_all_is_exact_and_a_short_one_is_never_nearer():
    q, r = poses(40, 4), poses(200, 4, seed=1)
    exact = nearest_neighbours(q, r, k=3)
    for a, b in zip(exact, nearest_neighbours(q, r, k=3, shortlist=200)): assert torch.equal(a, b)
    d, i = nearest_neighbours(q, r, k=3, shortlist=3)
    assert (d >= exact[0]).all() and (d > exact[0]).any()
    clip = torch.arange(40) % 4
    d, i = nearest_neighbours(q, q, k=2, shortlist=2, skip=(clip, clip))
    assert d.isfinite().all() and (clip[i] != clip[:, None]).all()

def test_joints_choose_and_constant_joints_dilute():
    x = torch.zeros(30, 55, 3)
    x[:, 1:22] = poses(30, 21, .3)
    q = x.flip(0)+.05*torch.zeros_like(x).index_fill(1, torch.arange(1, 22), 1.)
    body, everything = (nearest_neighbours(q, x, joints=j) for j in ('body', None))
    assert torch.equal(body[1], everything[1])
    torch.testing.assert_close(body[0]*21, everything[0]*55)
    torch.testing.assert_close(body[0], nearest_neighbours(q, x, joints=range(1, 22))[0])

def test_types_in_and_out():
    q, r = poses(4), poses(9, seed=1)
    a = nearest_neighbours(q, r)
    assert a[0].dtype == torch.float32 and a[1].dtype == torch.int64
    assert nearest_neighbours(q.double(), r.double())[0].dtype == torch.float64
    np.testing.assert_allclose(nearest_neighbour_distance(q.numpy(), r.numpy()), a[0][:, 0])
    assert nearest_neighbour_distance(q.half(), r.half()).dtype == torch.float32

def test_read_only_arrays_do_no_harm(recwarn, tmp_path):
    np.save(tmp_path/'x.npy', poses(20).numpy())
    x = np.load(tmp_path/'x.npy', mmap_mode='r')
    assert nearest_neighbour_distance(x, x).max() == 0 and not recwarn.list

# ---- an index

def test_an_index_of_quaternions_is_that_of_poses():
    x, y = poses(50), poses(9, seed=1)
    want = PoseIndex(x).search(y, k=2)
    index = PoseIndex(-axis_angle_to_quaternion(x), quaternions=True)
    got = index.search(axis_angle_to_quaternion(y), k=2)
    torch.testing.assert_close(want[0], got[0]); assert torch.equal(want[1], got[1])
    assert len(index) == 50 and '50 poses of 5 joints' in repr(index)

# ---- bad input

P = poses(6)

@pytest.mark.parametrize('call, says', [
    (lambda: nearest_neighbours(P, P[:2], k=3), 'asked for 3 neighbours.*only 2'),
    (lambda: nearest_neighbours(P, P, k=0), 'k >= 1'),
    (lambda: nearest_neighbours(P, P, joints='body'), 'reach id 21'),
    (lambda: nearest_neighbours(P, P, joints=[]), 'joints'),
    (lambda: nearest_neighbours(P, P, skip=([1], [2])), r'shapes \(6,\)'),
    (lambda: nearest_neighbours(P, P, skip=([1]*6, [1]*6)), 'only 0 reference'),
    (lambda: nearest_neighbours(P, P, method='kdtree'), "auto, torch, .*found 'kdtree'"),
    (lambda: PoseIndex(P[..., :2]), r'`reference` of shape \(N, J, 3\)'),
    (lambda: PoseIndex(torch.ones(3, 5, 4), quaternions=True), 'unit quaternions in `reference`'),
    (lambda: PoseIndex(P).search(P[:, :3]), 'found 3 and 5')])
def test_bad_input_is_said(call, says):
    with pytest.raises(ValueError, match=says): call()

# ---- elsewhere

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_on_a_gpu():
    a, b = poses(300, scale=.5), poses(200, scale=.5, seed=1)
    for x, y in zip(nearest_neighbours(a, b, k=3), nearest_neighbours(a.cuda(), b.cuda(), k=3)):
        assert y.is_cuda
        torch.testing.assert_close(x, y.cpu(), atol=1e-6, rtol=1e-5)

def test_real_poses_keep_the_search_exact(real_data):
    path = real_data/'cmu'/'cmu_poses22.npz'
    if not path.is_file(): pytest.skip(f'no {path.name} in the real data')
    with np.load(path) as z: x = torch.from_numpy(z['poses'][:, 1:].astype('float32'))
    q, r = x[::400], x[1::40]
    d = nearest_neighbour_distance(q, r)
    want = torch.stack([axis_angle_distance(p, r).mean(-1).amin() for p in q])
    torch.testing.assert_close(d, want, atol=1e-6, rtol=0)
