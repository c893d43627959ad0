"""Write posebook/ and README.md from nbs/, and clean the notebooks: what `make export` does.

nbdev's own `nbdev_readme` needs the Quarto program; here README.md is made from the processed
index notebook with nbconvert.
"""
import re, shutil, tempfile
from pathlib import Path

import nbformat
from execnb.nbio import read_nb, write_nb
from nbconvert import MarkdownExporter
from nbdev.clean import nbdev_clean
from nbdev.config import get_config
from nbdev.doclinks import nbdev_export
from nbdev.processors import FilterDefaults
from nbdev.quarto import refresh_quarto_yml

def drop_orphans(cfg):
    "Remove modules that no notebook exports any more"
    declared = {m for nb in cfg.nbs_path.glob('*.ipynb')
                for m in re.findall(r'#\|\s*default_exp\s+(\w+)', nb.read_text(encoding='utf-8'))}
    for module in sorted(cfg.lib_path.glob('*.py')):
        if module.stem in declared or module.stem.startswith('_'): continue
        print(f'removed {module.name}: no notebook exports it')
        module.unlink()

def processed(nb_path):
    "The notebook as the documentation shows it: hidden cells gone, names in backticks linked"
    nb = read_nb(nb_path)
    FilterDefaults()(nb)
    with tempfile.TemporaryDirectory() as d:
        write_nb(nb, Path(d)/nb_path.name)
        return nbformat.read(Path(d)/nb_path.name, as_version=4)

def write_readme(nb_path, readme, figures):
    "Write `nb_path` as Markdown to `readme`, its figures into the folder `figures` beside it"
    body, resources = MarkdownExporter().from_notebook_node(
        processed(nb_path), {'output_files_dir': figures.name})
    body = re.sub(r'\A\s*---\n.*?\n---\n', '', body, flags=re.S)              # front matter
    body = re.sub(r'\n{3,}', '\n\n', re.sub(r'[ \t]+$', '', body, flags=re.M)).strip()
    shutil.rmtree(figures, ignore_errors=True)
    for name, data in sorted(resources.get('outputs', {}).items()):
        path = readme.parent/name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    note = f'<!-- Written by `make export` from nbs/{nb_path.name}: edit that. -->'
    body = body.replace('](images/', '](nbs/images/').replace('src="images/', 'src="nbs/images/')
    readme.write_text(f'{note}\n\n{body}\n', encoding='utf-8')

def main():
    "Export, clean, and write the README"
    cfg = get_config()
    nbdev_export.__wrapped__()
    drop_orphans(cfg)
    nbdev_clean.__wrapped__()
    refresh_quarto_yml()
    index = cfg.nbs_path/cfg.readme_nb
    top = cfg.config_path
    if index.exists(): write_readme(index, top/'README.md', top/f'{index.stem}_files')
    print(f'exported {len(list(cfg.lib_path.glob("[!_]*.py")))} modules'
          f'{" and README.md" if index.exists() else "; there is no index notebook yet"}')

if __name__ == '__main__': main()
