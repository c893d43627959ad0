"""`posebook.global_flow`: exactness, conditions, known parts, and the nine defects of an earlier flow"""
import itertools, math
import pytest, torch
from posebook.coordinates import PriorError
from posebook.flows import StudentT
from posebook.gaussian import GaussianPrior
from posebook.global_flow import (GlobalFlow, GlobalFlowPrior, halves, ks_distance, limbs, solve_rows)
from posebook.prior import PosePrior
from posebook.rotations import canonical_axis_angle, matrix_to_rotation_6d, rotation_6d_to_matrix, axis_angle_to_matrix
from posebook.skeleton import get_skeleton
from test_prior import some_poses

SMALL = dict(blocks=2, hidden=16, dropout=0.)


def gen(seed=0): return torch.Generator().manual_seed(seed)


@pytest.fixture(scope='module')
def poses():
    p = some_poses(600, moving=(1, 4, 16, 18), seed=1)
    p[:, 4] = .4*p[:, 4] + .9*p[:, 1]
    p[:, 18] = .2*p[:, 18] + 3*p[:, 16].square()
    return p


@pytest.fixture(scope='module')
def plain(poses): return GlobalFlowPrior(**SMALL).fit(poses, batch_size=100, max_epochs=10)


@pytest.fixture(scope='module')
def part(poses): return GlobalFlowPrior(**SMALL, completes=True, lr=5e-3).fit(poses, batch_size=100, max_epochs=20)


def stirred(flow, seed=0, size=.3):
    "The same flow with random weights, so that nothing is the identity"
    with torch.no_grad():
        for p in flow.parameters(): p.add_(size*torch.randn(p.shape, generator=gen(seed))/p.shape[-1]**.5)
    return flow.eval()


# ---- exactness

KINDS_AND_MAPS = list(itertools.product(('affine', 'spline'), ('triangular', 'rotation', 'permutation'), (1, 2, 7)))


@pytest.mark.parametrize('kind, mixing, dim', KINDS_AND_MAPS)
def test_inverse_and_log_determinant(kind, mixing, dim):
    flow = stirred(GlobalFlow(dim, 3, 16, kind=kind, mixing=mixing, seed=2))
    x = torch.randn(20, dim, generator=gen())
    z, logdet = flow(x)
    back, minus = flow.inverse(z)
    torch.testing.assert_close(back, x, atol=1e-5, rtol=0)
    torch.testing.assert_close(minus, -logdet, atol=1e-4, rtol=0)
    J = torch.func.vmap(torch.func.jacrev(lambda v: flow(v[None])[0][0]))(x)
    torch.testing.assert_close(torch.linalg.slogdet(J).logabsdet, logdet, atol=1e-4, rtol=0)


@pytest.mark.parametrize('kind', ['affine', 'spline'])
def test_known_numbers_stay_and_are_not_counted(kind):
    flow = stirred(GlobalFlow(6, 3, 16, kind=kind, completes=True))
    x = torch.randn(30, 6, generator=gen())
    flags = (torch.rand(30, 6, generator=gen(1)) < .5).float()
    flags[0], flags[1] = 0, 1
    c = torch.cat([flags, flags*x], 1)
    z, logdet = flow(x, c)
    assert torch.equal(z[flags > 0], x[flags > 0])
    torch.testing.assert_close(flow.inverse(z, c)[0], x, atol=1e-5, rtol=0)
    for i in range(30):
        J = torch.func.jacrev(lambda v: flow(v[None], c[i:i+1])[0][0])(x[i])
        free = flags[i] == 0
        expected = torch.linalg.slogdet(J[free][:, free]).logabsdet if free.any() else torch.tensor(0.)
        torch.testing.assert_close(expected, logdet[i], atol=1e-4, rtol=0)
    assert flow.log_prob(x, c)[1].item() == pytest.approx(0, abs=1e-6)          # all known: nothing to say
    wild = torch.where(flags > 0, 99*torch.ones(()), x)
    torch.testing.assert_close(flow.log_prob(wild, c), flow.log_prob(x, c))     # the condition decides, not what stands there


