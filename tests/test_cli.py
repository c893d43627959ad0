"""The `posebook` command as a user meets it: other processes, exit codes, one-line errors, nothing half-written"""
import json, os, subprocess, sys
import numpy as np, pytest, torch
from posebook.cli import BROUGHT, COMMANDS, FAMILIES, GROUPS, main

RUN = 'import sys; from posebook.cli import main; sys.exit(main())'
QUIET = ['--trainer.enable_progress_bar', 'false']


def run(*args, cwd=None, **env):
    "Run the command in a process of its own"
    return subprocess.run([sys.executable, '-c', RUN, *map(str, args)], cwd=cwd, capture_output=True, text=True,
                          env=os.environ | {'OMP_NUM_THREADS': '1'} | env)


@pytest.fixture(scope='module')
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp('fit')
    assert main(['fit', 'gaussian', '--output', str(folder/'run'), *QUIET]) == 0
    return folder/'run'


def test_help_needs_no_torch():
    code = ('import sys; from posebook.cli import main; main(["--help"]); main(["fit","--help"]); main(["fit","--help","--debug"]); '
            'sys.exit("torch" in sys.modules)')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0 and all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize('name', [*COMMANDS, *BROUGHT, 'evaluate lifting', 'compare lifting'])
def test_every_command_has_help(name, capsys):
    assert main([*name.split(), '--help']) == 0
    text = capsys.readouterr().out
    assert f'posebook {name}' in text and 'options:' in text


def test_every_command_is_listed(capsys):
    assert main(['--help']) == 0
    listed = [l.split()[0] for l in capsys.readouterr().out.split('commands:')[1].splitlines() if l.startswith('  ')]
    assert listed == [*COMMANDS, *BROUGHT, *GROUPS] and set(FAMILIES) == {'lifting'}


@pytest.mark.parametrize('args, code, says', [
    (['nonsense'], 2, 'no command'), (['smaple'], 2, "did you mean 'sample'"), (['sample'], 2, 'required'),
    (['sample', 'nobody'], 1, 'no prior at nobody'), (['view', 'missing.bvh'], 1, 'missing.bvh'),
    (['fit', 'nonsense'], 2, 'unknown model'), (['fit', 'gaussian', '--data', 'nowhere', *QUIET], 1, 'nowhere'),
    (['fit', 'gaussian', '--model.size', '3', *QUIET], 2, 'size'), (['convert', 'a.bvh'], 1, '--output'),
    (['evaluate', 'nobody'], 1, 'no prior'), (['sample', 'nobody', '-n', 'many'], 2, 'many'),
    (['fit', 'gaussian', '--experiment', '../x'], 1, 'expected a name'),
    (['fit', 'gaussian', '--experiment', 'x', '--output', 'y'], 2, 'one of the'),
    (['fit', 'gaussian', '--size', 'tiny'], 2, 'size'), (['fit', 'gaussian', '--model-type', 'vit'], 2, 'network'),
    (['fit', 'gaussian', '--gpu', 'x'], 2, '--gpu'), (['fit', 'gaussian', '--gpu', '99'], 1, 'found'),
    (['test', 'nobody'], 1, 'no model at nobody'),
    (['lift', 'nowhere.json', '--model', 'nobody'], 1, 'nobody'), (['evaluate', 'lifting'], 2, 'models'), (['devics'], 2, "'devices'"),
    (['export', 'gaussian-cmu'], 1, 'not a Lifter')])
def test_mistakes_end_in_one_line(args, code, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(args) == code
    text = capsys.readouterr().err
    assert says in text.splitlines()[-1] and 'Traceback' not in text
    assert not any(tmp_path.iterdir())


def test_a_process_of_its_own(tmp_path):
    done = run('sample', 'nobody', cwd=tmp_path)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and not done.stdout


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match='no prior at nobody'): main(['sample', 'nobody', '--debug'])
    with pytest.raises(ValueError, match='unknown model'): main(['--debug', 'fit', 'nonsense'])


