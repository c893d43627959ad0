"The rules of style hold, and each fails on a chapter that breaks it."
import json

import pytest
import style

@pytest.mark.parametrize('rule', style.RULES, ids=lambda r: r.__name__)
def test_holds(root, rule):
    problems = rule(root)
    assert not problems, '\n'+'\n'.join(problems)

GOOD = '''#| exports
def double(
    x:float, # A length in metres
    times:int=1, # How often
)->float: # Metres
    "Twice `x`, `times` over"
    return x*2**times
'''

TITLE = '# Double\n\n> Twice is more than once.'

def chapter(*code, title=TITLE, end=style.CLOSING):
    "The cells of a chapter in style, with `code` in the middle"
    text = lambda s: dict(cell_type='markdown', source=s, metadata={})
    run = lambda s: dict(cell_type='code', source=s, metadata={}, outputs=[], execution_count=None)
    closing = [text(f'## {e}') for e in end]
    return [run('#| default_exp double'), text(title), *map(run, code), *closing]

def write(root, made, name='00_double'):
    "A book of one chapter; its module holds the exported cells"
    for d in ('nbs', 'posebook'): (root/d).mkdir(exist_ok=True)
    nb = dict(cells=made, metadata={}, nbformat=4, nbformat_minor=5)
    (root/f'nbs/{name}.ipynb').write_text(json.dumps(nb))
    module = '\n'.join(s for c in made if style.EXPORT.search(s := c['source']))
    (root/f'posebook/{name.split("_", 1)[1]}.py').write_text(module)
    return root

def fails(problems, text):
    assert any(text in p for p in problems), f'{text!r} is not in {problems}'

TEST = 'assert double(1.) == 2.'

def test_good_chapter(tmp_path):
    write(tmp_path, chapter('#| export\nimport math', GOOD, TEST))
    assert [p for rule in style.RULES for p in rule(tmp_path)] == []

def test_small(tmp_path):
    fails(style.small(write(tmp_path, chapter(GOOD, '#'+'x'*300_000))), 'expected under 300')
    fails(style.small(write(tmp_path, chapter('#| export\n'+'x = 1\n'*601))), '601 exported lines')

@pytest.mark.parametrize('made, text', [
    (chapter(GOOD, TEST, title='Double'), '`# Title`'),
    (chapter(GOOD, TEST, title='# Double\n\nTwice.'), '`# Title`'),
    (chapter(GOOD, TEST, end=('Try it', 'Sources')), '"What can go wrong"'),
    (chapter(GOOD), 'tests nothing'), (chapter(GOOD, TEST)[1:], '`#| default_exp`')])
def test_shape(tmp_path, made, text): fails(style.shape(write(tmp_path, made)), text)

def test_imports_apart(tmp_path):
    mixed = chapter('#| export\nimport math\ntau = 2*math.pi')
    fails(style.imports_apart(write(tmp_path, mixed)), 'import math')

@pytest.mark.parametrize('broken, text', [
    (GOOD.replace('    "Twice `x`, `times` over"\n', ''), 'double has no docstring'),
    (GOOD.replace(' # How often', ''), 'nothing says what times is'),
    (GOOD.replace(' # A length in metres\n    times', ' times'), 'nothing says what x is'),
    ('#| exports\nclass A:\n    def f(self):\n        "F"', 'A has no docstring'),
    ('#| exports\nclass A:\n    "A"\n    def f(self): return 1', 'A.f has no docstring'),
    ('#| exports\n@patch\ndef f(self:A, x):\n    "F"', 'nothing says what x is')])
def test_documented(tmp_path, broken, text):
    fails(style.documented(write(tmp_path, chapter(broken, TEST))), text)

def test_hooks_need_no_comments(tmp_path):
    step = '#| exports\n@patch\ndef training_step(self:A, batch): return 1'
    assert style.documented(write(tmp_path, chapter(step, TEST))) == []

def test_narrow(tmp_path):
    fails(style.narrow(write(tmp_path, chapter('x = '+'1+'*80+'1'))), 'expected at most 140')

def test_measures(tmp_path):
    made = chapter('#| export\nimport math', GOOD, TEST)
    m = style.measures(write(tmp_path, made)/'nbs/00_double.ipynb')
    assert (m['exported'], m['longest'], m['tests']) == (7, 6, 1)
