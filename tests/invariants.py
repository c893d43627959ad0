"""The rules that keep posebook one book, as functions from the top folder to a list of problems.

A problem is one sentence that begins with the file. No problem means that the rule holds.
`test_invariants.py` applies them to the repository, and to small broken trees to show that each
can fail.
"""
import ast, json, os, re, shutil, subprocess, sys, tempfile
from configparser import ConfigParser
from pathlib import Path

# ---- reading

def notebooks(root):
    "The notebooks in reading order, which is the order of their file names"
    return sorted(p for p in (root/'nbs').glob('*.ipynb') if not p.name.startswith('_'))

def cells(nb): return json.loads(nb.read_text(encoding='utf-8'))['cells']
def source(cell): return ''.join(cell['source'])
def code_cells(nb): return [c for c in cells(nb) if c['cell_type'] == 'code']

def module_of(nb):
    "The module that a notebook exports to, or None"
    text = '\n'.join(source(c) for c in code_cells(nb))
    found = re.search(r'^#\|\s*default_exp\s+(\S+)', text, re.M)
    return found[1] if found else None

def chapters(root):
    "{module: position in reading order} of the notebooks that export one"
    return {m: i for i, nb in enumerate(notebooks(root)) if (m := module_of(nb))}

def modules(root):
    "{module: syntax tree} of posebook/*.py, without those that nbdev writes for itself"
    return {p.stem: ast.parse(p.read_text(encoding='utf-8'), p.name)
            for p in sorted((root/'posebook').glob('*.py')) if not p.stem.startswith('_')}

def settings(root):
    "The [DEFAULT] section of settings.ini"
    config = ConfigParser(delimiters=['='])
    config.read(root/'settings.ini', encoding='utf-8')
    return config['DEFAULT']

def top_level(tree):
    "The nodes of a module that run when it is imported: everything outside functions"
    todo = list(ast.iter_child_nodes(tree))
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            todo += ast.iter_child_nodes(node)

def imported(node, package='posebook'):
    "The dotted names that an import statement brings in; `from . import x` counts as `posebook.x`"
    if isinstance(node, ast.Import): return [a.name for a in node.names]
    if isinstance(node, ast.ImportFrom):
        base = '.'.join(filter(None, [package if node.level else '', node.module]))
        return [f'{base}.{a.name}' for a in node.names] if base == package else [base]
    if not isinstance(node, ast.Call): return []
    named = dotted(node.func).split('.')[-1] in ('import_module', '__import__')
    return [a.value for a in node.args[:1] if named and a in strings(a)]

def strings(node):
    "The string literals in a syntax tree"
    return [n for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]

def dotted(node):
    "`a.b.c` as written, or '' for anything else"
    if isinstance(node, ast.Name): return node.id
    if isinstance(node, ast.Attribute): return f'{dotted(node.value)}.{node.attr}'
    return ''

# ---- 1. a module imports only modules of earlier chapters

def import_order(root):
    "Imports within posebook that do not go backwards in reading order, wherever they stand"
    order, problems = chapters(root), []
    for name, tree in modules(root).items():
        if name not in order: problems.append(f'posebook/{name}.py: no notebook exports it')
        used = {n.split('.')[1] for node in ast.walk(tree) for n in imported(node)
                if n.startswith('posebook.')}
        for other in sorted(o for o in used if not o.startswith('__')):
            if other not in order:
                problems.append(f'posebook/{name}.py: imports {other}, which no notebook exports')
            elif order[other] >= order.get(name, len(order)):
                problems.append(f'posebook/{name}.py: imports {other}, not an earlier chapter')
    return problems

def one_module_each(root):
    "Notebooks that share a page address, or whose module is not the name after the number"
    problems, seen = [], {}
    for nb in notebooks(root):
        page = re.sub(r'^\d+[a-z]*_', '', nb.stem)
        if page in seen: problems.append(f'nbs/{nb.name}: same page address as {seen[page]}')
        seen[page] = nb.name
        module = module_of(nb)
        if nb.stem != 'index' and module != page:
            problems.append(f'nbs/{nb.name}: exports {module}, expected {page}')
    return problems

