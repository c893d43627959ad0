"""Check the pages of the site without Quarto: `N pages, N problems`.

Every notebook is processed as for the site (its exported cells run, its documentation tables render), and the result
is compared with the sidebar of _quarto.yml.
"""
import re, shutil, sys, tempfile
from pathlib import Path

import yaml
from execnb.nbio import read_nb
from nbdev.config import get_config
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs

ROOT = Path(__file__).resolve().parent.parent

def listed(contents):
    "The pages of a sidebar in order, sections opened up"
    for entry in contents:
        if isinstance(entry, str): yield entry
        else: yield from listed(entry['contents'])

def front_matter(nb):
    "The first raw cell's YAML, or {}"
    raw = next((c.source for c in nb.cells if c.cell_type == 'raw'), '')
    return yaml.safe_load(raw.strip().strip('-')) or {} if raw else {}

def page_problems(path, folder):
    "What is wrong with one processed notebook"
    nb = read_nb(path)
    meta = front_matter(nb)
    if not meta.get('title'): yield 'has no title'
    if path.stem != 'index' and not meta.get('description'): yield 'has no claim: a line that begins with > under the title'
    for cell in nb.cells:
        for o in cell.get('outputs', []):
            if o['output_type'] == 'error': yield f'stores an error: {o["ename"]}'
        if cell.cell_type != 'markdown': continue
        for link in re.findall(r'!\[[^\]]*\]\(([^)\s]+)\)|<img[^>]+src="([^"]+)"', cell.source):
            target = link[0] or link[1]
            if '://' not in target and not target.startswith(('data:', 'attachment:')) and not (folder/target).exists():
                yield f'shows {target}, which does not exist'

def sidebar_problems(names, config):
    "Pages that the sidebar lacks, names too often, or has in another order"
    entries = list(listed(config['website']['sidebar']['contents']))
    for n in sorted(set(names)-set(entries)): yield f'_quarto.yml: the sidebar lacks {n}'
    for n in sorted(set(entries)-set(names)): yield f'_quarto.yml: the sidebar names {n}, which does not exist'
    present = [e for e in entries if e in names]
    expected = sorted(names, key=lambda n: (n != 'index.ipynb', n))
    if sorted(present) == sorted(expected) and present != expected: yield '_quarto.yml: the sidebar is not in reading order'

def main():
    "Process every page and print what is wrong with it"
    cfg = get_config()
    nbs = cfg.nbs_path
    config = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))
    before = (nbs/'nbdev.yml').read_text(encoding='utf-8') if (nbs/'nbdev.yml').exists() else ''
    refresh_quarto_yml()
    problems = [] if (nbs/'nbdev.yml').read_text(encoding='utf-8') == before else ['nbs/nbdev.yml: was out of date, now rewritten']
    if not (nbs/'_quarto.yml').samefile(ROOT/'_quarto.yml'): problems.append('nbs/_quarto.yml: is not a link to ../_quarto.yml')
    names = sorted(p.name for p in nbs.glob('*.ipynb') if not p.name.startswith('_'))
    problems += sidebar_problems(names, config)
    pages = {}
    for name in names: pages.setdefault(re.sub(r'^\d+[a-z]*_', '', name), []).append(name)
    problems += [f'{" and ".join(same)}: the same page address' for same in pages.values() if len(same) > 1]
    print(f'processing {len(names)} notebooks', flush=True)
    shutil.rmtree(ROOT/'_proc', ignore_errors=True)
    cache = proc_nbs(force=True, n_workers=2)
    for name in names:
        page = cache/name
        found = list(page_problems(page, nbs)) if page.exists() else ['could not be processed']
        print(f'{"FAIL" if found else "ok  "} {name}', flush=True)
        problems += [f'{name}: {p}' for p in found]
    shutil.rmtree(cache, ignore_errors=True)
    print(*problems, sep='\n', end='\n' if problems else '')
    print(f'{len(names)} pages, {len(problems)} problems')
    sys.exit(bool(problems) or not names)

if __name__ == '__main__': main()
