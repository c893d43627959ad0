"Package posebook as settings.ini describes it; data/ is installed inside the package."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(here/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
suffix = '_requirements'
extras = {k.removesuffix(suffix): v.split() for k, v in cfg.items() if k.endswith(suffix)}
extras['all'] = sorted({r for k, v in extras.items() if k not in ('dev', 'bench', 'bake') for r in v})
readme = here/'README.md'

class BuildWithData(build_py):
    "Copy `data/` to `posebook/data`, where an installed posebook looks for it"
    def run(self):
        super().run()
        if not getattr(self, 'editable_mode', False):
            self.copy_tree(str(here/'data'), str(Path(self.build_lib)/'posebook'/'data'))

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else cfg['description'],
    long_description_content_type='text/markdown',
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'],
    keywords=cfg['keywords'], license='Apache-2.0', license_files=['LICENSE', 'NOTICE'],
    python_requires=f">={cfg['min_python']}", install_requires=cfg['requirements'].split(),
    extras_require=extras, packages=find_packages(include=['posebook', 'posebook.*']),
    package_data={'posebook': ['configs/*.yaml', 'pretrained/*', 'pretrained/*/*', 'bodies/*']},
    entry_points={'console_scripts': ['posebook = posebook.cli:main'],
                  'nbdev': ['posebook = posebook._modidx:d']},
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Science/Research',
                 'Programming Language :: Python :: 3', 'Topic :: Scientific/Engineering',
                 'Natural Language :: English'],
    cmdclass={'build_py': BuildWithData}, zip_safe=False)
