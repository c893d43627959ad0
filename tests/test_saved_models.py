"""`posebook.saved_models`: settings that survive, folders that are whole, loading that trusts nothing"""
import json, os, subprocess, sys
from dataclasses import dataclass, field
from pathlib import Path
import pytest, torch
from safetensors.torch import load_file, save_file
from torch import nn
from posebook.coordinates import PriorError
from posebook.pretrained import SHIPPED
from posebook.prior import PosePrior
from posebook import prior, saved_models
from posebook.saved_models import (CONFIG, WEIGHTS, SavedModel, as_annotated, find_pretrained, kind_of, plain, read_config,
                                   saved_class, whole_folder)
from posebook.training import check_checkpoint, check_shapes, load_checkpoint


@dataclass(frozen=True)
class Noise:
    "Inner settings"
    scale: float = .1
    range: tuple[float, float] = (0., 1.)


@dataclass(frozen=True)
class Losses:
    "Settings within settings"
    position: float = 1.
    noise: Noise = field(default_factory=Noise)


class Line(SavedModel):
    "A straight line, with every kind of setting"
    kind = 'line'
    kept_in = 'line'

    def __init__(self, size: int = 2, losses: Losses = Losses(), extra: Noise | None = None, sizes: tuple = (1, 2), lr: float = .1):
        super().__init__()
        self.save_hyperparameters()
        if size < 1: raise PriorError(f'size should be at least 1, got {size}')
        self.weight = nn.Parameter(torch.randn(size))

    def identity(self): return super().identity() | dict(size=self.hparams.size)


class LongLine(Line):
    "A class of the same family"
    def __init__(self, length: float = 1., **kwargs):
        super().__init__(**kwargs)
        self.save_hyperparameters()


@pytest.fixture
def saved(tmp_path): return Line(3, Losses(2., Noise(.5, (1., 2.)))).save_pretrained(tmp_path/'line', card={'seed': 4})


def edit(folder, **changes):
    config = json.loads((folder/CONFIG).read_text()) | changes
    (folder/CONFIG).write_text(json.dumps(config))


def test_settings_survive(saved):
    model = SavedModel.from_pretrained(saved)
    assert model.hparams['losses'] == Losses(2., Noise(.5, (1., 2.))) and model.hparams['extra'] is None
    assert type(model) is Line and model.card == {'seed': 4} and not model.training
    again = model.save_pretrained(saved.parent/'again')
    assert (again/WEIGHTS).read_bytes() == (saved/WEIGHTS).read_bytes()
    assert read_config(again)['hparams'] == read_config(saved)['hparams']


def test_optional_and_inherited_settings(tmp_path):
    model = LongLine(2., extra=Noise(.3), size=1)
    back = Line.from_pretrained(model.save_pretrained(tmp_path/'a'))
    assert type(back) is LongLine and back.hparams['extra'] == Noise(.3) and back.hparams['length'] == 2.


@pytest.mark.parametrize('value, kind, expected', [
    ({'scale': 2.}, Noise, Noise(2.)), ({'scale': 2.}, Noise | None, Noise(2.)), (None, Noise | None, None), ([1, 2], tuple, [1, 2]),
    ({'a': 1}, dict, {'a': 1}), (Noise(), Noise, Noise()), ({'noise': {'range': [3., 4.]}}, Losses, Losses(noise=Noise(range=(3., 4.)))),
    ('x', None, 'x')])
def test_as_annotated(value, kind, expected): assert as_annotated(value, kind) == expected


def test_plain():
    assert plain({'a': (Noise(), Path('x')), 'b': None}) == {'a': [{'scale': .1, 'range': [0., 1.]}, 'x'], 'b': None}


def test_families():
    assert 'Line' in PosePrior.classes and PosePrior.classes is SavedModel.classes and 'PosePrior' not in SavedModel.classes
    assert Line.kind == 'line' and PosePrior.kind == 'prior' == PosePrior.kept_in


def test_what_prior_had_is_there():
    for name in ('CONFIG', 'WEIGHTS', 'QUIET', 'quiet_lightning', 'find_pretrained', 'read_config', 'whole_folder'):
        assert getattr(prior, name) is getattr(saved_models, name)
    assert prior.prior_class is saved_class


@pytest.mark.parametrize('damage, says', [
    (lambda f: (f/WEIGHTS).unlink(), 'complete safetensors'), (lambda f: (f/WEIGHTS).write_bytes(b''), 'complete safetensors'),
    (lambda f: (f/WEIGHTS).write_bytes((f/WEIGHTS).read_bytes()[:-9]), 'complete safetensors'),
    (lambda f: save_file({'weight': torch.zeros(9)}, f/WEIGHTS), 'size mismatch'),
    (lambda f: save_file({'bias': torch.zeros(3)}, f/WEIGHTS), 'does not fit'),
    (lambda f: (f/CONFIG).write_text('{'), 'expected JSON'), (lambda f: (f/CONFIG).write_text('3'), "key 'model'"),
    (lambda f: edit(f, hparams=[1]), "key 'hparams' should be a dict"), (lambda f: edit(f, model='Nobody'), "unknown model 'Nobody'"),
    (lambda f: edit(f, module='posebook.nothing'), 'no module posebook.nothing'),
    (lambda f: edit(f, hparams={'size': 0}), 'at least 1'), (lambda f: edit(f, hparams={'sise': 3}), 'sise'),
    (lambda f: edit(f, hparams={'losses': {'noise': {'scael': 1}}}), 'scael'), (lambda f: edit(f, hparams={'size': 2}), 'does not fit')])
