"""The rules of style that a machine can check, as functions from the top folder to problems.

What is a matter of judgement is only reported: `python tests/style.py` prints the measures of each
chapter.
"""
import ast, io, re, sys, tokenize
from pathlib import Path
from statistics import median

from invariants import cells, code_cells, notebooks, source

SIZE, LINES, WIDTH = 300_000, 600, 140   # bytes of a notebook, its exported lines, a line's length
WIDE = 100  # what a line should keep to; pages cut the code of chapters at 85
# Methods of Lightning and torch, documented there; a chapter that overrides one need not repeat it.
HOOK = re.compile(r'on_\w+|\w+_step|\w+_dataloader|forward|backward|setup|teardown|prepare_data|'
                  r'configure_\w+|log_dict|state_dict|load_state_dict')
CLOSING = 'What can go wrong', 'Try it', 'Sources'
EXPORT = re.compile(r'^#\|\s*exports?\b', re.M)

def numbered(root): return [nb for nb in notebooks(root) if nb.name[0].isdigit()]
def directives(text): return re.findall(r'^#\|\s*(.+?)\s*$', text, re.M)
def code(text): return [l for l in text.splitlines() if l.strip() and not l.startswith('#|')]
def exported(nb): return [source(c) for c in code_cells(nb) if EXPORT.search(source(c))]
def exported_lines(nb): return sum(len(code(s)) for s in exported(nb))

def tests_of(nb):
    "The cells that are not exported and assert something"
    texts = [source(c) for c in code_cells(nb)]
    return [s for s in texts if not EXPORT.search(s) and re.search(r'\bassert\b|\btest_\w+\(', s)]

# ---- hard rules

def small(root):
    "Notebooks that are too large, and chapters that export too many lines"
    heavy = [f'nbs/{nb.name}: {nb.stat().st_size//1000} kB, expected under {SIZE//1000}'
             for nb in notebooks(root) if nb.stat().st_size >= SIZE]
    return heavy + [f'nbs/{nb.name}: {n} exported lines, expected at most {LINES}; split it'
                    for nb in notebooks(root) if (n := exported_lines(nb)) > LINES]

def shape(root):
    "Chapters that do not begin with their title and claim, or lack a closing section"
    problems = []
    for nb in numbered(root):
        said = '\n'.join(source(c) for c in cells(nb) if c['cell_type'] == 'markdown')
        first = source(next(iter(code_cells(nb)), {'source': ''}))
        if not re.match(r'#\|\s*default_exp', first):
            problems.append(f'nbs/{nb.name}: the first code cell is not `#| default_exp`')
        if not re.match(r'# .+\n+> .+', said):
            problems.append(f'nbs/{nb.name}: does not begin with `# Title` and `> one sentence`')
        problems += [f'nbs/{nb.name}: has no section "{s}"' for s in CLOSING
                     if not re.search(rf'^## {s}', said, re.M)]
        if not tests_of(nb): problems.append(f'nbs/{nb.name}: tests nothing beside the code')
    return problems

def imports_apart(root):
    "Exported cells that mix imports with other code: building the documentation runs such cells"
    problems = []
    for nb in notebooks(root):
        for text in exported(nb):
            kinds = {isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(text).body}
            if len(kinds) > 1:
                problems.append(f'nbs/{nb.name}: imports and code in one cell: {code(text)[0]!r}')
    return problems

def commented(text):
    "The line numbers of a source text that end in a comment"
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {t.start[0] for t in tokens if t.type == tokenize.COMMENT}

def is_public(name): return not name.startswith('_')

def public_functions(tree):
    "(qualified name, function, whether it is a method) of the public functions of a module"
    for n in tree.body:
        if isinstance(n, ast.FunctionDef) and is_public(n.name): yield n.name, n, is_patch(n)
        if isinstance(n, ast.ClassDef) and is_public(n.name):
            yield from ((f'{n.name}.{m.name}', m, True) for m in n.body
                        if isinstance(m, ast.FunctionDef) and is_public(m.name))

def is_patch(f): return any('patch' in ast.unparse(d) for d in f.decorator_list)

def parameters(f):
    "(parameter, the line on which it and its default end) of a function"
    plain = f.args.posonlyargs+f.args.args
    defaults = [None]*(len(plain)-len(f.args.defaults)) + f.args.defaults + f.args.kw_defaults
    for a, d in zip(plain+f.args.kwonlyargs, defaults): yield a, (d or a).end_lineno

def undocumented(text):
    "(line, what) of public names without a docstring, and of parameters without their own comment"
    tree, comments = ast.parse(text), commented(text)
    for n in tree.body:
        if isinstance(n, ast.ClassDef) and is_public(n.name) and not ast.get_docstring(n):
            yield n.lineno, f'{n.name} has no docstring'
    for name, f, method in public_functions(tree):
        if method and HOOK.fullmatch(f.name): continue
        if not ast.get_docstring(f): yield f.lineno, f'{name} has no docstring'
        if method and not is_patch(f): continue   # it may repeat the signature of its base class
        ends = list(parameters(f))[method:]
        lines = [line for _, line in ends]
        for a, line in ends:
            if line not in comments or lines.count(line) > 1:
                yield a.lineno, f'{name}: nothing says what {a.arg} is'

def documented(root):
    "Public functions without a docstring, and parameters that nothing explains"
    return [f'posebook/{p.name}:{line}: {what}' for p in sorted((root/'posebook').glob('[!_]*.py'))
            for line, what in undocumented(p.read_text(encoding='utf-8'))]

def narrow(root):
    "Lines of chapters' code, tests and scripts that are too wide"
    files = [p for d in ('tests', 'benchmarks', '.github') for p in sorted((root/d).glob('*.py'))]
    texts = [(str(p.relative_to(root)), p.read_text(encoding='utf-8')) for p in files]
    texts += [(f'nbs/{nb.name}', source(c)) for nb in notebooks(root) for c in code_cells(nb)]
    return [f'{name}: {len(l)} characters in a line, expected at most {WIDTH}: {l.strip()[:50]!r}'
            for name, text in texts for l in text.splitlines()
            if len(l) > WIDTH and 'http' not in l]

RULES = [small, shape, imports_apart, documented, narrow]

# ---- measures, for the eye

def measures(nb):
    "Cells, lines of code in a cell, words per exported line, test cells per exported cell, size"
    texts = [source(c) for c in code_cells(nb)]
    sizes = [len(code(t)) for t in texts if code(t)]
    words = sum(len(source(c).split()) for c in cells(nb) if c['cell_type'] == 'markdown')
    out, lines = exported(nb), exported_lines(nb)
    wide = sum(len(l) > WIDE for t in texts for l in t.splitlines())
    return dict(cells=len(cells(nb)), exported=lines, median=median(sizes or [0]),
                longest=max(sizes, default=0), wide=wide, words=words/max(lines, 1),
                tests=len(tests_of(nb))/max(len(out)-1, 1), kB=nb.stat().st_size//1000)

def main(root):
    "Print the measures of every chapter"
    rows = {nb.stem: measures(nb) for nb in notebooks(root)}
    for i, (name, m) in enumerate(rows.items()):
        if not i: print(f'{"":16}' + ''.join(f'{k:>10}' for k in m))
        print(f'{name:16}' + ''.join(f'{v:10.3g}' for v in m.values()))

if __name__ == '__main__': main(Path(sys.argv[1] if len(sys.argv) > 1 else '.'))
