"""`posebook.tasks`: the ground, results, the board and its files, the command"""
import json, math
import numpy as np, pytest, torch
from posebook.coordinates import PriorError
from posebook.gaussian import GaussianPrior
from posebook.metrics import bootstrap_ci
from posebook.poses import embedded_data
from posebook.scoreboard import recording_ids
from posebook.tasks import (METRICS, NOISE, TASKS, Entrant, Result, TaskBoard, compare_tasks, even, make_ground, run_tasks, task)

@pytest.fixture(scope='module')
def parts(): return embedded_data().split(by='sequence', fractions=(.5, .15, .35), seed=0)

@pytest.fixture(scope='module')
def priors(parts):
    train = torch.as_tensor(parts['train'].poses).float()
    return {k: GaussianPrior(k, joints='body').fit(train) for k in ('diagonal', 'mixture')}

@pytest.fixture(scope='module')
def board(priors, parts): return compare_tasks(priors, parts['test'], ['complete'], windows=2, length=10, poses=30, samples=300)


# ---- ground

def test_recordings_get_even_shares():
    ids = torch.tensor([0]*3+[1]*50+[2]*50)
    rows = even(list(range(103)), ids, 23)
    assert len(rows) == 23 and rows == sorted(set(rows)) and torch.bincount(ids[rows]).tolist() == [3, 10, 10]
    assert even(list(range(103)), ids, 1000) == list(range(103))

def test_windows_stay_within_a_recording(parts):
    g = make_ground(parts['test'], 8, 20, 30)
    flat = {tuple(np.round(p.flatten(), 5)): i for i, p in enumerate(parts['test'].poses)}
    for w, group in zip(g.windows, g.window_groups):
        rows = [flat[tuple(np.round(p.flatten().numpy(), 5))] for p in w]
        assert len({int(parts['test'].sequence[r]) for r in rows}) == 1
        assert recording_ids(parts['test'])[rows[0]] == group
    assert (g.paths[:, 0] == 0).all() and g.paths.abs().max() > 0

def test_the_same_seed_is_the_same_noise(parts):
    g = make_ground(parts['test'], 2, 10, 10, seed=3)
    assert torch.equal(torch.randn(5, generator=g.generator), torch.randn(5, generator=g.generator))

def test_too_short_recordings_are_said(parts):
    with pytest.raises(PriorError, match='length'): make_ground(parts['test'], length=10**5)


# ---- tasks

def test_metrics_have_units():
    assert set(TASKS) >= {'denoise', 'complete', 'fit2d'} and all(f.main in METRICS for f in TASKS.values())
    assert NOISE == (.02, .04, .1)

def test_none_takes_part_in_every_setting(board):
    assert board.entrants == ['none', 'diagonal', 'mixture'] and len(board.settings('complete')) == 7
    assert len(board.results) == 21 and board.reference == 'mixture'

def test_an_entrant_does_not_change_others(board, priors, parts):
    alone = compare_tasks({'diagonal': priors['diagonal']}, parts['test'], ['complete'], windows=2, length=10, poses=30, samples=300)
    for s in board.settings('complete'):
        a, b = (x.find('complete', s, 'diagonal').errors for x in (board, alone))
        assert all(torch.equal(a[k], b[k]) for k in a)

def test_denoising_meets_the_same_noise(priors, parts):
    b = compare_tasks({'diagonal': priors['diagonal']}, parts['test'], ['denoise'], windows=2, length=12, poses=5, samples=300)
    errors = {s: b.find('denoise', s, 'diagonal').errors for s in b.settings('denoise')}
    assert errors['20 mm']['MPJPE'].mean() < errors['40 mm']['MPJPE'].mean() < errors['100 mm']['MPJPE'].mean()
    assert set(errors['20 mm']) == {'MPJPE', 'PA-MPJPE', 'rotation', 'acceleration'}
    assert (errors['40 mm']['PA-MPJPE'] <= errors['40 mm']['MPJPE']+1e-3).all()

def test_strange_tasks_are_refused(priors, parts):
    with pytest.raises(PriorError, match='juggle'): compare_tasks(priors, parts['test'], ['juggle'])
    with pytest.raises(PriorError, match='at least one'): compare_tasks({}, parts['test'])

