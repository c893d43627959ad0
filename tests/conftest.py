"What every test may rely on: no display, repeatable property tests, real data where there is any."
import os
from pathlib import Path

os.environ.setdefault('MPLBACKEND', 'agg')

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
settings.register_profile('posebook', deadline=None, derandomize=True, database=None)
settings.load_profile('posebook')

@pytest.fixture(scope='session')
def root(): return ROOT

@pytest.fixture(scope='session')
def real_data():
    "The folder of real mocap named by POSEBOOK_DATA; the test is skipped where there is none"
    folder = Path(os.environ.get('POSEBOOK_DATA', ROOT/'../shared/data'))
    if not folder.is_dir(): pytest.skip('no real mocap: POSEBOOK_DATA does not name a folder')
    return folder