def test_conditional_mass_is_one():
    "Given four of six numbers, the density of the others over a plane adds up to 1"
    flow = stirred(GlobalFlow(6, 2, 16, completes=True, base=StudentT(6.)))
    axis = torch.linspace(-25, 25, 501)
    x = torch.zeros(501*501, 6); x[:, [1, 4]] = torch.cartesian_prod(axis, axis)
    flags = torch.tensor([1., 0, 1, 1, 0, 1]); known = flags*torch.tensor([.5, 0, -1., .3, 0, 1.])
    with torch.no_grad(): p = flow.log_prob(x, torch.cat([flags, known]).expand(len(x), -1)).exp()
    assert p.sum().item()*.1**2 == pytest.approx(1, abs=.01)


def test_triangular_solves_agree():
    A = torch.eye(4).expand(5, 4, 4) + .3*torch.randn(5, 4, 4, generator=gen()).tril(-1)
    y = torch.randn(5, 4, generator=gen(1))
    torch.testing.assert_close((A@solve_rows(A, y, False)[..., None])[..., 0], y)
    torch.testing.assert_close(solve_rows(A[:1], y, False)@A[0].T, y)


def test_starts_as_the_full_gaussian(poses):
    full = GaussianPrior('full').fit(poses)
    prior = GlobalFlowPrior(**SMALL, df=0.).fit_coordinates([poses])
    torch.testing.assert_close(prior.log_prob(poses).mean(), full.log_prob(poses).mean(), atol=.05, rtol=0)


def test_training_beats_the_gaussian_it_starts_from(poses, plain):
    full = GaussianPrior('full').fit(poses[:500])
    prior = GlobalFlowPrior(**SMALL | dict(hidden=32), lr=3e-3).fit(poses[:500], batch_size=100, max_epochs=25)
    assert prior.log_prob(poses[500:]).mean() > full.log_prob(poses[500:]).mean() + 1
    assert plain.round_trip(poses).max() < 1e-10


# ---- the nine defects

def test_1_no_condition_is_legal(plain, poses):
    assert plain.hparams.cond_dim == 0 and plain.flow.width == 0
    assert plain.log_prob(poses[:3]).shape == (3,) and plain.sample(3).shape == (3, 55, 3)


def test_2_actnorm_state_survives(plain, poses, tmp_path):
    loaded = PosePrior.from_pretrained(plain.save_pretrained(tmp_path/'flow'))
    before = loaded.flow.transforms[0].loc.clone()
    loaded.train()
    loaded.flow.inverse(torch.randn(9, loaded.dim, generator=gen()))
    loaded.flow(5+torch.randn(9, loaded.dim, generator=gen()))
    loaded.flow.initialise(5+torch.randn(9, loaded.dim, generator=gen()))
    assert torch.equal(before, loaded.flow.transforms[0].loc)
    fresh = GlobalFlow(3, 1, 8)
    fresh.inverse(torch.ones(2, 3))
    assert not fresh.transforms[0].initialised                                    # the way back starts nothing
    torch.testing.assert_close(loaded.eval().log_prob(poses), plain.log_prob(poses), rtol=0, atol=0)


def test_3_constants_are_outside(plain):
    assert plain.dim == 12 and plain.coordinates.excluded()['left_eye'] == 'constant'
    assert 'left_eye (constant)' in plain.joint_report(plain.sample(50, gen()))


def test_4_limbs_follow_the_skeleton(plain):
    s, c = get_skeleton('smplx'), plain.coordinates
    hangs = limbs(c)
    for k, j in enumerate(c.ids):
        for d in range(c.dim):
            i = c.ids[c.joint[d]]
            while i not in (j, -1): i = s.parents[i]
            assert hangs[k, d] == (i == j)