def test_damaged_folders_are_refused(saved, damage, says):
    damage(saved)
    with pytest.raises(PriorError) as e: Line.from_pretrained(saved)
    assert says in str(e.value) and str(saved) in str(e.value)


@pytest.mark.parametrize('module', ['os', 'antigravity', 'posebook', 'posebook.cli as x', '../evil', 'posebook.__main__;os'])
def test_only_own_modules_are_imported(saved, module):
    edit(saved, module=module)
    before = set(sys.modules)
    assert type(SavedModel.from_pretrained(saved)) is Line
    assert not {'antigravity', 'evil'} & (set(sys.modules)-before)


def test_names_that_exist_nowhere_list_those_of_the_kind():
    with pytest.raises(PriorError, match='no prior at nowhere.*gaussian-cmu'): PosePrior.from_pretrained('nowhere')
    with pytest.raises(PriorError, match='no line at nowhere') as e: Line.from_pretrained('nowhere')
    assert 'gaussian-cmu' not in str(e.value)
    with pytest.raises(PriorError, match='no model at nowhere.*gaussian-cmu'): find_pretrained('nowhere')


def test_another_kind_is_refused(saved):
    with pytest.raises(PriorError, match='holds a Line, not a PosePrior'): PosePrior.from_pretrained(saved)
    with pytest.raises(PriorError, match='holds a GaussianPrior, not a Line'): Line.from_pretrained('gaussian-cmu')


def test_a_run_holds_its_model(saved, tmp_path):
    run = tmp_path/'run'; run.mkdir()
    saved.rename(run/'line')
    assert find_pretrained(run) == run/'line' and type(Line.from_pretrained(run)) is Line


@pytest.mark.parametrize('name', sorted(p.parent.name for p in SHIPPED.glob('*/'+CONFIG)))
def test_shipped_folders_load_as_they_are(name, tmp_path):
    model, old = SavedModel.from_pretrained(name), read_config(SHIPPED/name)
    again = model.save_pretrained(tmp_path/name)
    new, a, b = read_config(again), load_file(SHIPPED/name/WEIGHTS), load_file(again/WEIGHTS)
    assert new == old | dict(posebook=new['posebook']) and kind_of(old) == model.kind
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_random_numbers_of_the_caller(saved):
    torch.manual_seed(1); expected = torch.rand(2)
    torch.manual_seed(1); Line.from_pretrained(saved)
    assert torch.equal(torch.rand(2), expected)


def test_nothing_half_written(tmp_path, monkeypatch):
    def full(*a, **k): raise OSError('disk full')
    monkeypatch.setattr('posebook.saved_models.save_file', full)
    with pytest.raises(OSError): Line().save_pretrained(tmp_path/'new')
    assert not any(tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path/'other') as f: (f/'x').write_text(str(1/0))
    assert not any(tmp_path.iterdir())


def test_never_over_something_else(tmp_path):
    (tmp_path/'thesis').mkdir(); (tmp_path/'thesis'/'a.tex').touch(); (tmp_path/'file').touch()
    for name in ('thesis', 'file'):
        with pytest.raises(PriorError, match='not a saved line'): Line().save_pretrained(tmp_path/name)


def checkpoint(path, model):
    "A checkpoint as Lightning leaves one"
    content = dict(state_dict=model.state_dict(), hyper_parameters=dict(model.hparams))
    model.on_save_checkpoint(content)
    torch.save(content, path)
    return path


def test_checkpoints(tmp_path):
    model = Line(3, Losses(3.))
    path = checkpoint(tmp_path/'a.ckpt', model)
    other = load_checkpoint(path, Line(3, Losses(3.)))
    assert torch.equal(other.weight, model.weight)
    for wrong, says in ((Line(2), 'another size: expected 2, found 3'), (LongLine(), 'another model')):
        with pytest.raises(PriorError, match=says): check_checkpoint(path, wrong)
    content = torch.load(path, weights_only=True) | dict(state_dict={'weight': torch.zeros(5)})
    with pytest.raises(PriorError, match='do not fit this Line'): check_shapes(path, model, content)


def test_loading_needs_only_its_own_chapter(saved, tmp_path):
    "A class of posebook is found by its module; one of a script must have been imported"
    code = 'import sys; from posebook.saved_models import SavedModel; print(type(SavedModel.from_pretrained(sys.argv[1])).__name__)'
    run = lambda name: subprocess.run([sys.executable, '-c', code, str(name)], capture_output=True, text=True,
                                      env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)})
    assert run('gaussian-cmu').stdout.split() == ['GaussianPrior']
    assert 'import the module that defines it first' in run(saved).stderr
