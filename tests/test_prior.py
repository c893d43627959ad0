"""`posebook.prior`: coordinates, moments, weights on disk, and what is refused"""
import json, math
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from posebook.gaussian import GaussianPrior
from posebook.coordinates import Moments, PriorError, check_poses, independent_directions
from posebook.prior import CONFIG, WEIGHTS, PosePrior, Reservoir


def some_poses(n=400, moving=(1, 2, 4, 16), seed=0, sigma=.3):
    "Random poses in which only some joints move"
    poses = torch.zeros(n, 55, 3)
    poses[:, list(moving)] = sigma*torch.randn(n, len(moving), 3, generator=torch.Generator().manual_seed(seed))
    return poses


@pytest.mark.parametrize('poses, says', [
    (torch.zeros(4, 10, 3), 'found (4, 10, 3)'), (torch.zeros(55, 3), '(B, 55, 3)'), (torch.zeros(0, 55, 3), 'at least one'),
    (torch.full((2, 55, 3), math.inf), 'NaN or infinity'), (np.zeros((3, 52, 3)), 'convert_pose')])
def test_bad_poses_are_named(poses, says):
    with pytest.raises(PriorError) as e: check_poses(poses)
    assert says in str(e.value)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.floats(-1e3, 1e3))
def test_moments_do_not_depend_on_the_batches(sizes, shift):
    x = torch.randn(sum(sizes), 3, generator=torch.Generator().manual_seed(1)).double()+shift
    m = Moments(3)
    for batch in x.split(sizes): m.update(batch)
    torch.testing.assert_close(m.mean, x.mean(0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(m.covariance, torch.cov(x.T, correction=0).reshape(3, 3), rtol=1e-6, atol=1e-8)


def test_weighted_moments():
    x, w = torch.randn(50, 2).double(), torch.rand(50).double()
    m = Moments(2).update(x[:20], w[:20]).update(x[20:], w[20:])
    mean = (w[:, None]*x).sum(0)/w.sum()
    torch.testing.assert_close(m.mean, mean)
    torch.testing.assert_close(m.covariance, ((x-mean).T*w)@(x-mean)/w.sum())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_coordinates_invert(seed):
    "P L = 1, P has orthonormal rows, and what follows is rebuilt, for random linear dependencies"
    g = torch.Generator().manual_seed(seed)
    free = torch.randn(300, 5, generator=g).double()
    v = free @ torch.randn(5, 12, generator=g).double()*.2
    cov = Moments(12).update(v).covariance
    P, L = independent_directions(cov, 1e-3)
    assert len(P) <= 5
    torch.testing.assert_close(P @ L, torch.eye(len(P)).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(P @ P.T, torch.eye(len(P)).double(), atol=1e-6, rtol=0)
    d = v-v.mean(0)
    assert (d - d@P.T@L.T).abs().max() < .05


def test_energy_charges_for_joints_that_never_move():
    poses = some_poses()
    prior = GaussianPrior('diagonal').fit(poses)
    twisted = poses[:1].clone(); twisted[0, 30, 0] = .5
    assert torch.equal(prior.log_prob(twisted), prior.log_prob(poses[:1]))
    assert prior.energy(twisted) > prior.energy(poses[:1]) + 10


def test_energy_is_differentiable_everywhere_a_fit_may_start():
    prior = GaussianPrior('mixture', components=3).fit(some_poses())
    start = torch.zeros(2, 55, 3, requires_grad=True)
    prior.energy(start).sum().backward()
    assert torch.isfinite(start.grad).all()


def test_reservoir_is_even():
    r = Reservoir(1000, seed=3)
    for b in torch.arange(20_000).split(333): r.update(b)
    counts = torch.histc(r.rows.float(), 4, 0, 20_000)
    assert len(r.rows) == 1000 and (counts-250).abs().max() < 70


def test_caller_random_state_is_left_alone():
    torch.manual_seed(5); expected = torch.rand(3)
    torch.manual_seed(5); GaussianPrior('diagonal', method='gradient').fit(some_poses(60), max_epochs=1)
    assert torch.equal(torch.rand(3), expected)


# files ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def saved(tmp_path):
    return GaussianPrior('full').fit(some_poses()).save_pretrained(tmp_path/'p', card={'data': {'train': ['x']}})


def edit(folder, **changes):
    config = json.loads((folder/CONFIG).read_text()) | changes
    (folder/CONFIG).write_text(json.dumps(config))


def test_round_trip(saved):
    prior = PosePrior.from_pretrained(saved)
    assert type(prior) is GaussianPrior and prior.card['data']['train'] == ['x'] and not prior.training
    again = prior.save_pretrained(saved.parent/'q')
    assert (again/WEIGHTS).read_bytes() == (saved/WEIGHTS).read_bytes()


@pytest.mark.parametrize('damage, says', [
    (lambda f: (f/WEIGHTS).unlink(), 'complete safetensors'),
    (lambda f: (f/WEIGHTS).write_bytes(b''), 'complete safetensors'),
    (lambda f: (f/WEIGHTS).write_bytes((f/WEIGHTS).read_bytes()[:-9]), 'complete safetensors'),
    (lambda f: (f/WEIGHTS).write_bytes(b'\x80\x04\x95cos\nsystem\n'), 'complete safetensors'),
    (lambda f: (f/CONFIG).write_text('{'), 'expected JSON'),
    (lambda f: (f/CONFIG).write_text('[]'), "key 'model'"),
    (lambda f: edit(f, model='Nonsense'), "unknown model 'Nonsense'"),
    (lambda f: edit(f, module='os'), None),
    (lambda f: edit(f, module='posebook.nothing'), 'no module posebook.nothing'),
    (lambda f: edit(f, hparams={'kind': 'full', 'size': 3}), 'hparams'),
    (lambda f: edit(f, hparams={'kind': 'diagonal'}), 'does not fit'),
])
def test_damaged_folders_are_refused(saved, damage, says):
    damage(saved)
    if says is None: assert isinstance(PosePrior.from_pretrained(saved), GaussianPrior)  # 'os' is never imported for it
    else:
        with pytest.raises(PriorError) as e: PosePrior.from_pretrained(saved)
        assert says in str(e.value)


def test_save_never_replaces_something_else(saved, tmp_path):
    prior = PosePrior.from_pretrained(saved)
    (tmp_path/'thesis').mkdir(); (tmp_path/'thesis'/'chapter1.tex').write_text('years of work')
    with pytest.raises(PriorError, match='not a saved prior'): prior.save_pretrained(tmp_path/'thesis')
    assert (tmp_path/'thesis'/'chapter1.tex').exists()


def test_a_failing_save_leaves_nothing(saved, tmp_path, monkeypatch):
    prior = PosePrior.from_pretrained(saved)
    def full(*a, **k): raise OSError('disk full')
    monkeypatch.setattr('posebook.saved_models.save_file', full)
    with pytest.raises(OSError): prior.save_pretrained(tmp_path/'new')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['p']


def test_wrong_kind_of_prior(saved):
    class Other(PosePrior): pass
    with pytest.raises(PriorError, match='holds a GaussianPrior, not a Other'): Other.from_pretrained(saved)
