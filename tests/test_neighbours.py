"posebook.neighbours against scipy and float64; every method, bad input"
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.spatial.transform import Rotation

from posebook import neighbours as N
from posebook.neighbours import PoseIndex, nearest_neighbour_distance, nearest_neighbours
from posebook.rotations import (axis_angle_distance, axis_angle_to_quaternion, matrix_to_axis_angle,
                                quaternion_distance, random_rotations)

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

@pytest.mark.parametrize('joints', [1, 2, 21])
@pytest.mark.parametrize('scale', [0., 1e-6, 1e-4, 1e-2, .3, 1., 3.])
def test_rough_distances_keep_their_bound(scale, joints):
    "For near and far poses, and joints of unlike angles; the search is exact only while this holds"
    r = poses(400, joints, seed=1)
    q = N._quaternions(r[:100] + poses(100, joints, scale=scale)*torch.rand(joints, 1, generator=gen(2)))
    exact = N.quaternion_distance(q[:, None], N._quaternions(r)[None]).mean(-1)
    fast, blocks = q.float().transpose(0, 1), N._blocks(r)
    rough = N._rough(fast, blocks.permute(1, 2, 0, 3).flatten(2)[..., :400])
    assert (rough-4*(exact/4).sin()).max() < N._SLACK and (rough < .9*exact-N._SLACK).sum() == 0
    angles = N._angles(fast, blocks, torch.ones(100, 400).nonzero()).view(100, 400)
    assert (angles-exact).abs().max() < N._SLACK

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

# ---- every exact method finds what float64 finds

def in_clusters(n, seed, joints=21):
    centres = .5*torch.randn(20, joints, 3, generator=gen(9))
    g = gen(seed)
    return centres[torch.randint(20, (n,), generator=g)] + .15*torch.randn(n, joints, 3, generator=g)

def brute(q, r):
    "All distances in float64, shape (Q, R)"
    q, r = (axis_angle_to_quaternion(x.double()) for x in (q, r))
    return torch.stack([quaternion_distance(p, r).mean(-1) for p in q])

def exact_methods(): return ['torch', pytest.param('numba', marks=pytest.mark.skipif(
    N.find_spec('numba') is None, reason='no numba'))]

@pytest.mark.parametrize('sigma', [0, .01, .05, .1, .25, .5, 1., 3.])
def test_every_neighbour_is_found(sigma):
    r = in_clusters(1500, 0)
    q = r[:20] + sigma*poses(20, 21)
    want, where = brute(q, r).sort(dim=1, stable=True)
    for method in ('torch', 'numba') if N.find_spec('numba') else ('torch',):
        for k in (1, 5):
            d, i = nearest_neighbours(q, r, k, method=method)
            torch.testing.assert_close(d.double(), want[:, :k], atol=1e-6, rtol=1e-5)
            assert torch.equal(i, where[:, :k])

@pytest.mark.parametrize('method', exact_methods())
@pytest.mark.parametrize('R', [40, 3000])
def test_uniform_rotations_find_their_neighbours(method, R):
    "Everything is far from everything, so bounds rule out the least"
    q, r = (matrix_to_axis_angle(random_rotations(n*21, generator=gen(n))).view(n, 21, 3) for n in (70, R))
    want, where = brute(q, r).sort(dim=1, stable=True)
    for chunk in (None, 2**14):
        d, i = nearest_neighbours(q, r, 3, chunk=chunk, method=method)
        torch.testing.assert_close(d.double(), want[:, :3], atol=1e-6, rtol=1e-5)
        assert torch.equal(i, where[:, :3])

@pytest.mark.parametrize('method', exact_methods())
def test_more_equal_poses_than_candidates_have_room(method):
    r = poses(1, 4).repeat(3000, 1, 1)
    r[2000:] += .3
    d, i = nearest_neighbours(r[1990:2010], r, k=3, method=method)
    assert d.max() < 1e-6
    assert i.tolist() == [[0, 1, 2]]*10+[[2000, 2001, 2002]]*10

@pytest.mark.parametrize('method', exact_methods()+['chord'])
def test_skip_holds_in_every_method(method):
    x, clip = in_clusters(900, 0, 5), torch.arange(900)//30
    d, i = nearest_neighbours(x[:50], x, k=4, skip=(clip[:50], clip), method=method, shortlist=900)
    D = brute(x[:50], x).masked_fill(clip[:50, None] == clip, math.inf)
    torch.testing.assert_close(d.double(), D.topk(4, largest=False).values, atol=1e-6, rtol=1e-5)
    assert (clip[i] != clip[:50, None]).all()

@pytest.mark.parametrize('method', exact_methods())
@pytest.mark.parametrize('R', [1, 63, 64, 65, 130])
def test_the_last_block_may_be_short(method, R):
    q, r = poses(7, 3), poses(R, 3, seed=1)
    d, i = nearest_neighbours(q, r, k=min(R, 66), method=method)
    torch.testing.assert_close(d.double(), brute(q, r).sort(1).values[:, :66], atol=1e-6, rtol=1e-5)
    assert i.min() >= 0 and i.max() < R

def test_scan_angles_keep_their_bound():
    "The plain functions that numba compiles, run as they are"
    for scale in (0., 1e-6, 1e-4, 1e-2, .3, 3.):
        r = poses(64, 3, seed=1)
        q = N._quaternions(r[:1]+poses(1, 3, scale=scale))
        sums = np.zeros(64, np.float32)
        N._add_angles(q[0].float().numpy(), N._blocks(r)[0].numpy(), 0, 3, sums)
        exact = N.quaternion_distance(q, N._quaternions(r)).mean(-1).numpy()
        assert np.abs(sums*2/3-exact).max() < N._SCAN_SLACK

def test_memory_does_not_grow_with_the_pairs():
    "A chunk is what is held: more queries or references make more chunks, not larger ones"
    held, rough = [], N._rough
    r, q = poses(5000, 2), poses(100, 2, seed=1)
    want = nearest_neighbours(q, r, k=2, method='torch')
    def watch(q, r, block):
        held.append(q.shape[1]*r.shape[2])
        return rough(q, r, block)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(N, '_rough', watch)
        got = nearest_neighbours(q, r, k=2, chunk=8192, method='torch')
    assert torch.equal(want[0], got[0]) and torch.equal(want[1], got[1])
    assert max(held) <= 8192 and len(held) > 50

def test_threads_of_torch_are_left_alone():
    pytest.importorskip('numba')
    before = torch.get_num_threads()
    nearest_neighbours(poses(20), poses(100), method='numba')
    assert torch.get_num_threads() == before

def test_a_missing_extra_is_named(monkeypatch):
    import sys
    for package, extra in (('numba', 'fast'), ('faiss', 'faiss')):
        monkeypatch.setitem(sys.modules, package, None)
        N._compiled.cache_clear()
        with pytest.raises(ImportError, match=rf'posebook\[{extra}\]'):
            nearest_neighbours(P, P, method=package)

def test_faiss_finds_most_and_never_too_few():
    pytest.importorskip('faiss')
    r, clip = in_clusters(4000, 0), torch.arange(4000)//1000
    q = r[:50]+.1*poses(50, 21)
    want = nearest_neighbours(q, r)
    got = nearest_neighbours(q, r, method='faiss')
    assert (want[1] == got[1]).float().mean() > .9 and (got[0] >= want[0]).all()
    d, i = nearest_neighbours(q, r, k=9, shortlist=9, skip=(clip[:50], clip), method='faiss')
    assert d.isfinite().all() and (clip[i] != clip[:50, None]).all()

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
