"`posebook.distance_field` and `posebook.pose_ndf`: exactness, published files and bad ones, projection, training"
import math

import pytest
import torch
import yaml
from posebook.coordinates import PriorError
from posebook.distance_field import (ACTIVATIONS, LEGACY_TREE, OUTPUTS, DistanceField, load_official, modelled_parents,
                                     official_names, official_settings)
from posebook.ndf_labels import NoiseOptions, make_distance_set
from posebook.descent import descend
from posebook.pose_ndf import BINS, PoseNDF, field_report
from posebook.prior import PosePrior
from posebook.rotations import axis_angle_to_quaternion, quaternion_raw_multiply, random_quaternions
from posebook.skeleton import joint_subset
from test_prior import some_poses

def poses_of(n, joints=21, seed=0, dtype=torch.float32):
    return random_quaternions(n*joints, dtype, generator=torch.Generator().manual_seed(seed)).view(n, joints, 4)

@pytest.mark.parametrize('joints', ['body', 'hands', 'root+body', ['left_hip', 'left_knee', 'head'], [5]], ids=str)
@pytest.mark.parametrize('inputs', ['matrix', 'quaternion'])
def test_by_hand_is_autograd(joints, inputs):
    "Any layout, every activation and output, with and without a tree"
    n = len(joint_subset(joints))
    q = poses_of(7, n, dtype=torch.double)
    for parents in (modelled_parents(joints), None):
        for kind, out in zip(ACTIVATIONS, (*OUTPUTS, 'softplus')):
            field = DistanceField(n, parents, inputs, widths=(24, 16), activation=kind, output=out).double()
            d, g = field.distance_and_gradient(q)
            e, h, _ = field.differentiable_gradient(q)
            assert (d-e).abs().max() < 1e-9 and (g-h).abs().max() < 1e-6

def test_slope_is_a_turn():
    "Finite differences along rotation vectors composed on the right"
    field, q = DistanceField(21, modelled_parents(), activation='silu').double(), poses_of(3, dtype=torch.double)
    g = field.distance_and_gradient(q)[1]
    for j, k in ((0, 0), (7, 1), (20, 2)):
        w = torch.zeros(21, 3).double()
        w[j, k] = 1e-5
        there, back = (field(quaternion_raw_multiply(q, axis_angle_to_quaternion(s*w))) for s in (1, -1))
        assert ((there-back)/2e-5 - g[:, j, k]).abs().max() < 1e-6

def config(**model):
    head = dict(name='DFNet', in_dim=126, dims=[32, 16], act='softplus', beta=100) | model
    return dict(model=dict(DFNet=head, StrEnc=dict(use=True, out_dim=6, act='softplus', beta=100)), data=dict(flip=True))

def official_file(folder, said, **change):
    "A file of the published layout"
    field = DistanceField(21, **official_settings(said))
    state = {k: v.detach().clone() for k, v in official_names(field).items()} | change
    state = {k: v for k, v in state.items() if v is not None}
    path = folder/'version'/'checkpoint_epoch_best.tar'
    path.parent.mkdir(exist_ok=True)
    torch.save(dict(epoch=1, model_state_dict=state, optimizer_state_dict={}), path)
    (folder/'config.yaml').write_text(yaml.safe_dump(said))
    return path, field

@pytest.mark.parametrize('said', [config(), config(dims='32, 16'), config(act='lrelu'), config(act='relu', beta=None),
    config() | dict(data={}), config() | dict(data=dict(flip=False))], ids=range(6))
def test_official_variants(tmp_path, said):
    "The configuration is found one folder up, and every variant of its keys is understood"
    path, field = official_file(tmp_path, said)
    q = poses_of(9)
    assert torch.equal(load_official(path)(q), field(q))
    assert load_official(path).flip == bool(said['data'].get('flip', False))
    prior = PoseNDF.from_official(path, max_distance=.01)
    assert prior.stop_at() == .01 and prior.hparams.tree == list(LEGACY_TREE)
    assert PoseNDF.from_pretrained(prior.save_pretrained(tmp_path/'saved')).stop_at() == .01

def test_official_tree_of_its_own(tmp_path):
    "NRDF says its tree, and has a decoder that is not used"
    said = config()
    said['model']['StrEnc']['smpl_mapping'] = ','.join(map(str, modelled_parents()))
    path, field = official_file(tmp_path, said, **{'dec.net.0.net.0.weight': torch.zeros(3)})
    assert load_official(path).encoder.parents == modelled_parents()
    assert torch.equal(load_official(path)(poses_of(3)), field(poses_of(3)))

BAD = [(dict(said=config(dims=[32, 8])), r'dfnet\.lin1\.weight: expected shape \(8, 32\)'),
       (dict(said=config(dims=[32])), 'no place for|expected shape'),
       (dict(said=config(act='tanh')), 'model.DFNet.act'), (dict(said=dict(model={})), 'model.DFNet.act'),
       (dict(change={'enc.net.3.net.0.weight': None}), 'enc.net.3.net.0.weight: .*found nothing'),
       (dict(change={'dfnet.lin0.weight': None}), 'dfnet.lin0.weight')]

