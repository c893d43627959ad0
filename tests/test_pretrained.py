"The weights that ship: complete, offline, small, and what their cards say"
import socket
import subprocess
import sys

import pytest
import torch

from posebook.coordinates import PriorError
from posebook.pretrained import SHIPPED, list_pretrained
from posebook.prior import PosePrior, read_config

NAMES = ('gaussian-cmu', 'joint-flow-cmu', 'global-flow-cmu', 'pose-ndf-cmu')

@pytest.fixture(params=NAMES)
def name(request): return request.param

def test_loads_without_a_network(name, monkeypatch):
    def refuse(*args, **kwargs): raise AssertionError('the network was asked for')
    monkeypatch.setattr(socket, 'socket', refuse)
    prior = PosePrior.from_pretrained(name)
    assert prior.sample(3, generator=torch.Generator().manual_seed(0)).shape == (3, 55, 3)

def test_card_is_complete(name):
    card = read_config(SHIPPED/name)['card']
    for key in ('use', 'source', 'licence', 'command', 'limits', 'data', 'seed', 'training', 'versions', 'judged'):
        assert card[key] not in (None, ''), key
    assert len(card['data']['train']) > 90 and card['judged']['data']['test']
    if name != 'pose-ndf-cmu': assert card['judged']['scores']['nll']['low'] < card['judged']['scores']['nll']['mean']
    else: assert card['judged']['logged']['test/correlation'] > .95 and card['judged']['logged']['test/clean'] < .1
    assert (SHIPPED/name/'README.md').read_text().startswith(f'# {name}')

def test_recipe_is_the_one_of_the_weights(name):
    model = name.removesuffix('-cmu')
    from posebook.runs import config_file, read_settings
    wanted = read_settings(config_file(name)).get('model', {})
    found = read_config(SHIPPED/name)['hparams']
    assert f'-c {name}' in read_config(SHIPPED/name)['card']['command'] and model in found.get('kind', model)+model
    assert {k: found[k] for k in wanted} == wanted

def test_flows_undo_themselves(name):
    prior = PosePrior.from_pretrained(name)
    if not hasattr(prior, 'round_trip'): pytest.skip('a Gaussian has no flow')
    typical = prior.sample(200, generator=torch.Generator().manual_seed(0), temperature=.7)
    with torch.no_grad(): assert prior.round_trip(typical).max().sqrt() < 1e-5

def test_projection_comes_down_to_the_level(name):
    prior = PosePrior.from_pretrained(name)
    poses = prior.sample(6, generator=torch.Generator().manual_seed(0))
    poses[:, 1:22] += .2*torch.randn(6, 21, 3, generator=torch.Generator().manual_seed(1))
    calm = prior.project(poses)
    with torch.no_grad(): assert (prior.energy(calm) <= prior.level+.02*prior.level.abs()).all()

def test_small(): assert sum(p['bytes'] for p in list_pretrained()) < 20e6

def test_wrong_name():
    with pytest.raises(PriorError, match='joint-flow-cmu'): PosePrior.from_pretrained('joint-flow')

def test_shell(tmp_path):
    run = lambda *a: subprocess.run([sys.executable, '-c', 'import sys; from posebook.cli import main; sys.exit(main())', *a],
                                    capture_output=True, text=True, cwd=tmp_path)
    done = run('sample', 'joint-flow-cmu', '-n', '4', '-o', 'new.npz')
    assert done.returncode == 0 and (tmp_path/'new.npz').is_file(), done.stderr
    done = run('debug', 'flow', 'global-flow-cmu', '-o', 'debug')
    assert (tmp_path/'debug'/'flow.json').is_file(), done.stderr