# ---- 2. posebook/ is exactly what nbdev makes of nbs/, and notebooks are clean

REBUILD = """
from nbdev.doclinks import nbdev_export
from nbdev.clean import nbdev_clean
nbdev_export.__wrapped__()
nbdev_clean.__wrapped__()
"""

def rebuild(root, folder):
    "Export and clean a copy of the notebooks of `root` in the empty `folder`"
    shutil.copy(root/'settings.ini', folder)
    (folder/'nbs').mkdir()
    for nb in (root/'nbs').glob('*.ipynb'): shutil.copy(nb, folder/'nbs')
    (folder/'posebook').mkdir()
    env = {**os.environ, 'HOME': str(folder), 'PYTHONPATH': str(folder)}
    p = subprocess.run([sys.executable, '-c', REBUILD], cwd=folder, env=env, capture_output=True,
                       text=True, timeout=300)
    if p.returncode:
        raise RuntimeError(f'nbdev could not export the notebooks:\n{p.stdout}{p.stderr}')

def exported_and_clean(root):
    "Modules that are not what the notebooks export, and notebooks that `nbdev_clean` changes"
    with tempfile.TemporaryDirectory() as d:
        fresh = Path(d).resolve()
        rebuild(root, fresh)
        ours, theirs = [{p.name: p.read_bytes() for p in (r/'posebook').glob('*.py')}
                        for r in (root, fresh)]
        changed = sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n))
        dirty = [nb.name for nb in sorted((root/'nbs').glob('*.ipynb'))
                 if nb.read_bytes() != (fresh/'nbs'/nb.name).read_bytes()]
    return [f'posebook/{n}: not what the notebooks export; run `make export`' for n in changed] + [
        f'nbs/{n}: not clean; run `make export`' for n in dirty]

# ---- 3. every chapter shows a figure and really runs (run_notebooks.py holds it to its time)

def is_figure(output):
    "Whether a stored output is a picture or an animation"
    data = output.get('data', {})
    return any(k.startswith('image/') for k in data) or bool(
        re.search(r'<(svg|img|canvas|video)\b', ''.join(data.get('text/html', ''))))

def figures(root):
    "Chapters that show no figure; in the index a linked picture counts"
    shown = lambda nb: any(is_figure(o) for c in code_cells(nb) for o in c['outputs'])
    linked = lambda nb: nb.stem == 'index' and any(
        re.search(r'!\[|<img', source(c)) for c in cells(nb) if c['cell_type'] == 'markdown')
    return [f'nbs/{nb.name}: shows no figure' for nb in notebooks(root)
            if not shown(nb) and not linked(nb)]

# nbdev passes a notebook without having run these, or without noticing that they failed
UNTESTED = {r'nbdev_export\(': 'a cell with that text is never tested',
            r'^#\|\s*eval:\s*false': 'the cell is never tested',
            r'^%%capture': 'it hides a failing assert',
            r'^\s*!\w': 'a failing command passes',
            r'^\s*(import|from) threading|\bThread\(': 'an error in a thread passes',
            r'os\._exit': 'it ends the run as a success',
            r'skip_exec:\s*true': 'the notebook is never run'}

def untested_cells(root):
    "Cells that nbdev_test would pass without running them or without noticing that they failed"
    return [f'nbs/{nb.name}: `{found[0].strip()}` in a cell: {why}' for nb in notebooks(root)
            for c in cells(nb) if c['cell_type'] != 'markdown' for pattern, why in UNTESTED.items()
            if (found := re.search(pattern, source(c), re.M))]

def stored_errors(root):
    "Notebooks with a stored output that is an error"
    return [f'nbs/{nb.name}: a stored output is an error ({o["ename"]})' for nb in notebooks(root)
            for c in code_cells(nb) for o in c['outputs'] if o['output_type'] == 'error']