def test_a_task_plugs_in(priors, parts):
    @task('zero', 'rotation')
    def zero(entrants, ground):
        for e in entrants: yield Result('zero', 'all', e.name, dict(rotation=torch.zeros(len(ground.poses))), ground.pose_groups, 0.)
    try: b = compare_tasks(priors, parts['test'], ['zero'], windows=1, length=5, poses=9)
    finally: del TASKS['zero']
    assert b.tasks == ['zero'] and all(r.errors['rotation'].sum() == 0 for r in b.results)


# ---- the board

def made_up():
    g = torch.tensor([0, 0, 1, 1, 2, 2])
    r = lambda n, v: Result('denoise', '20 mm', n, {'MPJPE': torch.tensor(v), 'PA-MPJPE': torch.tensor(v), 'rotation': torch.tensor(v),
                                                   'acceleration': torch.tensor(v)}, g, .01)
    hard = [1., 2, 30, 31, 7, 8]
    return TaskBoard([r('none', hard), r('mixture', [h-1 for h in hard]), r('flow', [h-1.5 for h in hard])], 'mixture',
                     dict(windows=6, frames=2, poses=0, recordings=3))

def test_differences_are_paired():
    b = made_up()
    d = b.paired(b.find('denoise', '20 mm', 'flow'), 'MPJPE')
    assert d.mean == pytest.approx(-.5) and d.low == pytest.approx(-.5) and d.high == pytest.approx(-.5)
    assert b.paired(b.find('denoise', '20 mm', 'mixture'), 'MPJPE') is None
    assert b.wins('denoise') == {'20 mm': ['flow', 'mixture', 'none']}

def test_means_draw_recordings():
    b = made_up()
    r = b.find('denoise', '20 mm', 'none')
    assert b.mean(r, 'MPJPE') == bootstrap_ci(r.errors['MPJPE'], r.groups) and b.mean(r, 'MPJPE').high > 25

def test_tables_show_rotations_beside_positions():
    b = made_up()
    for text in (b.table(), b.table(markdown=True)):
        assert 'rotation (deg)' in text and 'MPJPE (mm)' in text and '-0.5 [-0.5, -0.5]' in text and '3 held-out' in text
    assert b.table(markdown=True).startswith('| setting')

def test_files(tmp_path):
    b = made_up()
    where = b.save(tmp_path/'board')
    assert sorted(p.name for p in where.iterdir()) == ['tasks.json', 'tasks.md', 'tasks.png', 'tasks.txt']
    kept = json.loads((where/'tasks.json').read_text())
    assert kept['format'] == 'posebook.tasks' and len(kept['rows']) == 3 and kept['rows'][1]['difference'] is None
    b.save(where) # replaces itself
    (tmp_path/'other').mkdir(); (tmp_path/'other'/'x').write_text('mine')
    with pytest.raises(PriorError, match='another name'): b.save(tmp_path/'other')

def test_one_recording_has_no_interval(tmp_path):
    r = Result('denoise', '20 mm', 'none', {'MPJPE': torch.tensor([1., 2.])}, torch.zeros(2), .1)
    b = TaskBoard([r], 'none')
    assert math.isnan(b.mean(r, 'MPJPE').low)
    json.loads((b.save(tmp_path/'b')/'tasks.json').read_text()) # null, not NaN

def test_samples_are_drawn_once(priors):
    e = Entrant('mixture', priors['mixture'], 50)
    assert e.cloud is e.cloud and len(e.cloud.poses) == 50 and Entrant('none').cloud is None


# ---- from names to files

def test_run_leaves_out_what_was_seen(tmp_path, parts, priors):
    from posebook.scoreboard import fit_run
    saved = fit_run(GaussianPrior('diagonal', joints='body'), parts['train'], parts['val'])
    saved.save_pretrained(tmp_path/'mine')
    said = []
    b = run_tasks([str(tmp_path/'mine')], ['complete'], fit=['gaussian:full'], output=tmp_path/'out',
                  say=lambda *w: said.append(' '.join(map(str, w))), windows=1, length=10, poses=12, samples=200)
    assert set(b.entrants) == {'none', 'gaussian:full', 'mine'} and (tmp_path/'out'/'tasks.md').exists()
    held = {p['group'] for n in ('val', 'test') for p in parts[n].provenance}
    assert b.about['recordings'] <= len(held) and any('held out' in s or 'left out' in s for s in said)

def test_command(tmp_path, capsys):
    from posebook.cli import main
    assert main(['compare', 'gaussian:diagonal', '--tasks', 'complete', '--output', str(tmp_path/'out')]) == 0
    assert 'best of 10' in capsys.readouterr().out and (tmp_path/'out'/'tasks.png').exists()
