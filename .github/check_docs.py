"""Check the pages of the site without Quarto: `N pages, N problems`.

Every notebook is processed as for the site (its imports run, its documentation tables render),
and the result is compared with the sidebar of _quarto.yml.
"""
import re, shutil, sys
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
    if path.stem != 'index' and not meta.get('description'):
        yield 'has no claim: a line that begins with > under the title'
    for cell in nb.cells:
        for o in cell.get('outputs', []):
            if o['output_type'] == 'error': yield f'stores an error: {o["ename"]}'
        if cell.cell_type != 'markdown': continue
        for link in re.findall(r'!\[[^\]]*\]\(([^)\s]+)\)|<img[^>]+src="([^"]+)"', cell.source):
            target = link[0] or link[1]
            elsewhere = '://' in target or target.startswith(('data:', 'attachment:'))
            if not elsewhere and not (folder/target).exists():
                yield f'shows {target}, which does not exist'

def sidebar_problems(names, config):
    "Pages that the sidebar lacks, names too often, or has in another order"
    entries = list(listed(config['website']['sidebar']['contents']))
    for n in sorted(set(names)-set(entries)): yield f'_quarto.yml: the sidebar lacks {n}'
    for n in sorted(set(entries)-set(names)):
        yield f'_quarto.yml: the sidebar names {n}, which does not exist'
    present = [e for e in entries if e in names]
    expected = sorted(names, key=lambda n: (n != 'index.ipynb', n))
    if sorted(present) == sorted(expected) and present != expected:
        yield '_quarto.yml: the sidebar is not in reading order'

def settings_problems(nbs):
    "Generated settings that were out of date (now written again), and a lost link"
    written = nbs/'nbdev.yml'
    before = written.read_text(encoding='utf-8') if written.exists() else ''
    refresh_quarto_yml()
    if written.read_text(encoding='utf-8') != before: yield 'nbs/nbdev.yml: was out of date'
    if not (nbs/'_quarto.yml').samefile(ROOT/'_quarto.yml'):
        yield 'nbs/_quarto.yml: is not a link to ../_quarto.yml'

def main():
    "Process every page and print what is wrong with it"
    nbs = get_config().nbs_path
    names = sorted(p.name for p in nbs.glob('*.ipynb') if not p.name.startswith('_'))
    config = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))
    problems = [*settings_problems(nbs), *sidebar_problems(names, config)]
    print(f'processing {len(names)} notebooks', flush=True)
    shutil.rmtree(ROOT/'_proc', ignore_errors=True)  # what a failed run left would become pages
    cache = proc_nbs(force=True, n_workers=2)
    for name in names:
        page = cache/name
        found = list(page_problems(page, nbs)) if page.exists() else ['could not be processed']
        print(f'{"FAIL" if found else "ok  "} {name}', flush=True)
        problems += [f'{name}: {p}' for p in found]
    shutil.rmtree(cache, ignore_errors=True)
    for p in problems: print(p)
    print(f'{len(names)} pages, {len(problems)} problems')
    sys.exit(bool(problems) or not names)

if __name__ == '__main__': main()
