"The lifters that ship: complete, offline, small, what their cards say, and the shell straight after install"
import json, socket, subprocess, sys
import numpy as np, pytest, torch
from posebook.augment import DetectorNoise
from posebook.keypoints import Keypoints, write_openpose
from posebook.lifting import Lifter
from posebook.metrics import pa_mpjpe
from posebook.poses import embedded_data
from posebook.pretrained import SHIPPED, list_pretrained
from posebook.pretrained_lifters import list_lifters
from posebook.runs import config_file, read_settings
from posebook.saved_models import SavedModel, read_config
from posebook.unsupervised import KeypointFlow
from posebook.virtual_views import see_poses

LIFTERS = 'lift-cmu-tiny','lift-cmu-small','lift-cmu-tiny-unsupervised','lift-cmu-small-unsupervised','lift-cmu-teacher'
ALL = (*LIFTERS,'lift-cmu-flow')

@pytest.fixture(params=ALL)
def name(request): return request.param

@pytest.fixture(scope='module')
def walk():
    "Somebody walking, before two cameras"
    poses = embedded_data()
    return see_poses(poses.subset(np.array([n=='walk' for n in poses.names])[poses.sequence]), views=2, seed=1)

def test_loads_without_a_network(name, monkeypatch):
    def refuse(*args, **kwargs): raise AssertionError('the network was asked for')
    monkeypatch.setattr(socket, 'socket', refuse)
    assert SavedModel.from_pretrained(name).n_parameters > 10_000

def test_card_is_complete(name):
    config = read_config(SHIPPED/name)
    card = config['card']
    keys = ('use','source','licence','command','limits','data','seed','training','versions','parameters')
    assert not [k for k in keys if card[k] in (None,'')]
    assert len(card['data']['train'])>60 and card['data']['test'] and not set(card['data']['train'])&set(card['data']['test'])
    assert (SHIPPED/name/'README.md').read_text().startswith(f'# {name}')
    assert not any('/' in str(v) for k,v in config['hparams'].items() if k in ('flow','teacher','init_from'))
    if name!='lift-cmu-flow': assert card['scores']['of_flat']<.6 and card['scores']['pa_mpjpe']-card['scores']['pa_reflected']<2

def _agrees(wanted, found):
    return all(_agrees(v, found[k]) if isinstance(v, dict) else found[k]==v for k,v in wanted.items())

def test_recipe_is_the_one_of_the_weights(name):
    config = read_config(SHIPPED/name)
    assert f'-c {name} ' in config['card']['command']+' '
    assert _agrees(read_settings(config_file(name))['model'], config['hparams'])

def test_no_label_was_seen(name):
    if 'unsupervised' not in name and name!='lift-cmu-teacher': pytest.skip('it learned from labels')
    assert read_settings(config_file(name))['data']['labels']==0.
    o = read_config(SHIPPED/name)['hparams']['objectives']
    assert o['supervised']==0 and o['unsupervised']+o['distilled']>0

def test_small():
    assert sum(l['bytes'] for l in list_lifters())<12e6
    assert not {p['name'] for p in list_pretrained()}&set(ALL)

@pytest.mark.parametrize('lifter', LIFTERS)
def test_a_walk_is_lifted(lifter, walk):
    out = Lifter.from_pretrained(lifter).lift(walk)
    error = 1000*pa_mpjpe(out.joints, walk.root_relative()).mean()
    assert error < 65
    assert (1000*pa_mpjpe(out.joints*torch.tensor([1.,1,-1]), walk.root_relative()).mean()) > 1.3*error  # not its mirror image

def test_the_density_knows_people():
    flow = KeypointFlow.from_pretrained('lift-cmu-flow')
    x = see_poses(embedded_data(), seed=2).points
    with torch.no_grad(): assert flow(x).median() < flow(x[:,torch.randperm(17, generator=torch.Generator().manual_seed(0))]).median()

def test_posebook_lift_straight_after_install(tmp_path, walk):
    body = see_poses(embedded_data(), seed=3, layout='body25', noise=DetectorNoise(1., .03), longest=300)
    clip = body.select(lambda c: 'walk' in c.name)
    write_openpose(Keypoints(clip.points, clip.confidence, clip.layout, [f'v_{i:012d}' for i in range(len(clip))]), tmp_path/'seen')
    code = 'import sys; from posebook.cli import main; sys.exit(main())'
    done = subprocess.run([sys.executable, '-c', code, 'lift', 'seen', '-o', 'out.json'], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode==0, done.stderr
    people = json.loads((tmp_path/'out.json').read_text())['instance_info']
    assert len(people)==len(clip) and 'upright in 100 %' in done.stdout and 'turns around' not in done.stdout
