"The runner of the chapters counts what ran, and takes nothing for a success that is none."
import json, re, subprocess, sys
from importlib.util import module_from_spec, spec_from_file_location

import pytest

@pytest.fixture
def runner(root, tmp_path, monkeypatch):
    "The runner, at work on a book in a temporary folder"
    spec = spec_from_file_location('run_notebooks', root/'.github'/'run_notebooks.py')
    made = module_from_spec(spec)
    spec.loader.exec_module(made)
    (tmp_path/'settings.ini').write_text((root/'settings.ini').read_text())
    (tmp_path/'nbs').mkdir()
    monkeypatch.setattr(made, 'ROOT', tmp_path)
    return made

def chapter(runner, code):
    "A notebook with one cell"
    cell = dict(cell_type='code', source=code, metadata={}, outputs=[], id='a',
                execution_count=None)
    path = runner.ROOT/'nbs'/'00_one.ipynb'
    kernel = dict(kernelspec=dict(name='python3', language='python', display_name='python3'))
    path.write_text(json.dumps(dict(cells=[cell], metadata=kernel, nbformat=4, nbformat_minor=5)))
    return path

def test_passes(runner, capsys):
    assert runner.run_chapters([chapter(runner, 'assert 1+1 == 2')]) == (1, 0)
    assert re.fullmatch(r'ok   00_one \(\d+ s\)\n', capsys.readouterr().out)

@pytest.mark.parametrize('code, why', [
    ('assert 1+1 == 3', 'exit status 1'),
    ('import os; os._exit(0)', 'ended early'),
    ('print("Success.\\n0.1"); import os; os._exit(0)', 'ended early')],
    ids=['assert', 'exit', 'lie'])
def test_fails(runner, capsys, code, why):
    assert runner.run_chapters([chapter(runner, code)]) == (0, 1)
    assert f'FAIL 00_one: {why}' in capsys.readouterr().out

def test_over_its_time(runner, monkeypatch):
    monkeypatch.setattr(runner, 'CHAPTER_SECONDS', .1)
    assert 'of processor time' in runner.run_chapter(chapter(runner, 'sum(range(10**7))'))[0]

def test_never_ends(runner):
    status, _ = runner.run([sys.executable, '-c', 'import time; time.sleep(60)'], timeout=1)
    assert status is None and not runner.RUNNING

@pytest.mark.parametrize('code, counts', [
    ('def test_a(): pass\ndef test_b(): assert False', (1, 1, 0)),
    ('import pytest\ndef test_a(): pytest.skip("why")\ndef test_b(): pass', (1, 0, 1)),
    ('import not_there', (0, 1, 0)),
    ('import os\ndef test_a(): os._exit(0)', (0, 1, 0))], ids=['fail', 'skip', 'import', 'exit'])
def test_counts_tests(runner, code, counts):
    path = runner.ROOT/'test_it.py'
    path.write_text(code)
    assert runner.run_tests([path]) == counts

def test_nothing_to_run_fails(root):
    p = subprocess.run([sys.executable, root/'.github'/'run_notebooks.py', 'no such chapter'],
                       capture_output=True, text=True)
    assert p.returncode == 1 and p.stdout.splitlines()[-1] == '0 passed, 0 failed'
