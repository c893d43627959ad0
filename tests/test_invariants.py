"The invariants of the book hold, and every rule that keeps them fails on a tree that breaks it."
import json, shutil

import pytest
import invariants as inv

@pytest.mark.parametrize('rule', inv.RULES, ids=lambda r: r.__name__)
def test_holds(root, rule):
    problems = rule(root)
    assert not problems, '\n'+'\n'.join(problems)

def test_there_are_chapters(root):
    assert inv.notebooks(root) and inv.modules(root), 'without chapters, the rules hold for nothing'

# ---- small trees

PNG = {'output_type': 'display_data', 'metadata': {}, 'data': {'image/png': 'iVBORw0KGgo='}}

def write_nb(path, *sources, outputs=()):
    "A notebook of code cells; `outputs` go to the last of them"
    kernel = {'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}}
    made = [dict(cell_type='code', execution_count=None, id=f'c{i}', metadata={}, outputs=[],
                 source=s.splitlines(True)) for i, s in enumerate(sources)]
    made[-1]['outputs'] = list(outputs)
    nb = dict(cells=made, metadata=kernel, nbformat=4, nbformat_minor=5)
    path.write_text(json.dumps(nb, indent=1, sort_keys=True)+'\n')

def add_chapter(root, name, *code, outputs=(PNG,)):
    "A chapter that exports `code`, one cell each"
    module = name.split('_', 1)[1]
    exported = [f'#| export\n{c}' for c in code]
    write_nb(root/f'nbs/{name}.ipynb', f'#| default_exp {module}', *exported, outputs=outputs)

@pytest.fixture(scope='session')
def whole(tmp_path_factory, root):
    "A book of two chapters in which every rule holds"
    tree = tmp_path_factory.mktemp('book')
    for d in ('nbs', 'posebook'): (tree/d).mkdir()
    shutil.copy(root/'settings.ini', tree)
    add_chapter(tree, '00_first', 'import torch', 'def one():\n    "One"\n    return 1')
    add_chapter(tree, '00a_second', 'from posebook.first import one',
                'def two():\n    "Two"\n    return one()+one()')
    return export(tree)

@pytest.fixture
def tree(whole, tmp_path):
    "A copy of that book, to break"
    return shutil.copytree(whole, tmp_path/'book')

def export(tree):
    "Write posebook/ of a small tree"
    build = tree/'build'
    build.mkdir()
    inv.rebuild(tree, build)
    for old in (tree/'posebook').glob('*.py'): old.unlink()
    for d in ('nbs', 'posebook'): shutil.copytree(build/d, tree/d, dirs_exist_ok=True)
    shutil.rmtree(build)
    return tree

def module(tree, code, name='second'):
    "Replace a module, as if its notebook had exported `code`"
    (tree/f'posebook/{name}.py').write_text(code)
    return tree

def fails(problems, text):
    assert any(text in p for p in problems), f'{text!r} is not in {problems}'

@pytest.mark.parametrize('rule', inv.RULES, ids=lambda r: r.__name__)
def test_small_tree_is_whole(tree, rule): assert rule(tree) == []

@pytest.mark.parametrize('code', ['from .second import two', 'import posebook.second',
    'from posebook import second', 'from . import second', 'from .first import one',
    'def f():\n    from posebook.second import two',
    'import importlib\nimportlib.import_module("posebook.second")'])
def test_import_order(tree, code):
    fails(inv.import_order(module(tree, code, 'first')), 'not an earlier chapter')

def test_import_of_nothing(tree):
    fails(inv.import_order(module(tree, 'from .elsewhere import x')), 'which no notebook exports')
    fails(inv.import_order(module(tree, '', 'orphan')), 'orphan.py: no notebook exports it')

def test_letters_sort_after_their_number(tree):
    for name in ('00b_b', '00ba_ba', '01_one', '10_ten'): add_chapter(tree, name, 'x = 1')
    assert list(inv.chapters(tree)) == ['first', 'second', 'b', 'ba', 'one', 'ten']

def test_page_addresses(tree):
    add_chapter(tree, '03_first', 'x = 1')
    fails(inv.one_module_each(tree), 'same page address as 00_first.ipynb')
    write_nb(tree/'nbs/04_other.ipynb', '#| default_exp another')
    fails(inv.one_module_each(tree), 'exports another, expected other')

def test_edited_module(tree):
    p = tree/'posebook/first.py'
    p.write_text(p.read_text().replace('return 1', 'return 2'))
    fails(inv.exported_and_clean(tree), 'first.py: not what the notebooks export')

def test_deleted_notebook(tree):
    (tree/'nbs/00a_second.ipynb').unlink()
    fails(inv.exported_and_clean(tree), 'second.py: not what the notebooks export')

def test_unexported_notebook(tree):
    add_chapter(tree, '01_third', 'x = 1')
    fails(inv.exported_and_clean(tree), 'third.py: not what the notebooks export')

def test_unclean_notebook(tree):
    p = tree/'nbs/00_first.ipynb'
    p.write_text(p.read_text().replace('"metadata": {}', '"metadata": {"scrolled": true}', 1))
    fails(inv.exported_and_clean(tree), '00_first.ipynb: not clean')

def test_no_figure(tree):
    add_chapter(tree, '01_third', 'x = 1', outputs=())
    assert inv.figures(tree) == ['nbs/01_third.ipynb: shows no figure']

@pytest.mark.parametrize('code', ['nbdev_export'+'()', '#| eval: false\n1', '!false',
    '%%capture\nassert False', 'from threading import Thread', 'import os; os._exit(0)'])
def test_untested_cells(tree, code):
    write_nb(tree/'nbs/01_third.ipynb', '#| default_exp third', code)
    fails(inv.untested_cells(tree), 'nbs/01_third.ipynb')

def test_stored_errors(tree):
    error = dict(output_type='error', ename='ZeroDivisionError', evalue='', traceback=[])
    add_chapter(tree, '01_third', '1/0', outputs=[error])
    fails(inv.stored_errors(tree), 'ZeroDivisionError')

def test_heavy_import(tree):
    fails(inv.light_import(module(tree, 'import numpy', '__init__')), 'imports numpy')
    work = 'sum(i*i for i in range(20_000_000))'
    fails(inv.light_import(module(tree, work, '__init__')), 'expected under 0.2')
    fails(inv.light_import(module(tree, 'import not_there', '__init__')), 'cannot be imported')

@pytest.mark.parametrize('code', ['import scipy', 'from numba import njit',
    'if True:\n    import viser', 'try: import faiss\nexcept ImportError: faiss = None',
    'class A:\n    import smplcodec'])
def test_optional_import_at_the_top(tree, code):
    fails(inv.optional_imports(module(tree, code)), 'which the base install lacks')

def test_undeclared_import(tree):
    code = 'def f():\n    import pandas'
    fails(inv.optional_imports(module(tree, code)), 'which no extra of settings.ini brings')
    assert inv.optional_imports(module(tree, 'def f():\n    import viser, faiss, json')) == []

@pytest.mark.parametrize('code', ['def f(device="cuda"): pass', 'def f(*, device="cuda:1"): pass',
    'x.to("mps")', 'x.cuda()', 'f(x)[0].to(torch.device("cuda"))', 'torch.zeros(3, device="cuda")',
    'torch.device("cuda" if torch.cuda.is_available() else "cpu")', 'p = "/home/me/data"',
    'p = "~/data"', 'p = "../shared/data"', r'p = "C:\\data"', 'def f(path="/data/amass"): pass',
    'import os\nos.environ["X"]', 'import os\nos.getenv("X")', 'torch.manual_seed(0)',
    'np.random.seed(0)', 'pl.seed_everything(1)', 'torch.set_default_dtype(x)',
    'def f():\n    global x\n    x = 1'])
def test_hard_coding(tree, code):
    fails(inv.no_hard_coding(module(tree, code)), 'posebook/second.py:')

@pytest.mark.parametrize('code', ['"Reads /home/me when told to"', 'def f(device=None): pass',
    'fast = x.device.type == "cuda"', 'unit = "m/s"', 'g = torch.Generator().manual_seed(0)',
    'x.to(y.device)', 'y = "a/b"', 'with torch.random.fork_rng(): torch.manual_seed(0)'])
def test_not_hard_coding(tree, code): assert inv.no_hard_coding(module(tree, code)) == []

def test_restricted_reading(tree):
    assert inv.safe_reading(module(tree, 'torch.load(f, weights_only=True)')) == []

@pytest.mark.parametrize('code', ['pickle.load(f)', 'np.load(f, allow_pickle=True)', 'eval(x)',
    'torch.load(f)', 'torch.load(f, weights_only=False)', 'yaml.load(f)'])
def test_unsafe_reading(tree, code):
    fails(inv.safe_reading(module(tree, code)), 'may run code from a file')