def test_5_splits_are_disjoint():
    from posebook.poses import embedded_data
    parts = embedded_data().split(by='sequence', fractions=(.6, .2, .2), seed=0)
    names = [set(parts[k].names) for k in ('train', 'val', 'test')]
    assert all(not a & b for a, b in itertools.combinations(names, 2)) and all(names)


def test_6_the_root_is_drawn_from_the_flow():
    p = some_poses(600, moving=(0, 1), sigma=.05)
    p[:, 0, 1] += 1.2
    s = GlobalFlowPrior(**SMALL).fit(p, batch_size=100, max_epochs=3).sample(500, gen())
    assert (s[:, 0].mean(0)-p[:, 0].mean(0)).abs().max() < .05


def test_7_wrapping_acts_on_the_norm(plain, poses):
    v = poses[:20]
    longer = v + 2*math.pi*torch.nn.functional.normalize(v, dim=-1)              # the same rotations
    torch.testing.assert_close(plain.log_prob(longer), plain.log_prob(v), atol=1e-3, rtol=1e-4)
    assert canonical_axis_angle(longer).norm(dim=-1).max() <= math.pi+1e-5


def test_8_rotations_survive_six_numbers(plain):
    R = axis_angle_to_matrix(plain.sample(20, gen()))
    torch.testing.assert_close(rotation_6d_to_matrix(matrix_to_rotation_6d(R)), R, atol=1e-5, rtol=0)


@pytest.mark.parametrize('mixing', ['triangular', 'rotation', 'permutation'])
def test_9_shuffles_are_seeded(mixing):
    make = lambda seed: GlobalFlow(9, 2, 8, mixing=mixing, seed=seed).state_dict()
    a, b, c = make(1), make(1), make(2)
    fixed = [k for k in a if k.split('.')[-1] in ('order', 'back', 'P')]
    assert fixed and all(torch.equal(a[k], b[k]) for k in fixed) and not all(torch.equal(a[k], c[k]) for k in fixed)
    assert sorted(sum(halves(9, 3), [])) == list(range(9)) and halves(9, 3) == halves(9, 3) and halves(1, 0) == [[0]]


# ---- conditions

def conditioned(n=600):
    p, c = some_poses(n, moving=(1, 4), sigma=.1), torch.randn(n, 2, generator=gen(5))*torch.tensor([3., 0.])+7
    p[:, 1, 0] += .15*(c[:, 0]-7)
    return p, c


def test_condition_matters_and_is_checked(tmp_path):
    p, c = conditioned()
    prior = GlobalFlowPrior(**SMALL, cond_dim=2, lr=5e-3).fit(p, c, batch_size=100, max_epochs=20)
    right, wrong = prior.log_prob(p, c).mean(), prior.log_prob(p, c.flip(0)).mean()
    assert right > wrong + 1
    means = [prior.sample(400, gen(), torch.tensor([v, 7.]))[:, 1, 0].mean().item() for v in (4., 10.)]
    assert means[1]-means[0] == pytest.approx(.9, abs=.2)
    with prior.given(c[:1]): assert torch.equal(prior.log_prob(p[:4]), prior.log_prob(p[:4], c[:1]))
    assert prior.condition is None
    assert torch.isfinite(prior.level) and (prior.project(p[:5]+.3, condition=c[:5])).shape == (5, 55, 3)
    loaded = PosePrior.from_pretrained(prior.save_pretrained(tmp_path/'c'))
    torch.testing.assert_close(loaded.log_prob(p, c), prior.log_prob(p, c), rtol=0, atol=0)
    for call, says in [(lambda: prior.log_prob(p), 'needs a condition of 2'), (lambda: prior.sample(3), 'needs a condition'),
                       (lambda: prior.log_prob(p, torch.ones(3)), 'expected 2'),
                       (lambda: prior.log_prob(p[:3], torch.ones(2, 2)), 'expected 1 or 3 rows'),
                       (lambda: prior.sample(3, condition=torch.tensor([1., math.nan])), 'finite'),
                       (lambda: GlobalFlowPrior(cond_dim=2).fit(p), 'train on pairs'),
                       (lambda: GlobalFlowPrior(cond_dim=2).fit(p, c[:, :1]), 'expected shape (600, 2)'),
                       (lambda: GlobalFlowPrior().fit(p, c), 'expected shape (600, 0)')]:
        with pytest.raises(PriorError) as e: call()
        assert says in str(e.value)


