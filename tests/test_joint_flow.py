"`posebook.joint_flow`: exactness in every configuration, sampling, charts, and what is left out"
import math

import pytest
import torch
from posebook.coordinates import PriorError
from posebook.joint_flow import CONTEXTS, JointFlow, JointFlowPrior, dependency_levels, group_slices, joint_order, visible
from posebook.prior import PosePrior
from test_prior import some_poses

TREE = [-1, 0, 0, 1, 2]
WAYS = [dict(context=c, context_hidden=h) for c in CONTEXTS for h in (0, 8)] + [dict(kind='spline'), dict(df=0), dict(chart='tangent')]


def moving(n=300, seed=0):
    "Hips, knees (hinges) and a copy, with one constant joint among those modelled"
    p = some_poses(n, moving=(1, 2), seed=seed)
    g = torch.Generator().manual_seed(seed+1)
    p[:, 4, 0], p[:, 5, 0] = p[:, 1, 0].abs() + .1*torch.randn(n, generator=g), .4*torch.randn(n, generator=g)
    p[:, 3] = p[:, 1]/2
    return p

def fitted(**kw):
    "A prior with weights far from the identity"
    kw = {'hidden': 8, 'context_hidden': 8, 'joints': [1, 2, 3, 4, 5, 7], **kw}
    prior = JointFlowPrior(**kw).fit(moving(), max_epochs=1)
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for w in prior.flow.parameters(): w.add_(.2*torch.randn(w.shape, generator=g))
    return prior


@pytest.mark.parametrize('kw', WAYS, ids=str)
def test_exact(kw):
    "Log-determinant as autograd has it, and a round trip under 1e-5 in single precision"
    prior = fitted(**kw)
    x = prior.standardise(prior.coordinates(moving(6, seed=5)))
    with torch.no_grad():
        z, logdet = prior.flow(x)
        back, way_back = prior.flow.inverse(z)
    assert (back-x).abs().max() < 1e-5 and (logdet+way_back).abs().max() < 1e-4
    prior.double()
    x = x.double()
    for row, expected in zip(x, prior.flow(x)[1]):
        J = torch.autograd.functional.jacobian(lambda v: prior.flow(v[None])[0][0], row)
        assert abs(torch.linalg.slogdet(J).logabsdet - expected) < 1e-4


@pytest.mark.parametrize('context', CONTEXTS)
def test_only_what_is_seen_matters(context):
    order, above = joint_order(torch.arange(5), TREE)
    sees = visible(context, above)
    flow = JointFlow(torch.arange(5).repeat_interleave(3), sees, hidden=8, context_hidden=8)
    with torch.no_grad():
        for w in flow.parameters(): w.normal_(0, .3)
    x = torch.randn(1, 15)
    J = torch.autograd.functional.jacobian(lambda v: flow.joint_log_prob(v)[:, 0], x)[:, 0]
    assert torch.equal(J.view(5, 5, 3).abs().sum(-1) > 0, sees | torch.eye(5).bool())


@pytest.mark.parametrize('n, dims', [(1, [4]), (2, [1, 4])])
def test_mass(n, dims):
    "Marginals of one and two coordinates integrate to one"
    joints = [4, 5][:n]
    p = torch.zeros(400, 55, 3)
    for j in joints: p[:, j, 0] = .4*torch.randn(400, generator=torch.Generator().manual_seed(j))
    prior = JointFlowPrior(joints=joints, hidden=8, context_hidden=8).fit(p, max_epochs=20, batch_size=50)
    assert prior.dim == n
    edge, steps = (60, 60_001) if n == 1 else (20, 401)
    axes = [torch.linspace(-edge*s, edge*s, steps) for s in prior.coordinates.scale.tolist()]
    cell = math.prod((a[1]-a[0]).item() for a in axes)
    rows = torch.cartesian_prod(*axes).view(-1, n).split(100_000)
    with torch.no_grad(): mass = sum(prior.log_prob_x(x).exp().sum().item() for x in rows)
    assert abs(mass*cell-1) < .01


@pytest.mark.parametrize('context', CONTEXTS)
def test_samples_follow_the_density(context):
    "A sample is the inverse of its draw from the base, whatever the number of rows at a time"
    prior = fitted(context=context, df=0)
    draw = lambda n: prior.flow.sample(n, generator=torch.Generator().manual_seed(3))
    z = prior.flow.flow.base.sample((1500, prior.dim), torch.Generator().manual_seed(3))
    with torch.no_grad():
        x = draw(1500)
        torch.testing.assert_close(prior.flow(x)[0], z, atol=2e-4, rtol=0)
        one = prior.flow.flow.base.sample((1, prior.dim), torch.Generator().manual_seed(3))
        torch.testing.assert_close(draw(1), prior.flow.inverse(one)[0], atol=1e-5, rtol=0)
    assert prior.sample(3, generator=torch.Generator().manual_seed(0)).shape == (3, 55, 3)


