"""`posebook.scoreboard` and the parts of `posebook.scores` that it rests on: measures, intervals, rows, files"""
import json, math, sys
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from posebook.coordinates import Moments, PriorError
from posebook.gaussian import GaussianPrior
from posebook.metrics import bootstrap_ci, precision_recall_coverage
from posebook.poses import embedded_data
from posebook.prior import PosePrior
from posebook.scoreboard import (COLUMNS, FLOWS, WARNING, Scoreboard, ZukoPrior, compare, fit_run, load_rows, make_prior,
                                 paired_difference, recording_ids, run_compare, unseen)
from posebook.scores import HeldOut, Reference, crossed_ci, log_ratio, pose_nll, resampled_means, same_measure, score_prior


@pytest.fixture(scope='module')
def parts(): return embedded_data().split(by='sequence', fractions=(.5, .15, .35), seed=0)

@pytest.fixture(scope='module')
def full(parts): return fit_run(GaussianPrior('full', joints='body'), parts['train'])

def bent(n=300, seed=0):
    "Poses whose two hips move together along a curve"
    g, poses = torch.Generator().manual_seed(seed), torch.zeros(n, 55, 3)
    poses[:, 1, 0] = .4*torch.randn(n, generator=g)
    poses[:, 2, 1] = poses[:, 1, 0]**2+.05*torch.randn(n, generator=g)
    return poses


# ---- intervals

def test_one_seed_without_groups_to_share_is_the_plain_bootstrap():
    x, g = torch.randn(500, generator=torch.Generator().manual_seed(0)), np.arange(500)//10
    ours, theirs = crossed_ci(x[None], g), bootstrap_ci(x, g)
    assert ours.mean == pytest.approx(theirs.mean) and ours.low == pytest.approx(theirs.low, abs=.02)

def test_what_cannot_be_known_is_nan():
    assert math.isnan(crossed_ci([[1., 2.]], [0, 0]).low)      # one recording
    assert math.isnan(crossed_ci([[1.]]).low)                  # one seed
    assert not math.isnan(crossed_ci([[1.], [2.]]).low)

def test_groups_may_differ_between_seeds():
    values, groups = np.array([[1., 1, 2, 2], [2., 2, 1, 1]]), np.array([[0, 0, 1, 1], [1, 1, 0, 0]])
    means = resampled_means(values, groups)
    assert means.min() == 1 and means.max() == 2 and abs(means.mean()-1.5) < .05

@settings(max_examples=20)
@given(st.floats(-5, 5), st.integers(0, 9))
def test_a_pair_shares_its_recordings(gap, seed):
    "The doubt of the recordings cancels in a difference; the doubt of the gap itself stays"
    g = torch.Generator().manual_seed(seed)
    hard, clip = 10*torch.randn(8, generator=g).repeat_interleave(20), torch.arange(160)//20
    d = paired_difference((hard+gap)[None], hard[None], clip)
    assert d.low == pytest.approx(gap, abs=1e-4) and d.high == pytest.approx(gap, abs=1e-4)

def test_more_runs_widen_the_interval():
    x, clip = torch.randn(1, 200, generator=torch.Generator().manual_seed(0)), torch.arange(200)//20
    shifted = torch.cat([x-1, x, x+1])
    a, b = crossed_ci(x, clip), crossed_ci(shifted, clip)
    assert b.high-b.low > 1.5*(a.high-a.low) and a.mean == pytest.approx(b.mean)


# ---- base measure

def test_turned_coordinates_are_brought_together(full):
    turned = GaussianPrior('full', joints='body')
    turned.load_weights(full.state_dict())
    c, n = turned.coordinates, full.dim
    A = torch.eye(n)+.2*torch.randn(n, n, generator=torch.Generator().manual_seed(0))
    c.extract, c.rebuild = A@c.extract, c.rebuild@torch.linalg.inv(A)
    assert log_ratio(full, turned) == pytest.approx(torch.linalg.slogdet(A).logabsdet.item(), abs=1e-3)
    assert log_ratio(full, turned) == pytest.approx(-log_ratio(turned, full), abs=1e-3)

def test_other_joints_other_directions_other_layouts_do_not_compare(full, parts):
    train = torch.tensor(parts['train'].poses)
    for other in (dict(joints='root+body'), dict(joints='body', tolerance=.1)):
        prior = GaussianPrior('diagonal', **other).fit(train)
        assert not same_measure(full, prior) and pose_nll(prior, train[:20], full) is None