@pytest.mark.parametrize('args', [['gaussian'], ['gaussian', '-c', 'gradient', '--model.method', 'gradient', '--data.batch_size', '64'],
    ['joint-flow', '--data.fps', '10', '--output', 'x'], ['zuko', '--data.fps', '10', '--experiment', 'x']], ids=lambda a: ' '.join(a[:3]))
def test_a_trial_keeps_nothing(args, tmp_path, capsys, monkeypatch):
    if args[0] == 'zuko': pytest.importorskip('zuko')
    monkeypatch.chdir(tmp_path)
    assert main(['fit', *args, '--debug']) == 0
    got = capsys.readouterr()
    assert 'it works' in got.out and 'nothing was kept' in got.out and not any(tmp_path.iterdir())
    if args[0] != 'gaussian': assert 'val/nll' in got.out and ' of training' in got.out


def test_a_trial_finds_numbers_that_are_none(tmp_path, monkeypatch):
    "The step that made them is named, and the run ends"
    from posebook.joint_flow import JointFlowPrior
    whole = JointFlowPrior.log_prob_x
    monkeypatch.setattr(JointFlowPrior, 'log_prob_x', lambda self, x: whole(self, x)*float('nan'))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match='nan values'): main(['fit', 'joint-flow', '--data.fps', '10', '--debug'])


def test_a_run_with_a_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    args = ['fit', 'gaussian', '--experiment', 'first', '--trainer.logger', 'true', *QUIET]
    assert main(args) == 0 and (tmp_path/'outputs'/'first'/'prior').is_dir()
    assert [p.name for p in (tmp_path/'outputs').iterdir()] == ['first']
    assert (tmp_path/'outputs'/'first'/'tensorboard').is_dir()
    assert main([*args, '--model.shrinkage', '2']) == 1 and 'holds a finished run' in capsys.readouterr().err


def test_gpus_are_named_or_refused(monkeypatch):
    from posebook.runs import gpu_options
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda i: f'Card {i}')
    assert gpu_options(1) == ['--trainer.accelerator', 'auto', '--trainer.devices', '[1]']
    with pytest.raises(ValueError, match=r'--gpu 2: no such GPU; found 0 \(Card 0\), 1 \(Card 1\)'): gpu_options(2)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    assert gpu_options(0)[-1] == '1'
    with pytest.raises(ValueError, match='Apple GPU'): gpu_options(1)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)
    with pytest.raises(ValueError, match='sees only the CPU'): gpu_options(0)