@pytest.mark.parametrize('how, text', BAD, ids=range(len(BAD)))
def test_official_refused(tmp_path, how, text):
    path, _ = official_file(tmp_path, config(), **how.get('change', {}))
    with pytest.raises(PriorError, match=text): load_official(path, how.get('said'))

class Harmful:
    def __reduce__(self): return print, ('this ran',)

def test_official_runs_nothing(tmp_path, capsys):
    torch.save(dict(model_state_dict=Harmful()), tmp_path/'a.tar')
    with pytest.raises(PriorError, match='was not opened'): load_official(tmp_path/'a.tar', config())
    (tmp_path/'b.tar').write_bytes(b'not a checkpoint')
    with pytest.raises(PriorError, match='b.tar'): load_official(tmp_path/'b.tar', config())
    with pytest.raises(PriorError, match='no such file'): load_official(tmp_path/'c.tar')
    assert 'this ran' not in capsys.readouterr().out

@pytest.fixture(scope='module')
def prior():
    return PoseNDF(widths=(64, 64), lr=3e-3).fit(clean(), samples=2000, max_epochs=6, batch_size=128)

def clean(): return some_poses(200, moving=(1, 2, 4, 5))

def test_learns(prior):
    data = make_distance_set(clean(), 800, seed=3)
    q, true = torch.tensor(data.quaternions), torch.tensor(data.distance[:, 0])
    d, g = prior.field.distance_and_gradient(q)
    report = field_report(d, true, g, prior.field(torch.tensor(data.clean)).detach())
    assert report['correlation'] > .9 and .5 < report['gradient_norm'] < 1.5
    assert abs(report['mae']-(d-true).abs().mean()) < 1e-6 and len(report) <= 4+len(BINS)-1

def test_walks_never_end_worse(prior):
    q = poses_of(50)
    before = prior.field(q).detach()
    for size in (.3, 1., 5.):
        t = descend(prior.field, q, .05, 20, size, math.pi, keep=True)
        values = torch.stack([d for _, d in t.path])
        assert (values.diff(dim=0) <= 0).all() and (t.distances <= before).all()
        assert torch.allclose(prior.field(t.quaternions), t.distances, atol=1e-5)
        assert (t.quaternions.norm(dim=-1)-1).abs().max() < 1e-5 and (t.steps <= 20).all()

def test_history_and_level(prior):
    poses = prior._random_poses(6, torch.Generator().manual_seed(0))
    poses[:, 30] = .2
    found, history = prior.project(poses, history=True)
    assert torch.equal(history[-1], found) and history.shape[1:] == (6, 55, 3)
    assert torch.equal(found[:, 22:], poses[:, 22:])
    assert torch.equal(prior.project(poses, level=prior.level), found)
    drawn, steps = prior.sample(20, torch.Generator().manual_seed(0), history=True)
    assert torch.equal(steps[-1], drawn) and prior.distance(drawn).mean() < .5*prior.distance(steps[0]).mean()

def test_sample_from_a_file(prior, tmp_path, root):
    source = next(p for p in sorted((root/'data').rglob('*')) if p.suffix in ('.bvh', '.npz', '.amc'))
    assert prior.sample(5, torch.Generator().manual_seed(0), start=source).shape == (5, 55, 3)
    with pytest.raises(PriorError, match='no such file'): prior.sample(2, start=tmp_path/'none.npz')
    assert torch.equal(prior.sample(4, start=clean()[:4], max_distance=9.), clean()[:4])

def test_differentiable_energy(prior):
    v = clean()[:3].requires_grad_()
    prior.energy(v+.3).sum().backward()
    assert torch.isfinite(v.grad).all() and v.grad[:, 1:22].abs().sum() > 0 and v.grad[:, 22:].abs().sum() == 0

@pytest.mark.parametrize('kw', [dict(eikonal='joint'), dict(eikonal='joint', inputs='quaternion'), dict(eikonal_weight=0),
    dict(manifold_weight=0), dict(tree='correct'), dict(tree='legacy', inputs='quaternion', flip=False)], ids=str)
def test_every_loss_trains(kw, tmp_path):
    prior = PoseNDF(widths=(16,), **kw).fit(clean(), samples=256, noise=NoiseOptions(kind='geodesic'), max_epochs=2, batch_size=64)
    assert math.isfinite(prior.level)
    again = PosePrior.from_pretrained(prior.save_pretrained(tmp_path/'p'))
    assert torch.equal(again.distance(clean()[:5]), prior.distance(clean()[:5]))

def test_joint_eikonal_is_the_published_one():
    "For quaternions: the norm over the four numbers of each joint"
    prior = PoseNDF(eikonal='joint', inputs='quaternion', widths=(16,))
    prior.fit_coordinates([clean()])
    q = poses_of(4)
    _, slope, raw = prior.field.differentiable_gradient(q)
    x = q.clone().requires_grad_()
    g, = torch.autograd.grad(prior.field(x).sum(), x)
    assert torch.allclose(prior.slope_loss(slope, raw), ((g.norm(dim=-1)-1)**2).mean(), atol=1e-6)