def test_a_volume_of_the_coordinates_is_counted(full):
    poses = bent(30)
    plain = pose_nll(full, poses)
    full.coordinates.log_volume = lambda p: torch.full((len(p),), 2.)
    try: assert torch.allclose(pose_nll(full, poses), plain+2)
    finally: del full.coordinates.log_volume


# ---- references

@settings(max_examples=15)
@given(st.integers(5, 40), st.integers(5, 60), st.integers(1, 4), st.integers(0, 99))
def test_hits_are_those_of_the_metrics(n, m, k, seed):
    g = torch.Generator().manual_seed(seed)
    real, fake = (.5*torch.randn(i, 2, 3, generator=g) for i in (n, m))
    hits, whole = Reference(real, torch.arange(n), k).hits(fake), precision_recall_coverage(real, fake, k)
    share = lambda name: hits[name].double().mean().item()
    np.testing.assert_allclose([share('inside'), share('recalled'), share('covered')],
                               [whole.precision, whole.recall, whole.coverage], atol=1e-12)

def test_every_seed_draws_other_poses_and_every_prior_meets_the_same():
    held = HeldOut(bent(200))
    a, b = held.reference([1, 2], 0), held.reference([1, 2], 1)
    assert len(a.poses) == 50 and not torch.equal(a.poses, b.poses) and held.reference([1, 2], 0) is a

def test_real_poses_score_well_and_noise_does_not(full, parts):
    class Exact(PosePrior):
        def sample_x(self, n, generator=None): return self.x[torch.randperm(len(self.x), generator=generator)[:n]]
    poses = torch.tensor(parts['test'].poses)
    exact = Exact(joints='body').fit_coordinates([poses])
    exact.x = exact.coordinates(poses)
    s = score_prior(exact, poses, torch.tensor(parts['test'].sequence))
    assert s.precision.mean > .8 and s.recall.mean > .8 and s.nll is None and s.bpd is None
    assert s.precision.low > score_prior(full, poses).precision.high


# ---- zuko

@pytest.mark.parametrize('flow', FLOWS)
def test_flows_invert_seed_and_survive_a_folder(flow, tmp_path):
    prior = ZukoPrior(flow, joints=[1, 2], transforms=2, hidden=16).fit(bent(), batch_size=100, max_epochs=2)
    again = PosePrior.from_pretrained(prior.save_pretrained(tmp_path/'flow'))
    draw = lambda p: p.sample(9, generator=torch.Generator().manual_seed(3))
    assert torch.equal(draw(prior), draw(again))
    with torch.no_grad():
        assert torch.equal(prior.log_prob(bent()), again.log_prob(bent()))
        x = prior.coordinates(bent())
        assert torch.allclose(prior.flow().transform.inv(prior.flow().transform(x)), x, atol=1e-3)

def test_scale_is_counted():
    "The density of poses twice as large is that of the poses, less log 2 a coordinate"
    small = ZukoPrior('nice', joints=[1, 2], transforms=1, hidden=8)
    small.coordinates.fit(Moments(6).update(.5*bent()[:, [1, 2]].flatten(1))); small.build(small.dim)
    large = ZukoPrior('nice', joints=[1, 2], transforms=1, hidden=8)
    large.coordinates.fit(Moments(6).update(bent()[:, [1, 2]].flatten(1))); large.build(large.dim)
    large.flow.load_state_dict(small.flow.state_dict())
    with torch.no_grad(): gap = small.log_prob(.5*bent())-large.log_prob(bent())
    assert torch.allclose(gap, torch.full_like(gap, small.dim*math.log(2)), atol=1e-3)

def test_without_zuko_the_error_says_where_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'zuko', None)
    with pytest.raises(PriorError, match=r'posebook\[dev\]'): ZukoPrior(joints=[1, 2]).fit(bent(), max_epochs=1)

def test_training_repeats_and_leaves_the_global_state_alone(parts):
    before = torch.get_rng_state()
    a, b = (fit_run(ZukoPrior('nice', joints='body', transforms=2, hidden=8), parts['train'], parts['val'], max_epochs=3)
            for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(v, w) for v, w in zip(a.state_dict().values(), b.state_dict().values()))
    assert math.isfinite(a.level) and a.card['data']['train'] and a.card['data']['val']