def test_condition_and_known_part_together():
    p, c = conditioned()
    prior = GlobalFlowPrior(**SMALL, cond_dim=2, completes=True).fit(p, c, batch_size=100, max_epochs=2)
    full = prior.partial(p[:5], ['left_hip'], c[:5])
    assert full.shape == (5, 2*prior.dim+2)
    drawn = prior.complete(p[:5], ['left_hip'], 3, gen(), c[:5])
    assert drawn.shape == (3, 5, 55, 3) and torch.equal(drawn[:, :, 1], p[:5, 1].expand(3, -1, -1))
    assert torch.isfinite(prior.log_prob(p[:5], full)).all() and torch.isfinite(prior.log_prob(p[:5], c[:5])).all()


# ---- parts

def test_completion_uses_what_is_known(part, poses):
    knee = part.complete(poses[:200], ['left_hip', 'left_shoulder', 'left_elbow'], 8, gen())[:, :, 4]
    error = (knee.mean(0)-poses[:200, 4]).norm(dim=-1).mean()
    assert error < .8*(poses[:, 4].mean(0)-poses[:200, 4]).norm(dim=-1).mean()
    assert knee.std(0).mean() > .02


def test_what_is_not_known_is_not_looked_at(part, poses):
    other = poses[:4].clone()
    other[:, 4] = math.nan
    known = ['left_hip', 'left_shoulder', 'left_elbow']
    assert torch.equal(part.partial(poses[:4], known), part.partial(other, known))
    mask = torch.zeros(4, 55, dtype=torch.bool); mask[:, [1, 16, 18]] = True
    assert torch.equal(part.partial(poses[:4], mask), part.partial(poses[:4], known))
    a, b = (part.complete(poses[:4], k, 2, gen()) for k in (mask, known))
    torch.testing.assert_close(a, b)


def test_nothing_known_is_the_plain_density(part, poses):
    nothing = part.partial(poses[:9], torch.zeros(55, dtype=torch.bool))
    torch.testing.assert_close(part.log_prob(poses[:9], nothing), part.log_prob(poses[:9]))
    assert set(part.joint_given_rest(poses[:2])) == {'left_hip', 'left_knee', 'left_shoulder', 'left_elbow'}


def test_random_parts_cover_all_kinds(part):
    torch.manual_seed(0)
    known = part.random_known(4000).float().mean(1)
    assert .4 < (known == 0).float().mean() < .8 and (known > .6).any() and ((known > 0) & (known < .5)).any()


def test_training_with_parts_is_reproducible(poses):
    a, b = (GlobalFlowPrior(**SMALL, completes=True).fit(poses[:200], max_epochs=2, seed=3) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


def test_ks_distance_equals_scipy():
    from scipy.stats import ks_2samp
    a, b = torch.randn(200, generator=gen()), .5+torch.randn(300, generator=gen(1))
    assert ks_distance(a, b) == pytest.approx(ks_2samp(a.numpy(), b.numpy()).statistic, abs=1e-6)


@pytest.mark.parametrize('args, says', [(dict(kind='cubic'), 'kind should be'), (dict(mixing='blend'), 'mixing should be'),
    (dict(cond_dim=-1), 'cond_dim should be'), (dict(mixing='rotation', completes=True), "mixing='triangular'")])
def test_bad_choices(args, says):
    with pytest.raises(PriorError) as e: GlobalFlowPrior(**args)
    assert says in str(e.value)
