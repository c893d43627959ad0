"Couplings, flows and their check: exactness, planted defects, precision, and an oracle"
import copy, itertools, json, math

import pytest, torch
from posebook.bijections import ActNorm, InvertibleLinear, Permutation, StandardNormal, StudentT
from posebook.coordinates import PriorError
from posebook.couplings import Coupling, rational_quadratic, spline_knots
from posebook.flow_prior import FlowPrior, debug_flow
from posebook.flows import PANELS, Flow, check_flow
from test_prior import some_poses

def generator(seed=0): return torch.Generator().manual_seed(seed)

def drawn(module, scale=.2, seed=0):
    "All weights drawn anew, so that no layer is the identity"
    g = generator(seed)
    for p in module.parameters(): p.data = scale*torch.randn(p.shape, generator=g, dtype=p.dtype)
    return module.eval()

def stack(dim=6, kind='affine', groups=None, valid=None, cond=0, base=None):
    "A flow with every layer that may be grouped"
    odd, even = list(range(1, dim, 2)), list(range(0, dim, 2))
    make = lambda ids: Coupling(dim, ids, cond, kind, 16, 2, groups, valid)
    layers = [ActNorm(dim, groups, valid), make(odd), make(even), make(list(range(dim//2)))]
    if valid is None: layers[2:2] = [Permutation(dim, 1)]
    if groups is None: layers[3:3] = [InvertibleLinear(dim, 2)]
    flow = Flow(layers, dim, base, groups, valid)
    linear = [copy.deepcopy(t) for t in layers if isinstance(t, InvertibleLinear)]
    drawn(flow)
    for t in flow.transforms:                   # a rotation stays one
        if isinstance(t, InvertibleLinear): t.load_state_dict(linear[0].state_dict())
    return flow

VALID = torch.tensor([[1]*6, [1]*6, [1]*4+[0]*2, [1]+[0]*5]).bool()
CASES = dict(plain={}, told=dict(cond=3), groups=dict(groups=4), told_groups=dict(groups=4, cond=3),
             lacking=dict(groups=4, valid=VALID, cond=3), heavy=dict(base=StudentT(4.)))

def inputs(groups=None, valid=None, cond=0, rows=12, **_):
    lead = () if groups is None else (groups,)
    x = torch.randn(*lead, rows, 6, generator=generator(1))
    if valid is not None: x = x*valid[:, None]
    return x, torch.randn(*lead, rows, cond, generator=generator(2)) if cond else None

def autograd_logdet(flow, x, c):
    "From one Jacobian over the whole batch, so independent of how `check_flow` does it"
    n = x.numel()
    J = torch.autograd.functional.jacobian(lambda v: flow(v, c)[0], x).reshape(n, n)
    J = J.view(n//6, 6, n//6, 6).diagonal(dim1=0, dim2=2).permute(2, 0, 1).double()
    return torch.linalg.slogdet(J).logabsdet.view(x.shape[:-1])

# ---- exactness

@pytest.mark.parametrize('kind', ['affine', 'spline'])
@pytest.mark.parametrize('case', CASES)
def test_exact(kind, case):
    flow, (x, c) = stack(kind=kind, **CASES[case]), inputs(**CASES[case])
    z, logdet = flow(x, c)
    back, undo = flow.inverse(z, c)
    assert (back-x).abs().max() < 1e-5
    assert (undo+logdet).abs().max() < 1e-4
    assert (logdet-autograd_logdet(flow, x, c)).abs().max() < 1e-4
    report = check_flow(flow, x, c)
    assert report.round_trip < 1e-5 and report.logdet_error < 1e-4

@pytest.mark.parametrize('scale', [.5, 1, 3, 10, 100])
def test_spline_undoes_itself_whatever_it_is_asked(scale):
    p = scale*torch.randn(5000, 3, 23, generator=generator())
    x = 3*torch.randn(5000, 3, generator=generator(1))
    for inverse in (False, True):
        y = rational_quadratic(x, p, inverse=inverse)[0]
        back = rational_quadratic(y, p, inverse=not inverse)[0]
        assert (back-x).abs().max() < 1.5e-5

@pytest.mark.parametrize('inverse', [False, True])
def test_gradients_are_finite_and_right(inverse):
    p = torch.randn(6, 2, 23, generator=generator()).double()
    kx, ky, _ = spline_knots(p, 4.)
    for v in (ky if inverse else kx).unbind(-1):
        v, q = v.clone().requires_grad_(), p.clone().requires_grad_()
        y, stretch = rational_quadratic(v, q, inverse=inverse)
        assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum()+stretch.sum(), (v, q)))
    x = (2*torch.randn(6, 2, generator=generator(3)).double()).requires_grad_()
    run = lambda v, q: rational_quadratic(v, q, inverse=inverse)
    assert torch.autograd.gradcheck(run, (x, p.requires_grad_()))

def test_spline_against_zuko():
    zuko = pytest.importorskip('zuko')
    p = torch.randn(200, 23, generator=generator()).double()
    kx, ky, d = spline_knots(p, 4.)
    peer = zuko.transforms.MonotonicRQSTransform(torch.zeros(200, 8), torch.zeros(200, 8), torch.zeros(200, 7))
    peer.horizontal, peer.vertical, peer.derivatives = kx, ky, d
    x = 2*torch.randn(200, generator=generator(1)).double()
    y, stretch = rational_quadratic(x[:, None], p[:, None])
    assert torch.allclose(peer(x), y[:, 0], atol=1e-9)
    assert torch.allclose(peer.log_abs_det_jacobian(x, peer(x)), stretch[:, 0], atol=1e-8)

@pytest.mark.parametrize('kind', ['affine', 'spline'])
@pytest.mark.parametrize('base', [StandardNormal(), StudentT(8.)])
def test_mass_is_one(kind, base):
    two = drawn(Flow([ActNorm(2), Coupling(2, [0], kind=kind), Coupling(2, [1], kind=kind)], 2, base), .15)
    u = torch.linspace(-12, 12, 300)
    with torch.no_grad(): p = two.log_prob(torch.cartesian_prod(u, u)).double().exp().view(300, 300)
    marginal = p.sum(1)*(u[1]-u[0])
    assert abs(marginal.sum()*(u[1]-u[0])-1) < .01
    x = two.sample(20000, generator=generator())[:, 0]
    assert abs((x < 0).double().mean()-marginal[u < 0].sum()*(u[1]-u[0])) < .02

# ---- precision

@pytest.mark.parametrize('kind', ['affine', 'spline'])
def test_double(kind):
    flow, (x, _) = stack(kind=kind).double(), inputs()
    z, logdet = flow(x.double())
    assert z.dtype == logdet.dtype == torch.float64
    assert (flow.inverse(z)[0]-x).abs().max() < 1e-12
    assert flow.sample(5).dtype == torch.float64

@pytest.mark.parametrize('kind', ['affine', 'spline'])
def test_autocast(kind):
    flow, (x, _) = stack(kind=kind), inputs()
    with torch.autocast('cpu', torch.bfloat16):
        z, logdet = flow(x)
        assert z.dtype == logdet.dtype == torch.float32
        assert (flow.inverse(z)[0]-x).abs().max() < 1e-3 or kind == 'spline'
        loss = -flow.log_prob(x).mean()
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in flow.parameters())

# ---- state

def test_actnorm_starts_once():
    flow, (x, _) = Flow([ActNorm(6), Coupling(6, [0, 1, 2]), ActNorm(6)], 6), inputs()
    flow.initialise(5+2*x)
    z = flow(5+2*x)[0]
    assert z.mean(0).abs().max() < 1e-5 and (z.std(0, correction=0)-1).abs().max() < 1e-5
    state = {k: v.clone() for k, v in flow.state_dict().items()}
    fresh = Flow([ActNorm(6), Coupling(6, [0, 1, 2]), ActNorm(6)], 6)
    fresh.load_state_dict(state)
    for f in (flow, fresh):
        f.inverse(9*x), f(7*x), f.initialise(3*x), f.train()(x), f.sample(3)
        assert all((v == state[k]).all() for k, v in f.state_dict().items())

def test_samples_follow_the_generator():
    for flow in (stack(), stack(groups=4), stack(base=StudentT())):
        a, b, c = (flow.sample(7, generator=generator(s)) for s in (3, 3, 4))
        assert (a == b).all() and (a != c).any()
    before = torch.get_rng_state()
    stack(base=StudentT()).sample(7, generator=generator())
    Permutation(9, 1), InvertibleLinear(9, 1)
    drawn_first = torch.get_rng_state()
    Permutation(9, 1), InvertibleLinear(9, 1)
    assert (drawn_first == torch.get_rng_state()).all() and before.shape == drawn_first.shape

def test_padding_is_inert():
    flow, (x, c) = stack(**CASES['lacking']), inputs(**CASES['lacking'])
    before = flow.log_prob(x, c)
    for t in flow.transforms:
        if isinstance(t, ActNorm): t.loc.data[~VALID[:, None]] += 5; t.log_scale.data[~VALID[:, None]] += 5
    assert (flow.log_prob(x, c) == before).all()
    assert (flow.sample(12, c, generator())[~VALID[:, None].expand(4, 12, 6)] == 0).all()

# ---- the check finds what is planted

class OneWay(Coupling):
    "Its inverse is its forward"
    def inverse(self, z, c=None): return self.move(z, c, False)

class Miscounted(Coupling):
    "Its log-determinant is doubled"
    def forward(self, x, c=None):
        y, logdet = self.move(x, c, False)
        return y, 2*logdet

class Forgetful(Flow):
    "Adds up all log-determinants but the last"
    def forward(self, x, c=None):
        z, total = Flow.forward(self, x, c)
        return z, total-self.transforms[-1](self.transforms[-1].inverse(z, c)[0], c)[1]

def plant(kind, groups, at=1, layer=None, cls=Flow, cond=0):
    "A sound flow of four layers, one of which may be another"
    make = lambda ids, cls=Coupling: cls(4, ids, cond, kind, 16, 2, groups)
    layers = [ActNorm(4, groups), make([0, 1]), make([2, 3]), Permutation(4, 1), make([0, 1]), make([2, 3])]
    if layer: layers[at] = make([0, 1], layer)
    x = torch.randn(*(() if groups is None else (groups,)), 100, 4, generator=generator(4))
    flow = drawn(cls(layers, 4, None, groups))
    flow.initialise(x, torch.zeros(*x.shape[:-1], cond) if cond else None)
    return flow, x

def zero(*parameters):
    for p in parameters: p.data.zero_()

def saturate(f):
    bias = f.transforms[2].conditioner.out.bias.data
    bias[:] = 50.*(1+torch.arange(bias.shape[-1]))

DEFECTS = dict(
    nothing=({}, lambda f: None, None),
    not_inverting=(dict(layer=OneWay), lambda f: None, 'OneWay does not undo itself'),
    wrong_logdet=(dict(layer=Miscounted), lambda f: None, 'Miscounted counts its stretching wrongly'),
    wrong_sum=(dict(cls=Forgetful), lambda f: None, 'are all of them added up?'),
    saturated=({}, saturate, 'layer 2 KIND Coupling is saturated: 100%'),
    dead_output=({}, lambda f: zero(*f.transforms[4].conditioner.out.parameters()),
                 'layer 4 KIND Coupling is dead: it moves nothing'),
    dead_hidden=({}, lambda f: zero(f.transforms[4].conditioner.hidden[1].weight),
                 'layer 4 KIND Coupling is dead: it moves all rows alike'),
    nan=({}, lambda f: f.transforms[5].conditioner.out.bias.data.fill_(math.nan),
         'transforms.5.conditioner.out.bias is not finite'),
    not_started=({}, lambda f: f.transforms[0].initialised.fill_(False), 'layer 0 ActNorm was never started'))

@pytest.mark.parametrize('kind,groups', list(itertools.product(('affine', 'spline'), (None, 3))))
@pytest.mark.parametrize('name', DEFECTS)
def test_defect(name, kind, groups):
    how, spoil, text = DEFECTS[name]
    flow, x = plant(kind, groups, **how)
    spoil(flow)
    found = check_flow(flow, x).problems()
    if text is None: assert found == []
    else: assert any(text.replace('KIND', kind) in p for p in found), found

def test_mask_gaps():
    x = torch.randn(50, 4, generator=generator())
    c = lambda *ids: Coupling(4, list(ids))
    never = check_flow(drawn(Flow([c(0, 1), c(2)], 4)), x)
    assert any(p.startswith('never moved: number 3;') for p in never.problems())
    alone = Flow([ActNorm(4), c(0, 1), c(2)], 4); alone.initialise(x)
    assert any(p.startswith('moved, but never as others say: number 3;') for p in check_flow(alone, x).problems())
    shuffle = Permutation(4, 2)         # position 3 of the second coupling is another number of the data
    both = drawn(Flow([c(0, 1), shuffle, c(2, 3)], 4))
    moved = {0, 1, *shuffle.order[2:].tolist()}
    assert set(check_flow(both, x).coverage.amax(0).nonzero()[:, 0].tolist()) == moved

def test_one_group_only():
    flow, x = plant('affine', 3)
    zero(flow.transforms[1].conditioner.out.weight.data[1:2], flow.transforms[1].conditioner.out.bias.data[1:2])
    assert any('moves nothing in groups [1]' in p for p in check_flow(flow, x).problems())

def test_lacking_groups_are_not_dead():
    flow, (x, c) = stack(**CASES['lacking']), inputs(**CASES['lacking'])
    flow.initialise(x, c)
    assert not any(l.dead for l in check_flow(flow, x, c).layers)   # group 3 has one number of six

def test_deaf_to_the_condition():
    flow, x = plant('affine', None, cond=2)
    c = torch.randn(100, 2, generator=generator(5))
    assert check_flow(flow, x, c).problems() == []
    for t in flow.transforms:
        if isinstance(t, Coupling): zero(t.conditioner.hidden[0].weight.data[-2:])
    assert any('the condition changes nothing' in p for p in check_flow(flow, x, c).problems())

def test_first_bad_layer_is_named():
    flow, x = plant('affine', None)
    flow.transforms[1].conditioner.out.bias.data.fill_(math.inf)
    found = [p for p in check_flow(flow, x).problems() if 'makes NaN' in p]
    assert len(found) == 1 and 'layer 1 ' in found[0]

def test_check_leaves_the_flow_alone():
    flow, x = plant('spline', None)
    flow.train()
    before = {k: v.clone() for k, v in flow.state_dict().items()}
    check_flow(flow, x)
    assert flow.training and all((v == before[k]).all() for k, v in flow.state_dict().items())
    assert all(p.grad is None for p in flow.parameters())

def test_record_is_json_even_when_broken():
    flow, x = plant('affine', None)
    flow.transforms[1].conditioner.out.bias.data.fill_(math.nan)
    report = check_flow(flow, x)
    json.loads(json.dumps(report.record(), allow_nan=False))
    assert 'is not finite' in str(report)
    for name in PANELS: report.figure(name)

# ---- the prior around a flow

class SmallFlowPrior(FlowPrior):
    "One shift and two couplings"
    default_epochs = 2
    def make_flow(self, dim):
        half = list(range(dim//2)), list(range(dim//2, dim))
        return Flow([ActNorm(dim), *(Coupling(dim, h, hidden=16) for h in half)], dim, self.base_of(5.))

@pytest.fixture(scope='module')
def fitted(): return SmallFlowPrior('body').fit(some_poses(600, moving=(1, 2, 4), seed=1), batch_size=64)

def test_log_prob_counts_the_units(fitted):
    poses = some_poses(20, moving=(1, 2, 4), seed=2)
    x = fitted.coordinates(poses)
    peer = fitted.flow.log_prob(x/fitted.coordinates.scale)-fitted.coordinates.scale.log().sum()
    assert torch.allclose(fitted.log_prob(poses), peer, atol=1e-5)

def test_checkpoint_and_folder(fitted, tmp_path):
    import pytorch_lightning as pl
    poses = some_poses(200, moving=(1, 2, 4), seed=3)
    loader = torch.utils.data.DataLoader(poses, 50)
    prior = SmallFlowPrior('body').fit_coordinates([poses])
    trainer = pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False, accelerator='cpu', default_root_dir=tmp_path)
    trainer.fit(prior, loader)
    trainer.save_checkpoint(tmp_path/'some.ckpt')
    said = []
    for source in (tmp_path/'some.ckpt', fitted.save_pretrained(tmp_path/'prior'), fitted):
        report = debug_flow(source, poses, tmp_path/'out', say=said.append)
        assert report.round_trip < 1e-5 and not report.broken
    assert len(said) == 3 and 'round trip' in said[0]
    assert json.loads((tmp_path/'out/flow.json').read_text())['problems'] == report.problems()
    assert all((tmp_path/f'out/flow_{n}.png').stat().st_size > 1000 for n in PANELS)

@pytest.mark.parametrize('content, text', [(dict(state_dict={}), 'expected a checkpoint that posebook wrote'),
    (dict(state_dict={}, posebook=dict(model='Nothing', module='x')), 'unknown model')])
def test_foreign_file(content, text, tmp_path):
    torch.save(content, tmp_path/'x.ckpt')
    with pytest.raises(PriorError, match=text): debug_flow(tmp_path/'x.ckpt')

def test_no_flow():
    from posebook.gaussian import GaussianPrior
    prior = GaussianPrior('diagonal').fit(some_poses(50, moving=(1, 2), seed=0))
    with pytest.raises(PriorError, match='GaussianPrior has no flow'): debug_flow(prior)