def bad_files(folder):
    "A folder of mocap in which one file is good"
    from posebook.motion import write_motion
    from posebook.poses import embedded_data
    clips = {m.name: m for m in embedded_data()}
    for name in ('walk', 'dance_a', 'jump', 'kick'): write_motion(clips[name], folder/f'{name}.npz')
    write_motion(clips['run'], folder/'good.bvh')
    text = (folder/'good.bvh').read_text()
    (folder/'truncated.bvh').write_text(text[:len(text)//2])
    lines = text.splitlines()
    (folder/'nan.bvh').write_text('\n'.join([*lines[:-1], ' '.join(['nan']+lines[-1].split()[1:])]))
    (folder/'channels.bvh').write_text('\n'.join([*lines[:-1], lines[-1]+' 1 2 3']))
    (folder/'empty.bvh').touch()
    (folder/'junk.bvh').write_bytes(bytes(range(256))*20)
    np.savez(folder/'pickled.npz', poses=np.array([{'a': 1}], dtype=object), allow_pickle=True)
    np.savez(folder/'ten.npz', poses=np.zeros((5, 30), 'f4'))


def test_broken_files_are_named_counted_and_skipped(tmp_path, capsys):
    data = tmp_path/'my mocap'; data.mkdir(); bad_files(data)
    assert main(['fit', 'gaussian', '--data', str(data), '--output', str(tmp_path/'run'), *QUIET]) == 0
    text = capsys.readouterr().err
    for name in ('truncated.bvh', 'nan.bvh', 'channels.bvh', 'empty.bvh', 'junk.bvh', 'pickled.npz', 'ten.npz'):
        assert name in text
    assert 'skipped 7' in text and (tmp_path/'run'/'prior'/'config.json').exists()


@pytest.mark.parametrize('name, says', [('empty.bvh', 'empty.bvh'), ('notes.docx', 'motion')])
def test_nothing_to_read_is_an_error(tmp_path, name, says, capsys):
    (tmp_path/'d').mkdir(); (tmp_path/'d'/name).touch()
    assert main(['fit', 'gaussian', '--data', str(tmp_path/'d'), '--output', str(tmp_path/'run'), *QUIET]) == 1
    assert says in capsys.readouterr().err.splitlines()[-1] and not (tmp_path/'run').exists()


def test_fit_is_repeatable_from_its_config(fitted, tmp_path):
    again = tmp_path/'again'
    assert main(['fit', 'gaussian', '-c', str(fitted/'config.yaml'), '--output', str(again), *QUIET]) == 0
    assert (again/'prior'/'model.safetensors').read_bytes() == (fitted/'prior'/'model.safetensors').read_bytes()


def test_evaluate_leaves_out_what_was_trained_on(fitted, tmp_path, capsys):
    assert main(['evaluate', str(fitted), '--output', str(tmp_path/'s.json'), '--per-joint']) == 0
    text = capsys.readouterr()
    assert 'which were trained on' in text.err and 'left_hip' in text.out
    row, = json.loads((tmp_path/'s.json').read_text())
    assert row['nll']['low'] <= row['nll']['mean'] <= row['nll']['high']


def test_options_reach_the_model(tmp_path, capsys):
    args = ['--kind', 'mixture', '--joints', 'all', '--model.components', '3']
    assert main(['fit', 'gaussian', *args, '--output', str(tmp_path/'m'), *QUIET]) == 0
    hparams = json.loads((tmp_path/'m'/'prior'/'config.json').read_text())['hparams']
    assert (hparams['kind'], hparams['joints'], hparams['components']) == ('mixture', 'all', 3)


def test_gradient_training_through_the_command(tmp_path):
    assert main(['fit', 'gaussian', '--kind', 'diagonal', '--model.method', 'gradient', '--trainer.max_epochs', '3',
                 '--data.batch_size', '128', '--output', str(tmp_path/'g'), *QUIET]) == 0
    assert (tmp_path/'g'/'prior'/'model.safetensors').exists()


@pytest.mark.parametrize('suffix', ['.npz', '.png', '.html', '.bvh'])
def test_samples_in_every_format(fitted, tmp_path, suffix, capsys):
    assert main(['sample', str(fitted), '-n', '3', '--output', str(tmp_path/f's{suffix}')]) == 0
    assert [p.name for p in tmp_path.iterdir()] == [f's{suffix}'] and (tmp_path/f's{suffix}').stat().st_size > 500


def test_convert_and_view(fitted, tmp_path, capsys):
    main(['sample', str(fitted), '-n', '9', '--output', str(tmp_path/'s.npz')])
    for target in ('s.bvh', 'set'):
        assert main(['convert', str(tmp_path/'s.npz'), '--output', str(tmp_path/target)]) == 0
    for source in ('s.bvh', 's.npz', 'set'):
        assert main(['view', str(tmp_path/source), '--output', str(tmp_path/'v.html')]) == 0
    assert main(['data', '--json-output']) == 0


def test_unknown_suffix_is_refused_before_any_work(fitted, tmp_path, capsys):
    assert main(['sample', str(fitted), '--output', str(tmp_path/'s.docx')]) == 1
    assert not any(tmp_path.iterdir()) and '.docx' in capsys.readouterr().err


def few(folder, n):
    "A folder with `n` recordings"
    from posebook.motion import write_motion
    from posebook.poses import embedded_data
    folder.mkdir()
    for m in list(embedded_data())[:n]: write_motion(m, folder/f'{m.name}.npz')
    return str(folder)


def test_two_recordings_are_enough(tmp_path, capsys):
    assert main(['fit', 'gaussian', '--data', few(tmp_path/'d', 2), '--output', str(tmp_path/'r'), *QUIET]) == 0
    assert 'no interval' in capsys.readouterr().out


def test_one_recording_fits_without_a_score(tmp_path, capsys):
    args = ['fit', 'gaussian', '--data', few(tmp_path/'d', 1), '--output', str(tmp_path/'r'), *QUIET]
    assert main(args) == 1 and 'set a share to 0' in capsys.readouterr().err
    assert main([*args, '--data.fractions', '[1,0,0]']) == 0
    assert 'no score' in capsys.readouterr().err and (tmp_path/'r'/'prior').is_dir()

@pytest.fixture(scope='module')
def field(tmp_path_factory):
    "A small distance field, and noisy motion"
    from posebook.pose_ndf import PoseNDF
    from posebook.poses import embedded_data
    from posebook.scene import write_poses
    here = tmp_path_factory.mktemp('field')
    poses = torch.tensor(embedded_data().poses[:200])
    prior = PoseNDF(widths=(64, 64), mined=0., eikonal_weight=0.).fit(poses, samples=2000, max_epochs=2, batch_size=128)
    prior.save_pretrained(here/'field')
    write_poses(poses[:20]+.2, here/'noisy.npz')
    return here

def test_ndf_commands(field, capsys):
    f, out = str(field/'field'), field/'new.npz'
    assert main(['ndf', 'project', f, '--poses', str(field/'noisy.npz'), '--num-poses', '4', '--max-distance', '.1', '--max-steps', '9',
                 '--output', str(out), '--save-steps', '--render']) == 0
    assert all((field/n).is_file() for n in ('new.npz', 'new.png', 'new-steps.npz', 'new-steps.html'))
    assert main(['view', str(field/'new-steps.npz'), '--output', str(field/'seen.html'), '--prior', f, '--distance']) == 0
    assert main(['ndf', 'sample', f, '--num-poses', '3', '--output', str(field/'s.npz')]) == 0
    assert main(['ndf', 'sample', f, '--num-poses', '3', '--poses', str(field/'noisy.npz'), '--output', str(field/'s.png')]) == 0
    assert main(['ndf', 'interpolate', f, '--poses', str(field/'noisy.npz'), '--num-poses', '5', '--num-steps', '8', '--step-size', '.3',
                 '--output', str(field/'i.npz')]) == 0
    assert main(['ndf', 'prepare', '--number', '200', '--output', str(field/'d.safetensors')]) == 0
    assert 'distance' in capsys.readouterr().out

@pytest.mark.parametrize('args, code, says', [(['ndf', 'prject'], 2, "did you mean 'project'"),
    (['ndf', 'project', 'gaussian-cmu', '--poses', 'x'], 1, 'knows no distance'),
    (['ndf', 'project', 'nobody'], 1, '--poses'), (['view', 'x.npz', '--distance'], 2, '--prior')])
def test_ndf_mistakes(args, code, says, capsys):
    assert main(args) == code and says in capsys.readouterr().err

def test_ndf_help(capsys):
    assert main(['ndf']) == 0 and 'interpolate' in capsys.readouterr().out
    for name in ('prepare', 'project', 'sample', 'interpolate'):
        assert main(['ndf', name, '--help']) == 0 and '--output' in capsys.readouterr().out
    assert main(['--help']) == 0 and 'ndf' in capsys.readouterr().out

def test_fit_pose_ndf_with_underscores(tmp_path):
    run = tmp_path/'run'
    assert main(['fit', 'pose_ndf', '--output', str(run), '--data.samples', '1500', '--model.widths', '[32]',
                 '--model.mine_every', '4', '--model.mine_poses', '40', '--trainer.max_epochs', '2',
                 '--trainer.enable_progress_bar', 'false', '--data.cache_dir', str(tmp_path/'c')]) == 0
    found = json.loads((run/'metrics.json').read_text())
    assert {'test/mae', 'test/correlation', 'test/gradient_norm', 'test/clean'} <= set(found['logged']['test'])