def test_inverse_has_gradients():
    prior = fitted().double()
    z = torch.randn(1, prior.dim, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: prior.flow.inverse(v)[0], z, atol=1e-5)


@pytest.mark.parametrize('batch', [1, 7, 300, 2000])
def test_slices_do_not_matter(batch):
    prior = fitted()
    x = torch.randn(batch, prior.dim)
    whole = [(f := prior.flow).flow.log_prob(f.slots(x).unflatten(1, (-1, 3)).transpose(0, 1), f.context(f.slots(x)))]
    import posebook.joint_flow as module
    old, module.CPU_ROWS = module.CPU_ROWS, 2*batch
    try: sliced = prior.flow.joint_log_prob(x)
    finally: module.CPU_ROWS = old
    torch.testing.assert_close(sliced, whole[0], atol=1e-4, rtol=1e-4)
    grads = []
    for value in (sliced, whole[0]):
        prior.zero_grad(); value.sum().backward(retain_graph=True)
        grads.append([w.grad.clone() for w in prior.flow.parameters()])
    for a, b in zip(*grads): torch.testing.assert_close(a, b, atol=2e-3*batch**.5, rtol=2e-3)


def test_slices_are_views():
    flow = fitted().flow
    parts = group_slices(flow, [2, 2])
    for part, at in zip(parts, (0, 2)):
        for (name, w), v in zip(flow.named_parameters(), part.parameters()):
            assert v.data_ptr() == w[at:].data_ptr(), name
    assert type(parts[0]) is JointFlow and len(list(flow.parameters())) == len(list(parts[0].parameters()))


@pytest.mark.parametrize('kw', [dict(), dict(chart='tangent', context='ancestors'), dict(kind='spline', context='none')], ids=str)
def test_saves_and_loads(kw, tmp_path):
    prior, p = fitted(**kw), moving(20, seed=9)
    again = PosePrior.from_pretrained(prior.save_pretrained(tmp_path/'flow'))
    assert torch.equal(again.energy(p), prior.energy(p)) and again.joint_nll(p).keys() == prior.joint_nll(p).keys()


def test_shares_of_joints_add_up():
    prior, p = fitted(), moving(20, seed=9)
    torch.testing.assert_close(sum(prior.joint_nll(p).values()), -prior.log_prob(p), atol=1e-3, rtol=1e-4)
    report = prior.joint_report(p)
    assert 'spine1 (follows left_hip)' in report and 'left_ankle (constant)' in report and set(prior.joint_nll(p)) == {
        'left_hip', 'right_hip', 'left_knee', 'right_knee'}


def test_orders():
    assert joint_order(torch.tensor([3, 0, 2]), TREE) == ([0, 2, 3], [-1, 0, 0])
    assert dependency_levels(visible('parent', [-1, 0, 0, 1, 2])) == [1, 2, 2]
    assert dependency_levels(visible('earlier', [-1, 0, 0, 1, 2])) == [1]*5


def test_charts_agree():
    "Where the mean is far from zero both charts describe one density, once the volume is counted"
    g = torch.Generator().manual_seed(0)
    p = torch.zeros(800, 55, 3)
    p[:, 16] = torch.tensor([.3, 0, 1.2]) + .3*torch.randn(800, 3, generator=g)
    fit = lambda chart: JointFlowPrior(joints=[16], chart=chart, df=0, hidden=16, dropout=0.).fit(p, max_epochs=12, batch_size=100)
    priors = [fit(c) for c in ('axis_angle', 'tangent')]
    with torch.no_grad(): nll = [-(q.log_prob(p)-q.coordinates.log_volume(p)).mean().item() for q in priors]
    assert abs(nll[0]-nll[1]) < .05
    expected = 3*(.5+.5*math.log(2*math.pi)+math.log(.3))
    assert abs(nll[0]-expected) < .1


def test_a_generator_serves_the_tangent_chart():
    a, b = (JointFlowPrior(joints=[1, 2], chart='tangent') for _ in range(2))
    a.fit_coordinates(iter(moving().split(50))); b.fit_coordinates(moving().split(50))
    assert torch.equal(a.coordinates.centre, b.coordinates.centre) and a.coordinates.centre.diagonal(dim1=1, dim2=2).max() < 1


@pytest.mark.parametrize('kw', [dict(context='cousins'), dict(chart='euler'), dict(kind='cubic')], ids=str)
def test_refused(kw):
    with pytest.raises(PriorError): JointFlowPrior(joints=[1, 2], **kw).fit_coordinates([moving()])
