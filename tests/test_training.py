"""Training through the command: killed and resumed, two processes, layered settings, and checkpoints that are refused"""
import csv, importlib, json, os, pickle, signal, subprocess, sys, time
import numpy as np, pytest, torch, yaml
from safetensors.torch import load_file
from posebook.cli import main
from posebook.coordinates import PriorError
from posebook.gaussian import GaussianPrior
from posebook.runs import MODELS, layers, make_cli
from posebook.training import BEST, LAST, check_checkpoint, read_checkpoint

SCRIPT = 'import sys\nfrom posebook.cli import main\nif __name__ == "__main__": sys.exit(main())\n'
SMALL = '''
model: {kind: full, method: gradient, lr: 0.02}
data: {fps: 10, fractions: [0.6, 0.2, 0.2], batch_size: 64}
callbacks: {ema: 0.95, report_every: 2, report_poses: 64, save_steps: 3}
trainer: {max_epochs: 8, accelerator: cpu, enable_progress_bar: false, enable_checkpointing: true, logger: false,
          log_every_n_steps: 1}
'''


@pytest.fixture(scope='module')
def shop(tmp_path_factory):
    "A folder with the command as a script, small settings, and one finished run"
    folder = tmp_path_factory.mktemp('training')
    (folder/'posebook_script.py').write_text(SCRIPT)
    (folder/'small.yaml').write_text(SMALL)
    assert fit(folder, 'whole') == 0
    return folder


def options(folder, name, *more): 
    return ['fit', 'gaussian', '-c', 'gradient', '-c', str(folder/'small.yaml'), '--output', str(folder/name), *map(str, more)]

def fit(folder, name, *more): return main(options(folder, name, *more))

def start(folder, *args):
    "The command in a process of its own"
    env = os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, str(folder/'posebook_script.py'), *args], env=env, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)

def weights(run): return load_file(run/'prior'/'model.safetensors')
def curve(run): return (run/'metrics.csv').read_text()
def losses(run): return [float(r['loss']) for r in csv.DictReader((run/'metrics.csv').open()) if r['loss']]
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# the same end ----------------------------------------------------------------------------------------------------
def test_killed_and_resumed_is_the_same_run(shop):
    long = ('--trainer.max_epochs', '30', '--callbacks.patience', '0')
    p, last = start(shop, *options(shop, 'killed', *long)), shop/'killed'/LAST
    while not last.exists() and p.poll() is None: time.sleep(.01)
    p.send_signal(signal.SIGKILL); p.communicate()
    assert p.returncode == -signal.SIGKILL and not (shop/'killed'/'prior').exists()
    assert 0 < read_checkpoint(last)['global_step'] < 30*4
    assert main(['fit', '--output', str(shop/'killed')]) == 1    # neither silently again nor silently on
    assert main(['fit', '--output', str(shop/'killed'), '--resume']) == 0
    assert fit(shop, 'long', *long) == 0
    assert same(weights(shop/'killed'), weights(shop/'long')) and curve(shop/'killed') == curve(shop/'long')


def test_two_processes_end_where_one_does(shop):
    "Batches of 32 in each of two processes are batches of 64; the odd last batch, of which a row repeats, is left out"
    even = ('--trainer.limit_train_batches', '3')
    p = start(shop, *options(shop, 'ddp', *even, '--trainer.strategy', 'ddp', '--trainer.devices', '2', '--data.batch_size', '32'))
    assert fit(shop, 'one', *even) == 0
    out, err = p.communicate(timeout=120)
    assert p.returncode == 0, err[-2000:]
    assert losses(shop/'one') == pytest.approx(losses(shop/'ddp'), abs=1e-3)
    a, b = weights(shop/'one'), weights(shop/'ddp')
    assert max((a[k]-b[k]).abs().max() for k in a) < 1e-3
    read = lambda name: json.loads((shop/name/'metrics.json').read_text())
    assert read('one')['val']['nll'] == pytest.approx(read('ddp')['val']['nll'], abs=1e-3)
    assert read('ddp')['training']['processes'] == 2


def test_ddp_from_python_is_refused(shop, capsys):
    assert fit(shop, 'nope', '--trainer.strategy', 'ddp', '--trainer.devices', '2') == 1
    assert 'in a shell' in capsys.readouterr().err


def test_a_run_repeats_from_its_folder(shop):
    assert main(['fit', '--from', str(shop/'whole'), '--output', str(shop/'again')]) == 0
    assert curve(shop/'again') == curve(shop/'whole') and same(weights(shop/'again'), weights(shop/'whole'))
    assert main(['fit', '-c', str(shop/'whole'), '--output', str(shop/'again')]) == 0    # over the same settings: the same
    assert curve(shop/'again') == curve(shop/'whole')


