"posebook.metrics against scipy, numpy and plain loops; invariances; bad input"
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats
from scipy.linalg import sqrtm
from scipy.spatial import procrustes
from scipy.spatial.distance import cdist, pdist
from scipy.spatial.transform import Rotation

from posebook import metrics as M
from posebook.metrics import (Interval, angular_error, average_pairwise_distance, bootstrap_ci,
                              frechet_distance, mpjpe, nll_to_bpd, pa_mpjpe, pose_features,
                              precision_recall_coverage, procrustes_align)

def gen(seed=0): return torch.Generator().manual_seed(seed)
def poses(n, joints=5, scale=1., seed=0):
    return scale*torch.randn(n, joints, 3, generator=gen(seed))
# ---- joint errors

def plain_p_mpjpe(predicted, target):
    "VideoPose3D's protocol 2, written out for one pose, in numpy"
    X0, Y0 = target-target.mean(0), predicted-predicted.mean(0)
    nX, nY = np.linalg.norm(X0), np.linalg.norm(Y0)
    U, s, Vt = np.linalg.svd((X0/nX).T @ (Y0/nY))
    V = Vt.T
    R = V @ U.T
    if np.linalg.det(R) < 0:
        V[:, -1] *= -1
        s[-1] *= -1
        R = V @ U.T
    return np.linalg.norm(s.sum()*nX/nY*(Y0 @ R) - X0, axis=1).mean()

@pytest.mark.parametrize('mirrored', [False, True])
def test_pa_mpjpe_is_protocol_2(mirrored):
    t = torch.randn(40, 17, 3, generator=gen(), dtype=torch.float64)
    p = t + .3*torch.randn(40, 17, 3, generator=gen(1), dtype=torch.float64)
    if mirrored: p = p*torch.tensor([-1., 1, 1])
    want = [plain_p_mpjpe(a, b) for a, b in zip(p.numpy(), t.numpy())]
    np.testing.assert_allclose(pa_mpjpe(p, t), want, rtol=1e-9)

def test_reflecting_variant_is_scipy_procrustes():
    t, p = torch.randn(17, 3, generator=gen()).double(), torch.randn(17, 3, generator=gen(1)).double()
    size = (t-t.mean(0)).norm()
    a, b, _ = procrustes(t.numpy(), p.numpy())
    want = np.linalg.norm(a-b, axis=1).mean()*size
    np.testing.assert_allclose(pa_mpjpe(p, t, reflection=True), want, rtol=1e-9)

@settings(max_examples=40)
@given(st.integers(0, 10_000), st.floats(.05, 20), st.sampled_from([2, 3]))
def test_similarity_is_forgiven_mirroring_is_not(seed, scale, dims):
    g = gen(seed)
    t = torch.randn(3, 8, dims, generator=g, dtype=torch.float64)
    Q = torch.linalg.qr(torch.randn(dims, dims, generator=g, dtype=torch.float64))[0]
    Q[:, 0] *= torch.linalg.det(Q).sign()
    turned = scale*t @ Q + torch.randn(dims, generator=g, dtype=torch.float64)
    flip = torch.ones(dims, dtype=torch.float64)
    flip[0] = -1
    assert pa_mpjpe(turned, t).max() < 1e-9
    assert pa_mpjpe(turned*flip, t, reflection=True).max() < 1e-9
    assert pa_mpjpe(turned*flip, t).min() > 1e-3

def test_alignment_of_degenerate_poses_is_finite():
    flat = torch.randn(6, 3, generator=gen())*torch.tensor([1., 1, 0])
    line = torch.linspace(0, 1, 6)[:, None]*torch.tensor([1., 2, 3])
    point = torch.ones(6, 3)
    for p in (flat, line, point):
        for t in (flat, line, point): assert pa_mpjpe(p, t).isfinite()
        assert pa_mpjpe(3*p-1, p) < 1e-5
    torch.testing.assert_close(procrustes_align(point, flat), flat.mean(0).expand(6, 3))

