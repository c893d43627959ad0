"""`posebook.gaussian` against scipy, and what the family must do"""
import math
import numpy as np, pytest, torch
from scipy.stats import multivariate_normal
from posebook.gaussian import KINDS, GaussianPrior, k_means, regression_mask
from posebook.coordinates import PriorError
from test_prior import some_poses


@pytest.fixture(scope='module')
def poses():
    p = some_poses(1500, moving=(1, 2, 4), seed=1)
    p[:, 4] += .7*p[:, 1]              # two joints that move together
    p[::2, 2] += .8                    # and one with two habits
    return p


def test_330_parameters_on_all_joints():
    p = some_poses(1000, moving=range(55))
    assert GaussianPrior('diagonal').fit(p).n_parameters == 330
    assert GaussianPrior('per_joint').fit(p).n_parameters == 55*(3+6)
    assert GaussianPrior('full').fit(p).n_parameters == 165+165*166//2


@pytest.mark.parametrize('kind', KINDS[:3])
def test_density_equals_scipy(poses, kind):
    prior = GaussianPrior(kind).fit(poses)
    x = prior.coordinates(poses).double().numpy()
    cov = np.cov(x.T, bias=True)
    joint = np.repeat(np.arange(3), 3)
    keep = {'diagonal': np.eye(9), 'per_joint': joint[:, None] == joint, 'full': np.ones((9, 9))}[kind]
    expected = multivariate_normal(x.mean(0), cov*keep).logpdf(x)
    np.testing.assert_allclose(prior.log_prob(poses).detach().numpy(), expected, atol=2e-3)


def test_density_integrates_to_one():
    "A hinge: one coordinate, so the integral is a sum over a line"
    p = torch.zeros(500, 55, 3)
    p[:, 4, 0] = .4*torch.randn(500, generator=torch.Generator().manual_seed(0))
    prior = GaussianPrior('mixture', components=2).fit(p)
    assert prior.dim == 1
    grid = torch.zeros(4001, 55, 3); grid[:, 4, 0] = torch.linspace(-3, 3, 4001)
    assert abs(prior.log_prob(grid).exp().sum().item()*6/4000 - 1) < 1e-3


def test_batches_do_not_matter(poses):
    a, b = (GaussianPrior('full').fit(poses, batch_size=n) for n in (64, 1500))
    torch.testing.assert_close(a.loc, b.loc, atol=1e-5, rtol=0)
    torch.testing.assert_close(a.cholesky, b.cholesky, atol=1e-4, rtol=1e-4)


def test_em_never_loses_likelihood(poses):
    "Without shrinkage EM is monotone"
    nll = [-GaussianPrior('mixture', components=3, shrinkage=0., min_gain=-math.inf).fit(poses, max_epochs=n)
           .log_prob(poses).mean().item() for n in (1, 2, 4, 8, 16)]
    assert all(b <= a+1e-4 for a, b in zip(nll, nll[1:])) and nll[-1] < nll[0]


def test_mixture_finds_two_habits(poses):
    prior = GaussianPrior('mixture', components=2).fit(poses)
    means = prior.coordinates.inverse(prior.loc.detach())[:, 2]
    assert abs((means[0]-means[1]).abs().amax()-.8) < .1
    torch.testing.assert_close(prior.log_weights.exp(), torch.tensor([.5, .5]), atol=.05, rtol=0)


@pytest.mark.parametrize('kind', KINDS)
def test_samples_have_the_models_moments(poses, kind):
    prior = GaussianPrior(kind).fit(poses)
    x = prior.coordinates(prior.sample(20_000, torch.Generator().manual_seed(0)))
    w = prior.log_weights.exp()
    mean = (w[:, None]*prior.loc).sum(0)
    C = prior.cholesky
    second = (w[:, None, None]*(C@C.mT + prior.loc[..., None]*prior.loc[:, None])).sum(0)
    torch.testing.assert_close(x.mean(0), mean.detach(), atol=.03, rtol=0)
    torch.testing.assert_close(torch.cov(x.T), (second-torch.outer(mean, mean)).detach(), atol=.03, rtol=0)


@pytest.mark.parametrize('kind', KINDS)
def test_projection_reaches_the_level(poses, kind):
    prior = GaussianPrior(kind).fit(poses)
    far = some_poses(200, moving=range(55), seed=9, sigma=1.)
    near = prior.project(far)
    assert (prior.energy(near) <= prior.level+1e-2).all()
    assert torch.equal(prior.project(near[:5], level=1e9), near[:5])


def test_unmodelled_joints_pass_through(poses):
    prior = GaussianPrior('full', joints=[1, 2, 4]).fit(poses)
    far = some_poses(10, moving=range(55), seed=9, sigma=1.)
    near = prior.project(far)
    others = [j for j in range(55) if j not in (1, 2, 4)]
    assert torch.equal(near[:, others], far[:, others]) and not torch.equal(near, far)


def test_k_means_finds_separate_clouds():
    centres = torch.tensor([[0., 0], [10, 0], [0, 10]])
    x = centres.repeat_interleave(50, 0) + .1*torch.randn(150, 2, generator=torch.Generator().manual_seed(0))
    label = k_means(x, 3)
    assert all(len(label[50*i:50*i+50].unique()) == 1 for i in range(3)) and len(label.unique()) == 3


def test_mask_is_closed_under_inversion():
    "The inverse of a masked triangular matrix has the same mask, so W and its Cholesky factor share it"
    mask = regression_mask('per_joint', torch.arange(4).repeat_interleave(3))
    W = torch.randn(12, 12).double()*mask + 3*torch.eye(12).double()
    assert torch.linalg.inv(W)[~mask].abs().max() < 1e-12


@pytest.mark.parametrize('make, says', [
    (lambda: GaussianPrior('round'), 'kind should be'), (lambda: GaussianPrior(method='guess'), 'method should be'),
    (lambda: GaussianPrior('mixture', components=50).fit(some_poses(20)), 'as many poses'),
    (lambda: GaussianPrior().fit(some_poses(1)), 'at least 2'), (lambda: GaussianPrior().fit(torch.zeros(9, 55, 3)), 'nothing moves')])
def test_bad_input(make, says):
    with pytest.raises(PriorError, match=says): make()