def test_another_fingerprint_or_version_is_said(shop, capsys):
    copy = shop/'old'; copy.mkdir()
    record = json.loads((shop/'whole'/'run.json').read_text())
    record['versions']['torch'], record['data']['fingerprint'] = '1.0', 'abc'
    (copy/'run.json').write_text(json.dumps(record))
    (copy/'config.yaml').write_text((shop/'whole'/'config.yaml').read_text())
    assert main(['fit', '--from', str(copy), '--output', str(shop/'new'), '--trainer.max_epochs', '1']) == 0
    err = capsys.readouterr().err
    assert 'trained on other data' in err and 'torch 1.0, now' in err
    assert main(['fit', '--output', str(copy), '--resume', '--ckpt-path', str(shop/'whole'/LAST)]) == 1
    assert 'cannot be continued' in capsys.readouterr().err


# what surrounds a run --------------------------------------------------------------------------------------------
def test_tensorboard_has_scalars_and_samples(shop):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    assert fit(shop, 'board', '--trainer.logger', 'true', '--trainer.max_epochs', '2') == 0
    events = EventAccumulator(str(shop/'board'/'tensorboard')).Reload()
    tags = events.Tags()
    assert tags['images'] == ['samples']
    assert {'train/nll', 'train/bpd', 'val/nll', 'val/bpd', 'val/plausible', 'val/apd_cm', 'val/joint/left_hip',
            'lr/pg1', 'lr/pg2'} <= set(tags['scalars'])  # what decays, and what does not


def test_early_stopping(shop):
    assert fit(shop, 'stops', '--callbacks.patience', '2', '--model.lr', '0') == 0
    assert json.loads((shop/'stops'/'metrics.json').read_text())['training']['epochs'] == 3


def test_half_precision(shop):
    assert fit(shop, 'half', '--trainer.precision', 'bf16-mixed') == 0
    nll = [json.loads((shop/n/'metrics.json').read_text())['val']['nll'] for n in ('whole', 'half')]
    assert abs(nll[0]-nll[1]) < .05*abs(nll[0]) and weights(shop/'half')['loc'].dtype == torch.float32


def test_without_validation_the_last_weights_count(shop):
    assert fit(shop, 'noval', '--data.fractions', '[1,0,0]', '--trainer.max_epochs', '2') == 0
    record = json.loads((shop/'noval'/'metrics.json').read_text())
    assert record['weights'] == 'last' and record['val'] is None and not (shop/'noval'/BEST).exists()


@pytest.mark.parametrize('schedule', ['step', 'constant'])
def test_schedules(shop, schedule):
    assert fit(shop, schedule, '--optimization.schedule', schedule, '--trainer.max_epochs', '3', '--optimization.warmup', '4') == 0
    rates = [float(r['lr']) for r in csv.DictReader((shop/schedule/'metrics.csv').open()) if r['lr']]
    assert rates[0] < rates[3] == max(rates) and (min(rates[5:]) < .2*max(rates)) == (schedule == 'step')


# judging and using -----------------------------------------------------------------------------------------------
def test_validate_test_and_predict(shop, capsys):
    for command, key in (('validate', 'val'), ('test', 'test')):
        assert main([command, str(shop/'whole'), '--output', str(shop/f'{key}.json')]) == 0
        found = json.loads((shop/f'{key}.json').read_text())
        assert found['part'] == key and abs(found['nll']-found['logged'][f'{key}/nll']) < 1e-2
    assert main(['validate', str(shop/'whole'), '--ckpt-path', 'last']) == 0
    assert main(['predict', str(shop/'whole'), '--output', str(shop/'p.npz')]) == 0
    assert (shop/'p.npz').stat().st_size > 1000


def test_judging_on_what_was_learned_is_said(shop, tmp_path, capsys):
    from posebook.motion import write_motion
    from posebook.poses import embedded_data
    assert main(['test', str(shop/'whole'), '--data.fractions', '[0,0,1]']) == 0
    assert 'were trained on' in capsys.readouterr().err
    write_motion(next(iter(embedded_data())), tmp_path/'one.npz')
    assert main(['predict', str(shop/'whole'), '--data', str(tmp_path/'one.npz'), '--output', str(tmp_path/'p.npz')]) == 0
    with np.load(tmp_path/'p.npz') as p: assert list(p['frame']) == list(range(len(p['energy']))) and p['names'].shape == (1,)