def test_a_flat_pose_may_be_mirrored_by_turning():
    flat = torch.randn(6, 3, generator=gen())*torch.tensor([1., 1, 0])
    assert pa_mpjpe(flat*torch.tensor([-1., 1, 1]), flat) < 1e-6

def test_mpjpe_shapes_units_and_root():
    t = torch.zeros(2, 4, 5, 3)
    assert mpjpe(t+3., t).shape == (2, 4)
    torch.testing.assert_close(mpjpe(1000*(t+3.), 1000*t), 1000*mpjpe(t+3., t))
    assert mpjpe(t+3., t, root=0).abs().max() == 0
    np.testing.assert_allclose(mpjpe(np.ones((5, 2)), np.zeros((5, 2))), math.sqrt(2))

def test_angular_error_is_scipys():
    a, b = poses(50, scale=2.), poses(50, scale=2., seed=1)
    q, r = (Rotation.from_rotvec(x.reshape(-1, 3).double().numpy()) for x in (a, b))
    want = np.rad2deg((q.inv()*r).magnitude()).reshape(50, 5)
    np.testing.assert_allclose(angular_error(a, b), want, atol=2e-4)

# ---- intervals

@pytest.mark.parametrize('groups', [3, 5, 10, 20, 50, 1000])
@pytest.mark.parametrize('level', [.8, .9, .95, .99])
def test_widened_tail_uses_students_t(groups, level):
    t = stats.t.ppf((1+level)/2, groups-1)*math.sqrt(groups/(groups-1))
    tail = M._tail(level, groups)
    if stats.norm.cdf(-t) < 1e-30:
        assert tail < 1e-20   # the least of all resampled means
        return
    got = -stats.norm.ppf(tail)
    assert abs(got/t-1) < (.12 if groups == 3 else .03 if groups == 5 else .005)

def test_bootstrap_of_a_large_sample_is_the_normal_interval():
    x = np.random.default_rng(0).normal(3, 2, 4000)
    i = bootstrap_ci(x, n=4000)
    half = 1.96*x.std(ddof=1)/math.sqrt(4000)
    assert i.mean == x.mean() and abs((i.high-i.low)/2/half - 1) < .06

def test_groups_are_labels_and_the_mean_is_over_values():
    x = np.random.default_rng(0).normal(size=60)
    g = np.arange(60) % 7
    a, b = bootstrap_ci(x, g), bootstrap_ci(x, [f'clip {9-i}' for i in g])
    assert a.mean == b.mean == x.mean() and abs(a.low-b.low) < .05 and a.low < a.mean < a.high
    assert bootstrap_ci(x, g, seed=3) == bootstrap_ci(x, g, seed=3) != bootstrap_ci(x, g, seed=4)

def test_each_value_its_own_group_is_no_grouping():
    x = np.random.default_rng(0).normal(size=30)
    assert bootstrap_ci(x) == bootstrap_ci(x, np.arange(30))

def test_repeating_frames_does_not_narrow_the_interval():
    x, g = np.random.default_rng(0).normal(size=20), np.arange(20)
    assert bootstrap_ci(np.repeat(x, 50), np.repeat(g, 50)).low == pytest.approx(bootstrap_ci(x, g).low)

def test_bootstrap_leaves_global_random_state_alone():
    torch.manual_seed(1); np.random.seed(1)
    a, b = torch.get_rng_state(), np.random.get_state()[1].copy()
    bootstrap_ci(torch.arange(9.)); average_pairwise_distance(torch.rand(600, 2, 3, generator=gen()))
    assert torch.equal(a, torch.get_rng_state()) and (b == np.random.get_state()[1]).all()

@pytest.mark.parametrize('interval, text', [
    (Interval(-41.7, -43, -40.2), '-41.7 [-43.0, -40.2]'),
    (Interval(.1234, .12, .127), '0.1234 [0.1200, 0.1270]'),
    (Interval(12345., 12000., 12700.), '12345 [12000, 12700]'),
    (Interval(2., 2., 2.), '2.0000 [2.0000, 2.0000]'),
    (Interval(-.5, math.nan, math.nan), '-0.5 [no interval]')])
def test_interval_prints(interval, text): assert str(interval) == text

