"""`posebook.lift_export`: files that agree with torch, whatever the network, the output and the batch"""
import copy, json
import numpy as np, pytest, torch
pytest.importorskip('onnxruntime', reason='needs onnxruntime, which comes with posebook[onnx]')
pytest.importorskip('onnxscript', reason='needs onnxscript, which comes with posebook[onnx]')
import onnxruntime
from posebook import lift_export as le
from posebook.coordinates import PriorError
from posebook.lift_data import Clip, LiftSet
from posebook.lift_export import OnnxLifter, example_windows, export_onnx, graph_of, onnx_difference, onnx_metadata, onnx_session, run_onnx
from posebook.lifting import Lifter, Objectives
from posebook.normalisers import Normaliser

def loud(**settings):
    "An untrained lifter whose answers are of the size of people"
    m = Lifter(**settings).eval()
    with torch.no_grad(): m.head.weight.mul_(20)
    return m

CASES = dict(mlp=dict(network='mlp', size='nano', normaliser='box'),
             screen=dict(network='mlp', size='nano', normaliser='screen', frames=2),
             clip=dict(network='transformer', size='nano', settings=dict(depth=1), frames=3, output='depth'))

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "Each case as lifter and file, written when it is asked for"
    folder, made = tmp_path_factory.mktemp('onnx'), {}
    def get(name):
        if name not in made:
            m = loud(**CASES[name])
            made[name] = m, export_onnx(m, folder/f'{name}.onnx')
        return made[name]
    return get

def people(n=30, seed=0):
    g = torch.Generator().manual_seed(seed)
    return 500+150*torch.randn(n, 17, 2, generator=g)

@pytest.mark.parametrize('name', CASES)
def test_a_file_agrees_with_torch(files, name):
    m, path = files(name)
    session, about = onnx_session(path)
    T = CASES[name].get('frames', 1)
    assert session.get_inputs()[0].shape == ['batch', T, 17, 2] and int(about['frames']) == T
    assert [i.name for i in session.get_inputs()] == ['points', 'confidence', *(['size'] if name == 'screen' else [])]
    assert [o.name for o in session.get_outputs()] == ['joints', *(['elevation'] if name == 'clip' else [])]
    assert onnx_difference(path, m, (1, 2, 3, 37, 64)) < 1e-5
    points, confidence, size = example_windows(m, 5, seed=9)
    with torch.no_grad(): want = m(points, confidence, size)
    assert want.abs().max() > .05
    got = run_onnx(path, points.numpy(), confidence.numpy(), size.numpy())
    assert np.abs(got-want.numpy()).max() < 1e-5

def test_a_stranger_can_run_it(files):
    m, path = files('mlp')
    s = onnxruntime.InferenceSession(str(path))
    p, c, _ = example_windows(m, 37)
    assert s.run(None, dict(points=p.numpy(), confidence=c.numpy()))[0].shape == (37, 1, 17, 3)
    about = s.get_modelmeta().custom_metadata_map
    assert json.loads(about['joints'])[0] == 'pelvis' and 'metres' in about['joints_are'] and about['name'] == 'mlp'
    assert Normaliser.from_config(json.loads(about['normaliser'])) == m.normaliser and about == onnx_metadata(m, 'mlp')

def test_missing_joints_and_nan(files):
    m, path = files('mlp')
    p, c = people(), torch.ones(30, 17)
    p[3, 5] = float('nan'); c[7] = 0; c[8, 3:] = 0
    with torch.no_grad(): want = m(p[:, None], c[:, None])[:, 0]
    got = run_onnx(path, p, c)
    assert np.isfinite(got).all() and np.abs(got-want.numpy()).max() < 1e-5

@pytest.mark.parametrize('name', ['mlp', 'clip'])
@pytest.mark.parametrize('flip', [False, True])
def test_a_file_lifts_as_its_lifter(files, name, flip):
    m, path = files(name)
    s = LiftSet.of('h36m17', [(Clip('a', fps=30.), people(20), None, None), (Clip('b', fps=30.), people(2, 1), None, None)])
    a, b = m.lift(s, flip=flip, batch_size=4), OnnxLifter(path, threads=1).lift(s, flip=flip, batch_size=7)
    assert torch.allclose(a.joints, b.joints, atol=1e-5) and len(b) == 22 and b.clip.tolist() == a.clip.tolist()
    if name == 'clip': assert torch.allclose(a.elevation, b.elevation, atol=1e-5)

def test_an_onnx_lifter_knows_itself(files):
    m, path = files('clip')
    l = OnnxLifter(path)
    assert l.name == 'clip' and l.n_parameters == m.n_parameters and l.layout is m.layout and l.card == {} and l.hparams.frames == 3
    assert len(l.lift(people(5))) == 5

def test_exporting_changes_nothing(tmp_path):
    m = loud(**CASES['mlp']).train()
    before = copy.deepcopy(m.state_dict())
    export_onnx(m, tmp_path/'a.onnx', opset=20)
    assert m.training and all(torch.equal(v, before[k]) for k, v in m.state_dict().items())
    assert [p.name for p in tmp_path.iterdir()] == ['a.onnx']

def test_what_does_not_agree_is_not_written(files, tmp_path, monkeypatch):
    m, path = files('mlp')
    monkeypatch.setattr(le, 'onnx_difference', lambda *a: float('nan'))
    with pytest.raises(PriorError, match='not written'): export_onnx(m, tmp_path/'a.onnx')
    assert not list(tmp_path.iterdir())

def test_another_lifter_is_found_out(files):
    assert onnx_difference(files('mlp')[1], loud(**CASES['mlp'], seed=1)) > .01

@pytest.mark.parametrize('call, text', [
    (lambda m, f: export_onnx(m, f/'a.pt'), '.onnx'), (lambda m, f: export_onnx(m, f/'a.onnx', opset=9), '18 to 23'),
    (lambda m, f: onnx_session(f/'none.onnx'), 'no such file'), (lambda m, f: onnx_session(f/'text.onnx'), 'cannot read'),
    (lambda m, f: graph_of(Lifter(network='mlp', size='nano', inputs='3d', objectives=Objectives(0., masked=1.))), 'one of 2d')])
def test_refused(tmp_path, call, text):
    (tmp_path/'text.onnx').write_text('no')
    with pytest.raises(PriorError, match=text): call(Lifter(network='mlp', size='nano'), tmp_path)

def test_wrong_input_is_named(files):
    m, path = files('mlp')
    with pytest.raises(PriorError, match=r"\(B, 1, 17, 2\) in 'h36m17'"): run_onnx(path, people()[:, :16])
    with pytest.raises(PriorError, match='size='): run_onnx(files('screen')[1], example_windows(files('screen')[0], 2)[0])

def test_another_network_is_no_lifter(tmp_path):
    class Double(torch.nn.Module):
        def forward(self, x): return 2*x
    with le.quiet_export(): torch.onnx.export(Double(), (torch.ones(2),), dynamo=True, verbose=False).save(str(tmp_path/'d.onnx'))
    with pytest.raises(PriorError, match='another network'): OnnxLifter(tmp_path/'d.onnx')

@pytest.mark.parametrize('name', ['onnx', 'onnxruntime', 'onnxscript'])
def test_missing_packages_name_their_extra(monkeypatch, name):
    real = le.importlib.import_module
    def fake(n, *a):
        if n == name: raise ImportError(n)
        return real(n, *a)
    monkeypatch.setattr(le.importlib, 'import_module', fake)
    with pytest.raises(PriorError, match=rf'{name}.*posebook\[onnx\]'): le.onnx_packages()