# ---- 4. importing posebook is light, and optional packages are imported where they are used

INIT = 'posebook/__init__.py'
HEAVY = ('torch transformers matplotlib numpy scipy pytorch_lightning smplx numba viser faiss '
         'fastcore').split()
LIGHT = """
import sys, time
start = time.process_time()
import posebook
spent = time.process_time()-start
print(spent, *sorted(sys.modules))
"""

def light_import(root, limit=.2, repeats=3):
    "What `import posebook` brings in, and its best processor time when that is over `limit` s"
    env = {**os.environ, 'PYTHONPATH': str(root), 'PYTHONDONTWRITEBYTECODE': '1'}
    runs = []
    for _ in range(repeats):
        p = subprocess.run([sys.executable, '-c', LIGHT], cwd=root, env=env, capture_output=True,
                           text=True, timeout=120)
        if p.returncode: return [f'{INIT}: cannot be imported: {p.stderr.strip().splitlines()[-1]}']
        runs.append(p.stdout.split())
    heavy = sorted(set(HEAVY) & {m.split('.')[0] for m in runs[0][1:]})
    best = min(float(r[0]) for r in runs)
    problems = [f'{INIT}: importing it imports {", ".join(heavy)}'] if heavy else []
    slow = f'{INIT}: importing it takes {best:.2f} s, expected under {limit}'
    return problems + ([slow] if best > limit else [])

# import names that do not follow from the requirement's, and what a requirement surely brings along
IMPORT_NAMES = {'pillow': {'PIL'}, 'pytorch-lightning': {'pytorch_lightning', 'lightning_fabric', 'torchmetrics'},
                'jsonargparse': {'jsonargparse', 'yaml'}, 'faiss-cpu': {'faiss'}}

INTERNAL = 'dev', 'bench'           # extras that are not for users
# no wheel for every platform; only ever there in a notebook; a peer to compare with, for developers
OUTSIDE = {'pytorch3d', 'IPython', 'zuko'}

def names_of(requirements):
    "The import names of a requirements line, as {'torch', 'numpy'}"
    packages = [re.split(r'[\[<>=!~;]', r)[0].lower() for r in requirements.split()]
    return {n for p in packages for n in IMPORT_NAMES.get(p, {p.replace('-', '_')})}

def optional_imports(root):
    "Imports at the top that the base install lacks, and imports anywhere that no extra brings"
    cfg = settings(root)
    base = names_of(cfg['requirements']) | set(sys.stdlib_module_names) | {'posebook'}
    brought = {n for k, v in cfg.items() if k.endswith('_requirements') and k[:-13] not in INTERNAL
               for n in names_of(v)} | base | OUTSIDE
    used = lambda nodes: {n.split('.')[0] for node in nodes for n in imported(node)}
    problems = []
    for name, tree in modules(root).items():
        at_top, anywhere = used(top_level(tree)), used(ast.walk(tree))
        problems += [f'posebook/{name}.py: imports {p} at the top, which the base install lacks'
                     for p in sorted(at_top-base)]
        problems += [f'posebook/{name}.py: imports {p}, which no extra of settings.ini brings'
                     for p in sorted(anywhere-at_top-brought)]
    return problems

# ---- 5. no global config, no hard-coded path or device, no reseeding; no unsafe reading

DEVICE = re.compile(r'(cuda|mps|xpu)(:\d+)?')
TOPS = 'home|root|usr|opt|mnt|data|var|etc|scratch|Users|tmp|work|media|srv|workspace'
PATH = re.compile(rf'/({TOPS})(/|$)|~/|[A-Za-z]:\\|\.\./')
RESEED = set('torch.manual_seed torch.seed torch.cuda.manual_seed torch.cuda.manual_seed_all '
             'np.random.seed numpy.random.seed random.seed pl.seed_everything '
             'seed_everything'.split())