def test_bits_per_dimension():
    i = nll_to_bpd(Interval(-10., -12., -9.), 20)
    assert i.low < i.mean < i.high and i.mean == pytest.approx(-10/20/math.log(2))
    torch.testing.assert_close(nll_to_bpd(torch.ones(3), 1), torch.ones(3)/math.log(2))

# ---- spread

def test_apd_is_the_mean_of_pdist():
    x = torch.randn(80, 7, 3, generator=gen())
    rooted = (x-x[:, :1]).double().numpy()
    want = np.mean([pdist(rooted[:, j]) for j in range(7)])
    assert average_pairwise_distance(x) == pytest.approx(want, rel=1e-6)
    assert average_pairwise_distance(x, root=None) == pytest.approx(
        np.mean([pdist(x[:, j].double().numpy()) for j in range(7)]), rel=1e-6)

def test_apd_draws_a_seeded_subset():
    x = torch.randn(900, 3, 3, generator=gen())
    a = average_pairwise_distance(x, n=100)
    assert a == average_pairwise_distance(x, n=100) != average_pairwise_distance(x, n=100, seed=1)
    assert a == pytest.approx(average_pairwise_distance(x, n=None), rel=.1)

# ---- sets

def plain_manifold(real, fake, k):
    "The definitions of Kynkaanniemi and Naeem on full distance matrices"
    rr, ff, rf = cdist(real, real), cdist(fake, fake), cdist(real, fake)
    ball_r, ball_f = np.sort(rr, 1)[:, k], np.sort(ff, 1)[:, k]
    hit = rf <= ball_r[:, None]
    return hit.any(0).mean(), (rf <= ball_f).any(1).mean(), hit.any(1).mean(), hit.sum(0).mean()/k

@pytest.mark.parametrize('k', [1, 3, 5])
@pytest.mark.parametrize('representation', ['matrix', 'axis_angle', 'raw'])
def test_manifold_is_the_plain_one(k, representation):
    a, b = poses(150, scale=.5), poses(90, scale=.7, seed=1)+.2
    m = precision_recall_coverage(a, b, k, representation)
    x, y = (pose_features(p, representation).numpy() for p in (a, b))
    np.testing.assert_allclose([m.precision, m.recall, m.coverage, m.density],
                               plain_manifold(x, y, k), rtol=1e-6)

def test_manifold_in_chunks(monkeypatch):
    a, b = poses(50), poses(70, seed=1)
    want, blocks, plain = precision_recall_coverage(a, b), [], M._squared_distances
    def few(x, y):
        for i in range(0, len(x), 7):
            for s, d in plain(x[i:i+7], y):
                blocks.append(len(d))
                yield slice(i, i+len(d)), d
    monkeypatch.setattr(M, '_squared_distances', few)
    assert precision_recall_coverage(a, b) == want and max(blocks) == 7

def test_manifold_of_equal_and_far_sets():
    x = poses(60)
    same, far = precision_recall_coverage(x, x), precision_recall_coverage(.1*x, .1*x+2, 3, 'raw')
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert (far.precision, far.recall, far.coverage, far.density) == (0, 0, 0, 0)

def test_duplicates_and_constant_joints_do_no_harm():
    x = torch.cat([poses(20).repeat(4, 1, 1), torch.zeros(80, 3, 3)], 1)
    m = precision_recall_coverage(x, x)
    assert m.precision == m.recall == m.coverage == 1
    assert frechet_distance(x, x) < 1e-9

def test_matrices_do_not_mind_full_turns():
    x = poses(80)
    n = x.norm(dim=-1, keepdim=True)
    turned = x*(1-2*math.pi/n)
    a, b = precision_recall_coverage(x, poses(80, seed=1)), precision_recall_coverage(turned, poses(80, seed=1))
    assert a == b and precision_recall_coverage(x, turned, representation='axis_angle').precision < .1

def test_joints_representation_is_that_of_positions():
    x = poses(12, 55, .2)
    f = pose_features(x, 'joints')
    assert f.shape == (12, 165) and f[:, :3].abs().max() == 0
    assert pose_features(x[:, :22], 'joints', 'body22').shape == (12, 66)
    with pytest.raises(ValueError, match='smplx'): pose_features(x[:, :21], 'joints')

