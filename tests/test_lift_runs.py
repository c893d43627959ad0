"""A lifter trains, resumes, is judged and used by the commands that priors have"""
import json, os, signal, subprocess, sys, time
import numpy as np, pytest, torch, yaml
from safetensors.torch import load_file
from posebook.cli import main
from posebook.coordinates import PriorError
from posebook.lifting import Lifter
from posebook.runs import experiment_folder, layers, make_cli, read_settings
from posebook.saved_models import SavedModel, find_pretrained, kind_of, read_config
from posebook.training import BEST, LAST, check_checkpoint, read_checkpoint

SCRIPT = 'import sys\nfrom posebook.cli import main\nif __name__ == "__main__": sys.exit(main())\n'
SMALL = '''
model: {size: nano, lr: 0.003}
data: {fps: 5, fractions: [0.6, 0.2, 0.2], batch_size: 16}
callbacks: {ema: 0.95, report_every: 0, save_steps: 3}
trainer: {max_epochs: 4, accelerator: cpu, enable_progress_bar: false, logger: false, log_every_n_steps: 1}
'''


@pytest.fixture(scope='module')
def shop(tmp_path_factory):
    "A folder with the command as a script, small settings, and one finished run"
    folder = tmp_path_factory.mktemp('lifting')
    (folder/'posebook_script.py').write_text(SCRIPT)
    (folder/'small.yaml').write_text(SMALL)
    assert fit(folder, 'whole') == 0
    return folder


def options(folder, name, *more):
    return ['fit', 'lifting', '-c', str(folder/'small.yaml'), '--output', str(folder/name), *map(str, more)]