# ---- the board

@pytest.fixture(scope='module')
def board(full, parts):
    runs = [fit_run(ZukoPrior('nice', joints='body', transforms=2, hidden=8), parts['train'], seed=i, max_epochs=2) for i in (0, 1)]
    return compare({'full|x': full, 'nice': runs}, parts['test'], seeds=(0, 1, 2))

def test_rows_count_runs_and_seeds(board):
    assert [r.seeds for r in board.rows] == [3, 6] and board.rows[0].difference is None
    d = board.rows[1].difference
    assert d.mean == pytest.approx(board.rows[1].nll.mean-board.rows[0].nll.mean, abs=1e-3)
    assert d.low < d.mean < d.high and board.rows[1].seconds.high > 0

def test_the_table_says_everything(board):
    text = board.table()
    assert WARNING in text and board.measure in text and all(c in text for c in COLUMNS)
    lines = board.table(markdown=True).splitlines()[:4]
    assert {l.replace(r'\|', '').count('|') for l in lines} == {len(COLUMNS)+3}

def test_saving_is_whole_or_not_at_all(board, tmp_path, monkeypatch):
    (tmp_path/'other').mkdir(); (tmp_path/'other'/'thesis.txt').write_text('mine')
    with pytest.raises(PriorError, match='not a scoreboard'): board.save(tmp_path/'other')
    def broken(self): raise OSError('disk full')
    with monkeypatch.context() as m:
        m.setattr(Scoreboard, 'figure', broken)
        with pytest.raises(OSError): board.save(tmp_path/'new')
    assert [p.name for p in tmp_path.iterdir()] == ['other']
    record = json.loads((board.save(tmp_path/'new')/'scoreboard.json').read_text(), parse_constant=pytest.fail)
    assert record['rows'][1]['prior'] == 'nice' and record['rows'][0]['seconds']['low'] is None

def test_nothing_that_was_seen_is_scored(full, parts):
    held = unseen(embedded_data(), [full])
    assert not {p['group'] for p in held.provenance} & set(full.card['data']['train'])
    assert len(held) == len(parts['val'])+len(parts['test'])

def test_the_same_recording_in_two_files_counts_once(parts):
    ids = recording_ids(parts['test'])
    assert len(ids) == len(parts['test']) and len(ids.unique()) == len({p['group'] for p in parts['test'].provenance})

def test_coordinates_that_move_only_between_recordings_are_noted():
    poses = torch.tensor(embedded_data().poses).repeat(2, 1, 1)
    poses[:len(poses)//2, 20, 2], poses[len(poses)//2:, 20, 1] = .2, .2
    halves = torch.arange(len(poses))//(len(poses)//2)
    prior = GaussianPrior('diagonal', joints='body').fit(poses)
    board = compare({'x': prior}, poses, halves, n_samples=50)
    assert len(board.moving) == 2 and max(board.moving) < prior.dim and 'Within one recording' in board.table()
    one = torch.zeros(len(poses))
    assert 'Within one recording' not in compare({'x': prior}, poses, one, n_samples=50).table()

@pytest.mark.parametrize('args, says', [
    (dict(priors=[]), 'nothing to compare'), (dict(priors=['nobody']), 'no prior at nobody'),
    (dict(priors=['a=nobody,none']), 'no prior at nobody'), (dict(priors=[], fit=['gaussian']), 'gaussian:full'),
    (dict(priors=[], fit=['zuko:glow']), 'zuko:maf')])
def test_mistakes_are_named(args, says):
    with pytest.raises(PriorError, match=says): run_compare(**args)

def test_rows_by_name(full, tmp_path):
    a, b = full.save_pretrained(tmp_path/'a'/'prior'), full.save_pretrained(tmp_path/'b')
    rows = load_rows([str(a), f'both={a},{b}', f'x={b}'])
    assert {n: len(r) for n, r in rows.items()} == {'a': 1, 'both': 2, 'x': 1}
    with pytest.raises(PriorError, match='two rows'): load_rows([str(a), str(a)])

def test_an_empty_row_is_refused(parts):
    with pytest.raises(PriorError, match='at least one prior'): compare({'none': []}, parts['test'])
    with pytest.raises(PriorError): make_prior('zuko')
