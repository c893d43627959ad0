"""Check an installed posebook from outside the checkout: python check_wheel.py FOLDER.

FOLDER holds the unpacked wheel and is first on the path. The wheel must hold every module and the
data, configs and weights that the checkout has, and its command must start.
"""
import subprocess, sys
from importlib import import_module, metadata
from pathlib import Path

START = """
import sys
from posebook.cli import main
sys.argv[0] = 'posebook'
sys.exit(main())
"""

def lacking(there, here):
    "The files of the folder `there` that the folder `here` lacks"
    wanted = [f.relative_to(there) for f in there.rglob('*')
              if f.is_file() and '__pycache__' not in f.parts]
    return [f'{there.name}/{f}' for f in wanted if not (here/f).is_file()]

def main(site):
    "Exit with the first thing that is missing, or say how much was found"
    checkout = Path(__file__).resolve().parent.parent
    import posebook
    package = Path(posebook.__file__).resolve().parent
    if package.parent != site.resolve(): sys.exit(f'imported {package}, not the posebook in {site}')
    if metadata.version('posebook') != posebook.__version__:
        sys.exit('the wheel and posebook.__version__ disagree')
    missing = [*lacking(checkout/'data', package/'data'), *lacking(checkout/'posebook', package)]
    if missing: sys.exit(f'the wheel lacks {", ".join(missing)}')
    if not any((package/'data').rglob('*.npz')):
        sys.exit('the wheel holds no embedded motion (posebook/data/*.npz)')
    modules = sorted(p.stem for p in package.glob('*.py') if p.stem != '__init__')
    for m in modules: import_module(f'posebook.{m}')
    entry, = metadata.distribution('posebook').entry_points.select(group='console_scripts')
    if not callable(entry.load()): sys.exit(f'{entry.value} is not a function')
    for args in (['--help'], ['data']):
        subprocess.run([sys.executable, '-c', START, *args], check=True)
    print(f'{len(modules)} modules, {len(list((package/"data").rglob("*")))} files of data')

if __name__ == '__main__': main(Path(sys.argv[1]))