def fit(folder, name, *more): return main(options(folder, name, *more))
def weights(run): return load_file(run/'lifter'/'model.safetensors')
def curve(run): return (run/'metrics.csv').read_text()
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_killed_and_resumed_is_the_same_run(shop):
    long = ('--trainer.max_epochs', '8', '--model.objectives.masked', '.5', '--model.augment.joint_dropout', '.1')
    env = os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(sys.path)}
    p = subprocess.Popen([sys.executable, str(shop/'posebook_script.py'), *options(shop, 'killed', *long)], env=env,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    last = shop/'killed'/LAST
    while not last.exists() and p.poll() is None: time.sleep(.01)
    p.send_signal(signal.SIGKILL); p.communicate()
    assert p.returncode == -signal.SIGKILL and not (shop/'killed'/'lifter').exists()
    assert fit(shop, 'long', *long) == 0
    steps = read_checkpoint(shop/'long'/LAST)['global_step']
    assert 0 < read_checkpoint(last)['global_step'] < steps
    assert main(['fit', '--output', str(shop/'killed')]) == 1    # neither silently again nor silently on
    assert main(['fit', '--output', str(shop/'killed'), '--resume']) == 0
    assert same(weights(shop/'killed'), weights(shop/'long')) and curve(shop/'killed') == curve(shop/'long')


def test_resumed_from_the_middle_of_an_epoch(shop, monkeypatch, capsys):
    "Stopped by an error within the second epoch, after a checkpoint within it; then on, to the same end"
    class Stop(RuntimeError): pass
    steps = read_checkpoint(shop/'whole'/LAST)['global_step']//4
    def step(self, batch, batch_idx, whole=Lifter.training_step):
        if self.global_step == 12: raise Stop
        return whole(self, batch, batch_idx)
    with monkeypatch.context() as m:
        m.setattr(Lifter, 'training_step', step)
        assert fit(shop, 'stopped') == 3 and 'unexpected Stop' in capsys.readouterr().err
    assert read_checkpoint(shop/'stopped'/LAST)['global_step'] % steps and 12 < 2*steps
    assert main(['fit', '--output', str(shop/'stopped'), '--resume']) == 0
    assert same(weights(shop/'stopped'), weights(shop/'whole')) and curve(shop/'stopped') == curve(shop/'whole')


def test_a_run_repeats_from_its_folder(shop):
    assert main(['fit', '--from', str(shop/'whole'), '--output', str(shop/'again')]) == 0
    assert curve(shop/'again') == curve(shop/'whole') and same(weights(shop/'again'), weights(shop/'whole'))


def test_what_a_run_leaves(shop):
    run = shop/'whole'
    config, record, settings = read_config(run/'lifter'), json.loads((run/'run.json').read_text()), read_settings(run/'config.yaml')
    assert kind_of(config) == 'lifter' and record['lifter'] == settings['lifter'] == 'lifting' and 'prior' not in settings
    assert config['hparams']['objectives']['supervised'] == 1. and config['card']['data']['train'] and config['card']['scores']
    assert not set(config['card']['data']['train']) & set(config['card']['data']['test'])
    assert (run/BEST).is_file() and (run/'split.json').is_file()
    metrics = json.loads((run/'metrics.json').read_text())
    assert metrics['val'] and metrics['test'] and metrics['logged']['val']['val/pa_mpjpe'] > 0
    assert find_pretrained(run) == run/'lifter'


def test_saved_and_loaded_it_lifts_the_same(shop):
    lifter = SavedModel.from_pretrained(shop/'whole')
    assert type(lifter) is Lifter and lifter.objectives.supervised == 1. and lifter.n_parameters > 0
    points = 500+100*torch.randn(4, 17, 2, generator=torch.Generator().manual_seed(0))
    again = Lifter.from_pretrained(lifter.save_pretrained(shop/'copy'))
    assert torch.equal(lifter.lift(points).joints, again.lift(points).joints)
    assert again.plain_hparams == lifter.plain_hparams


def test_judging_again_finds_the_same(shop, capsys):
    for command, part in (('validate', 'val'), ('test', 'test')):
        assert main([command, str(shop/'whole'), '--output', str(shop/f'{part}.json')]) == 0
        found, told = json.loads((shop/f'{part}.json').read_text()), json.loads((shop/'whole'/'metrics.json').read_text())
        assert found['logged'] == pytest.approx(told['logged'][part]) and found['lifter'] == 'lifting'
        assert found['pa_mpjpe'] == pytest.approx(told[part]['pa_mpjpe'])
    assert main(['test', str(shop/'whole'), '--ckpt-path', 'last']) == 0


def test_settings_merge_and_do_not_replace(shop):
    "A nested setting from the command line leaves its neighbours as files and defaults have them"
    (shop/'mine.yaml').write_text('model: {losses: {velocity: 3.0}, objectives: {masked: 0.25}}')
    cli = make_cli('lifting', [*layers('lifting', 'vit'), shop/'mine.yaml'], ['--model.losses.l1', '0.5', '--model.size', 'nano'])
    losses, objectives = cli.model.losses, cli.model.objectives
    assert (losses.velocity, losses.l1, losses.position) == (3., .5, 1.)
    assert (objectives.masked, objectives.supervised, cli.model.hparams.network) == (.25, 1., 'vit')
    assert yaml.safe_load(yaml.safe_dump(cli.settings)) == cli.settings


@pytest.mark.parametrize('network', ['transformer', 'vit', 'mlp'])
def test_every_network_passes_a_trial(network, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ['fit', 'lifting', '--model-type', network, '--size', 'nano', '--data.fps', '5', '--debug']
    assert main(args) == 0
    out = capsys.readouterr().out
    assert 'it works' in out and 'val/pa_mpjpe' in out and 'nothing was kept' in out
    assert not any(tmp_path.iterdir())


def test_masked_pretraining_then_labels(shop, capsys):
    few = ('--trainer.max_epochs', '1', '--trainer.enable_checkpointing', 'false')
    assert fit(shop, 'pre', '-c', 'lifting-masked', *few) == 0
    assert fit(shop, 'tuned', '--model.init_from', shop/'pre', '--data.labels', '.3', *few) == 0
    assert 'started from' in capsys.readouterr().err
    assert str(shop) in read_settings(shop/'tuned'/'config.yaml')['model']['init_from']


def test_an_experiment_has_a_name(tmp_path, monkeypatch, shop):
    monkeypatch.chdir(tmp_path)
    args = ['fit', 'lifting', '-c', str(shop/'small.yaml'), '--experiment', 'first try', '--trainer.max_epochs', '1',
            '--trainer.logger', 'true']
    assert main(args) == 0
    run = tmp_path/'outputs'/'first try'
    assert (run/'lifter').is_dir() and any((run/'tensorboard').iterdir())
    assert [p.name for p in tmp_path.iterdir()] == ['outputs'] and [p.name for p in (tmp_path/'outputs').iterdir()] == ['first try']
    assert main(['fit', '--experiment', 'first try', '--resume']) == 0
    for name in ('', '..', 'a/b', '/a'):
        with pytest.raises(PriorError, match='expected a name'): experiment_folder(name)


@pytest.mark.parametrize('args, code, says', [
    (['--size', 'gigantic'], 1, 'nano'), (['--model-type', 'gan'], 1, 'transformer'), (['--gpu', '-1'], 1, 'found'),
    (['--gpu', '99'], 1, 'found'), (['--gpu', 'two'], 2, 'two'), (['--experiment', 'a/b'], 1, 'expected a name'),
    (['--experiment', 'a', '--output', 'b'], 2, 'one of the two'),
    (['--debug', '--resume'], None, 'begins anew'), (['--model.objectives.supervized', '1'], 2, 'supervized'),
    (['--model.objectives.supervised', '-1'], 1, 'supervised'), (['--data.labels', '3'], 1, 'labels'),
    (['--data', 'nowhere'], 1, 'nowhere'),
    (['--model.layout', 'martian'], 1, 'martian'), (['--model.frames', '0'], 1, 'frames'), (['-c', 'lifting-unsupervised'], 1, 'flow'),
    (['--model.init_from', 'nowhere'], 1, 'nowhere'), (['--kind', 'full'], 2, 'kind')])
def test_mistakes_end_in_one_line(args, code, says, tmp_path, capsys, monkeypatch, shop):
    monkeypatch.chdir(tmp_path)
    call = ['fit', 'lifting', '-c', str(shop/'small.yaml'), *args]
    if code is None:
        with pytest.raises(PriorError, match=says): main(call)
    else:
        assert main(call) == code
        text = capsys.readouterr().err
        assert says in text.splitlines()[-1] and 'Traceback' not in text
    assert not any(tmp_path.rglob('lifter'))


def test_checkpoints_of_other_lifters_are_refused(shop):
    for wrong, says in ((dict(frames=3), 'number of frames'), (dict(size='tiny'), 'size'), (dict(network='vit'), 'network')):
        model = Lifter(**dict(size='nano') | wrong)
        with pytest.raises(PriorError, match=f'another {says}'): check_checkpoint(shop/'whole'/BEST, model)
    assert check_checkpoint(shop/'whole'/BEST, Lifter(size='nano'))['posebook']['model'] == 'Lifter'


def test_lifters_and_priors_are_not_compared(shop, capsys, tmp_path):
    assert main(['compare', str(shop/'whole'), 'gaussian-cmu']) == 2 and 'nothing measures both' in capsys.readouterr().err
    assert main(['sample', str(shop/'whole')]) == 1 and 'not a PosePrior' in capsys.readouterr().err
    assert main(['evaluate', 'lifting', 'gaussian-cmu']) == 1 and 'GaussianPrior' in capsys.readouterr().err
    assert main(['evaluate', 'lifting', 'nobody']) == 1 and 'nobody' in capsys.readouterr().err


def test_lifters_are_judged_side_by_side(shop, capsys, tmp_path):
    first, second = str(shop/'whole'), f'second={shop/"copy"}'
    if not (shop/'copy').exists(): Lifter.from_pretrained(first).save_pretrained(shop/'copy')
    assert main(['compare', first, second, 'flat', '--output', str(tmp_path/'board')]) == 0
    text = capsys.readouterr().out
    assert 'PA-MPJPE' in text and 'second' in text and any((tmp_path/'board').iterdir())
    assert main(['evaluate', first, '--per-joint']) == 0 and 'knee' in capsys.readouterr().out


def test_a_lifter_leaves_torch(shop, capsys, tmp_path, monkeypatch):
    pytest.importorskip('onnxruntime')
    from posebook.lift_export import onnx_difference
    assert main(['export', str(shop/'whole'), '--output', str(tmp_path/'nano.onnx')]) == 0
    assert 'MB, 1 frames of 17 joints' in capsys.readouterr().out
    assert onnx_difference(tmp_path/'nano.onnx', Lifter.from_pretrained(shop/'whole'), (1, 5)) < 1e-4
    for args, says in ((['gaussian-cmu'], 'not a Lifter'), ([str(shop/'whole'), '-o', 'x.pt'], 'ends in .onnx')):
        assert main(['export', *args]) == 1 and says in capsys.readouterr().err


def test_nobody_labelled_anything(shop, tmp_path, capsys):
    "Keypoints alone: epochs are chosen by the loss, and there is no score"
    from posebook.poses import embedded_data
    from posebook.virtual_views import see_poses
    bare = see_poses(embedded_data()).without_labels(lambda clip: True)
    bare.save(tmp_path/'bare.npz')
    assert fit(shop, 'bare', '-c', 'lifting-masked', '--data', str(tmp_path/'bare.npz'), '--data.source', 'files',
               '--trainer.max_epochs', '1', '--callbacks.patience', '2') == 0
    assert json.loads((shop/'bare'/'metrics.json').read_text())['test'] is None and (shop/'bare'/BEST).is_file()
    assert main(['test', str(shop/'bare')]) == 0


def test_predictions_of_a_run(shop, tmp_path):
    assert main(['predict', str(shop/'whole'), '--output', str(tmp_path/'p.npz')]) == 0
    with np.load(tmp_path/'p.npz') as p:
        assert p['joints'].shape == (len(p['clip']), 17, 3) and np.isfinite(p['joints']).all()
        assert p['clip'].max()+1 == len(p['names']) and p['points'].shape[1:] == (17, 2) and len(p['joint_names']) == 17
