"""Check what is committed: sizes, paths of one machine, and calls that may run code from a file.

Stored pictures in notebooks are not read as text. `NAMES_IT` are the files that must name what they
forbid.
"""
import json, re, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MB = 1024*1024
LARGE = ('data/', 'posebook/pretrained/')  # may hold files over 1 MB; together under 40 MB
NAMES_IT = {'.github/check_files.py', 'tests/invariants.py', 'tests/test_invariants.py'}
SHARED_OK = ('tests/', 'benchmarks/', 'CONTRIBUTING.md')

# pattern: (why, whether the folders tests/ and benchmarks/ may)
FORBIDDEN = {r'(?<![\w.])/(work|root|tmp|home/\w+|Users/\w+)/': ('path of one machine', False),
             r'allow_pickle\s*=\s*True': ('may run code from a file', True),
             r'weights_only\s*=\s*False': ('may run code from a file', True),
             r'\bpickle\.loads?\b': ('may run code from a file', True),
             r'#\|\s*eval:\s*false': ('a cell that is never tested', False),
             r'^%%capture': ('hides a failing assert', False)}

def tracked():
    "The committed files, links left out"
    out = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    names = out.stdout.decode().split('\0')
    return [f for f in names if f and (ROOT/f).is_file() and not (ROOT/f).is_symlink()]

def text_of(path):
    "The text of a file, of a notebook its cells and textual outputs; '' for a binary file"
    raw = path.read_bytes()
    if b'\0' in raw[:8192]: return ''
    text = raw.decode('utf-8', errors='replace')
    if path.suffix != '.ipynb': return text
    made = json.loads(text)['cells']
    outputs = [o for c in made for o in c.get('outputs', [])]
    shown = [v for o in outputs for k, v in [('', o.get('text', '')), *o.get('data', {}).items()]
             if not k.startswith('image/') and isinstance(v, (str, list))]
    lines = [''.join(v) for v in [*(c['source'] for c in made), *shown]]
    return re.sub(r'base64,[\w+/=\s]+', '', '\n'.join(lines))

def forbidden(name, text):
    "What the text of the file `name` may not contain"
    for pattern, (why, tests_may) in FORBIDDEN.items():
        if tests_may and name.startswith(('tests/', 'benchmarks/')): continue
        for found in re.finditer(pattern, text, re.M): yield f'{found[0]!r}: {why}'
    if '../shared' in text and not name.startswith(SHARED_OK):
        yield "'../shared' is read by tests and benchmarks only"

def problems(files):
    "One sentence for each thing that may not be committed"
    sizes = {f: (ROOT/f).stat().st_size for f in files}
    for f, size in sizes.items():
        if size > MB and not f.startswith(LARGE):
            yield f'{f}: {size/MB:.1f} MB; only {" and ".join(LARGE)} may hold files over 1 MB'
    total = sum(s for f, s in sizes.items() if f.startswith(LARGE))/MB
    if total > 40: yield f'{" and ".join(LARGE)} hold {total:.0f} MB together; 40 at most'
    for f in files:
        if f not in NAMES_IT: yield from (f'{f}: {what}' for what in forbidden(f, text_of(ROOT/f)))

def main():
    "Print the problems; the exit status says whether there were any"
    files = tracked()
    found = list(problems(files))
    print(*found, f'{len(files)} files, {len(found)} problems', sep='\n')
    sys.exit(bool(found) or not files)

if __name__ == '__main__': main()