@pytest.mark.parametrize('n', [4, 30, 300])
def test_frechet_is_the_one_with_sqrtm(n):
    a, b = poses(n), .5*poses(n, seed=1)+.3
    x, y = (p.flatten(1).double().numpy() for p in (a, b))
    A, B = np.cov(x.T), np.cov(y.T)
    if n > x.shape[1]: root = sqrtm(A@B).trace().real
    else: root = np.sqrt(np.clip(np.linalg.eigvals(A@B).real, 0, None)).sum()
    want = ((x.mean(0)-y.mean(0))**2).sum() + A.trace() + B.trace() - 2*root
    assert frechet_distance(a, b, 'axis_angle') == pytest.approx(want, rel=1e-5)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)

def test_frechet_of_shifted_sets_is_the_squared_shift():
    x = poses(50)
    assert frechet_distance(x, x+.1, 'axis_angle') == pytest.approx(15*.01, rel=1e-4)

# ---- bad input

P, NAN = poses(6), poses(6).index_fill(0, torch.tensor([2]), math.nan)
TWO_SETS = [precision_recall_coverage, frechet_distance, M.nearest_neighbours, M.nearest_neighbour_distance]

@pytest.mark.parametrize('f', TWO_SETS)
@pytest.mark.parametrize('a, b, says', [
    (P[:0], P, 'is empty'), (P, P[:0], 'is empty'), (NAN, P, 'not finite'), (P, NAN, r'not finite.*\(2, 0, 0\)'),
    (P[0], P, r'\(N, J, 3\), found \(5, 3\)'), (P[..., :2], P, r'found \(6, 5, 2\)'), (P[:, :4], P, 'found .*4|4')])
def test_sets_are_checked(f, a, b, says):
    with pytest.raises(ValueError, match=says): f(a, b)

@pytest.mark.parametrize('call, says', [
    (lambda: precision_recall_coverage(P, P[:1]), 'neighbour 3 needs at least 4 poses in each set, found 6 and 1'),
    (lambda: precision_recall_coverage(P, P, k=0), 'k >= 1'),
    (lambda: precision_recall_coverage(P, P, representation='quat'), "found 'quat'"),
    (lambda: frechet_distance(P[:1], P), 'a covariance needs at least 2 poses'),
    (lambda: average_pairwise_distance(P[:1]), 'at least 2 samples, found 1'),
    (lambda: average_pairwise_distance(NAN), 'not finite'),
    (lambda: mpjpe(P, P[:4]), 'one shape'), (lambda: pa_mpjpe(P, NAN), '`target` has'),
    (lambda: angular_error(P[..., :2], P[..., :2]), r'\(\.\.\., J, 3\)'),
    (lambda: bootstrap_ci([]), 'empty'), (lambda: bootstrap_ci([1., math.inf]), 'not finite'),
    (lambda: bootstrap_ci([[1.]]), r'shape \(N,\)'), (lambda: bootstrap_ci([1., 2], level=95), 'level'),
    (lambda: bootstrap_ci([1., 2], [0]), 'one group'), (lambda: nll_to_bpd(1., 0), 'at least one')])
def test_bad_input_is_said(call, says):
    with pytest.raises(ValueError, match=says): call()

# ---- elsewhere

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_on_a_gpu():
    a, b = poses(300, scale=.5), poses(200, scale=.5, seed=1)
    assert precision_recall_coverage(a, b) == precision_recall_coverage(a.cuda(), b)
    assert frechet_distance(a.cuda(), b.cuda()) == pytest.approx(frechet_distance(a, b))
    assert average_pairwise_distance(a.cuda()) == pytest.approx(average_pairwise_distance(a))
    assert bootstrap_ci(a[:, 0, 0].cuda()) == bootstrap_ci(a[:, 0, 0])
    torch.testing.assert_close(pa_mpjpe(a.cuda()[:200], b).cpu(), pa_mpjpe(a[:200], b))