# what is refused -------------------------------------------------------------------------------------------------
class Evil:
    def __reduce__(self): return os.system, ('exit 1',)


def bad(shop, kind):
    "A file that is not a checkpoint of the small model"
    good, path = shop/'whole'/BEST, shop/f'{kind}.ckpt'
    content = torch.load(good, weights_only=True)
    if kind == 'truncated': path.write_bytes(good.read_bytes()[:-5000])
    if kind == 'empty': path.touch()
    if kind == 'pickle': path.write_bytes(pickle.dumps(Evil(), 2))
    if kind == 'text': path.write_text('not a checkpoint')
    if kind == 'foreign': torch.save({'state_dict': {}, 'epoch': 1}, path)
    if kind == 'tensor': torch.save(torch.zeros(3), path)
    if kind == 'model': torch.save(content | {'posebook': content['posebook'] | {'model': 'OtherPrior'}}, path)
    if kind == 'joints': torch.save(content | {'posebook': content['posebook'] | {'joints': ['pelvis', 'neck']}}, path)
    if kind == 'skeleton': torch.save(content | {'posebook': content['posebook'] | {'skeleton': 'smplh'}}, path)
    if kind == 'size': torch.save(content | {'state_dict': content['state_dict'] | {'loc': torch.zeros(1, 3)}}, path)
    if kind == 'names': torch.save(content | {'state_dict': {'x': torch.zeros(1)}}, path)
    return path


BAD = dict(missing='no such checkpoint', truncated='damaged or cut off', empty='damaged', pickle='was not opened',
           text='was not opened', foreign='that posebook wrote', tensor='found a Tensor', model='another model',
           joints='another joint layout', skeleton='another skeleton', size='do not fit', names='do not fit')

@pytest.mark.parametrize('kind', BAD)
def test_bad_checkpoints_are_refused(shop, kind, capsys):
    path = bad(shop, kind)
    with pytest.raises(PriorError, match=BAD[kind]) as e:
        check_checkpoint(path, GaussianPrior('full', joints='body', method='gradient'))
    assert str(path) in str(e.value)


@pytest.mark.parametrize('command', ['fit', 'validate', 'test', 'predict'])
def test_every_command_refuses_before_it_writes(shop, command, tmp_path, capsys):
    path = str(bad(shop, 'truncated'))
    args = [command, str(shop/'whole'), '--ckpt-path', path]
    if command == 'fit': args = options(tmp_path, 'new', '--ckpt-path', path)
    if command == 'predict': args += ['--output', str(tmp_path/'p.npz')]
    (tmp_path/'small.yaml').write_text(SMALL)
    assert main(args) == 1
    err = capsys.readouterr().err.strip()
    assert 'damaged or cut off' in err and len(err.splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ['small.yaml']


@pytest.mark.parametrize('text, says', [
    ('model: {size: 3}', 'size'), ('trainer: {epochs: 3}', 'epochs'), ('data: {fps: fast}', 'fast'), ('nonsense: 1', 'nonsense'),
    ('- 1', 'expected settings by name'), ('a: [', 'expected YAML'), ('optimization: {schedule: linear}', 'linear'),
    ('callbacks: {ema: 2}', 'between 0 and 1')])
def test_bad_settings_are_named(shop, tmp_path, text, says, capsys):
    (tmp_path/'mine.yaml').write_text(text)
    assert fit(shop, 'bad', '-c', tmp_path/'mine.yaml') in (1, 2)
    err = capsys.readouterr().err.strip()
    assert says in err and 'Traceback' not in err and not (shop/'bad').exists()


@pytest.mark.parametrize('name', MODELS)
def test_shipped_settings_fit_their_classes(name, tmp_path):
    module = MODELS[name].rsplit('.', 1)[0]
    if importlib.util.find_spec(module) is None: pytest.skip(f'{module} is not written yet')
    if name == 'zuko': pytest.importorskip('zuko')
    cli = make_cli(name, layers(name), ['--trainer.default_root_dir', str(tmp_path)])
    assert cli.settings[cli.key] == name and yaml.safe_load(yaml.safe_dump(cli.settings)) == cli.settings

def test_a_run_of_a_few_steps_ends_before_it_was_validated(tmp_path):
    "Patience has nothing to judge yet, and says nothing"
    assert main(['fit', 'global-flow', '--output', str(tmp_path/'short'), '--trainer.max_steps', '1', '--trainer.enable_progress_bar',
                 'false', '--trainer.logger', 'false', '--callbacks.report_every', '0']) == 0
    assert (tmp_path/'short'/'prior').is_dir()