GLOBAL = set('os.environ os.getenv torch.set_default_dtype torch.set_default_device np.seterr '
             'torch.set_num_threads plt.switch_backend matplotlib.use numpy.seterr'.split())
UNSAFE = set('pickle.load pickle.loads torch.load joblib.load yaml.load yaml.unsafe_load '
             'eval exec'.split())

def docstrings(tree):
    "The ids of the string nodes that are documentation"
    kinds = ast.Module, ast.ClassDef, ast.FunctionDef
    first = [n.body[0] for n in ast.walk(tree) if isinstance(n, kinds) and n.body]
    return {id(n.value) for n in first if isinstance(n, ast.Expr)}

def forked(tree):
    "The ids of the nodes within `with torch.random.fork_rng()`, which puts the random state back"
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.With)
              and any('fork_rng' in ast.unparse(i.context_expr) for i in n.items)]
    return {id(inner) for n in blocks for inner in ast.walk(n)}

def hard_coded(tree):
    "(line, what) of every literal path or device, use of global state and reseeding in a module"
    docs, restored = docstrings(tree), forked(tree)
    for n in strings(tree):
        if id(n) not in docs and PATH.match(n.value): yield n.lineno, f'the path {n.value!r}'
    for n in ast.walk(tree):
        if isinstance(n, (ast.FunctionDef, ast.Lambda)):
            defaults = [s for d in n.args.defaults+n.args.kw_defaults if d for s in strings(d)]
            for s in defaults:
                if DEVICE.fullmatch(s.value): yield s.lineno, f'the default device {s.value!r}'
        if isinstance(n, ast.Global): yield n.lineno, f'global {", ".join(n.names)}'
        if isinstance(n, ast.Attribute) and dotted(n) in GLOBAL: yield n.lineno, dotted(n)
        if isinstance(n, ast.Call): yield from hard_coded_call(n)
        if isinstance(n, ast.Call) and dotted(n.func) in RESEED and id(n) not in restored:
            yield n.lineno, f'{dotted(n.func)}() reseeds the global random state'

def hard_coded_call(n):
    "The literal devices in one call"
    if isinstance(n.func, ast.Attribute) and n.func.attr == 'cuda': yield n.lineno, '.cuda()'
    places = n.args if getattr(n.func, 'attr', '') in ('to', 'device') else []
    places = places+[k.value for k in n.keywords if k.arg in ('device', 'map_location')]
    for s in (s for p in places for s in strings(p)):
        if DEVICE.fullmatch(s.value): yield n.lineno, f'the device {s.value!r}'

def unsafe(tree):
    "(line, what) of every call that may run code from a file"
    for n in ast.walk(tree):
        if not isinstance(n, ast.Call): continue
        if dotted(n.func) in UNSAFE and not weights_only(n): yield n.lineno, f'{dotted(n.func)}()'
        for k in n.keywords:
            given = k.arg, getattr(k.value, 'value', None)
            if given in (('allow_pickle', True), ('weights_only', False)):
                yield n.lineno, f'{k.arg}={k.value.value}'

def weights_only(call):
    "Whether a call is torch's restricted reader"
    given = {k.arg: getattr(k.value, 'value', None) for k in call.keywords}
    return dotted(call.func) == 'torch.load' and given.get('weights_only') is True

def no_hard_coding(root):
    "Global config, literal paths and devices, and reseeding in the modules"
    return [f'posebook/{m}.py:{line}: {what}' for m, tree in modules(root).items()
            for line, what in sorted(hard_coded(tree))]

def safe_reading(root):
    "Calls in the modules that may run code from a file"
    return [f'posebook/{m}.py:{line}: {what} may run code from a file'
            for m, tree in modules(root).items() for line, what in sorted(unsafe(tree))]

RULES = [import_order, one_module_each, exported_and_clean, figures, untested_cells, stored_errors,
         light_import, optional_imports, no_hard_coding, safe_reading]
