"The shipped bodies hold what the chapter says: their files, their symmetry, and skin that stays whole in every embedded recording."
import hashlib, json, re

import numpy as np, pytest, torch

import posebook
from pathlib import Path
from posebook.body import Body
from posebook.free_body import ACTIONS, HELD_OUT, LOCALS, MACROS, RANGES, AnnyRig, clip_poses, drawn_poses
from posebook.poseset import embedded_data
from posebook.skeleton import get_skeleton, mirror_pose

FOLDER = Path(posebook.__file__).parent/'bodies'
NAMES = 'posebook', 'posebook-light'
S = get_skeleton('smplx')

@pytest.fixture(scope='module', params=NAMES)
def body(request): return Body.load(request.param)

@pytest.fixture(params=NAMES)
def file(request):
    with np.load(FOLDER/f'{request.param}.npz', allow_pickle=False) as z: return dict(z)

@pytest.mark.parametrize('name, most', list(zip(NAMES, (1_000_000, 200_000))))
def test_small(name, most): assert (FOLDER/f'{name}.npz').stat().st_size < most

@pytest.mark.parametrize('name', NAMES)
def test_notice(name):
    "The notice names what is shipped, by its hash, and whose it is"
    text = (FOLDER/'NOTICE').read_text()
    assert hashlib.sha256((FOLDER/f'{name}.npz').read_bytes()).hexdigest() in text
    assert all(w in text for w in ('CC0', 'Apache-2.0', 'anny 0.6.2', 'MakeHuman'))

def test_keys(file):
    V, k = len(file['v_template']), file['weights_index'].shape[1]
    shapes = dict(v_template=(V, 3), f=(len(file['f']), 3), kintree_table=(2, 55), weights_index=(V, k), weights_value=(V, k),
                  shapedirs=(V, 3, 20), joints=(55, 3), joint_shapes=(55, 3, 20), keypoint_vertices=(21,))
    assert {n: file[n].shape for n in shapes} == shapes
    assert all(np.isfinite(x).all() for x in file.values() if x.dtype.kind == 'f')
    assert k == (6 if V > 9929 else 4) and file['f'].max() == V-1
    assert (file['weights_value'].astype(int).sum(1) == 65535).all()
    assert list(file['shape_names']) == [*MACROS, *LOCALS] and list(file['expression_names']) == list(ACTIONS)
    assert list(file['kintree_table'][0]) == list(S.parents)

def test_joints_are_regressed(file):
    R = np.zeros((55, len(file['v_template'])))
    np.add.at(R, (np.arange(55)[:, None], file['J_index']), file['J_value'])
    assert R.min() >= 0 and abs(R.sum(1)-1).max() < 1e-5
    assert abs(R @ file['v_template']-file['joints']).max() < 1e-6
    assert abs(np.tensordot(R, file['shapedirs'].astype(float), (1, 0))-file['joint_shapes']).max() < 1e-6

def test_pelvis_is_the_origin(body):
    shapes = torch.cat([torch.zeros(1, 10), 2*torch.eye(10)])
    root = body.joints(torch.zeros(11, 55, 3), shape=shapes)[:, 0]
    assert root.norm(dim=-1).max() < 2.5e-3

def test_faces_down_the_z_axis(body):
    v, k = body.template, body.keypoint_vertices
    x = lambda n: v[k[n]]
    assert x('nose')[2] > x('lear')[2] > -.2 and x('LBigToe')[2] > x('LHeel')[2]
    assert x('lear')[0] > 0 > x('rear')[0] and x('lindex')[0] > .7 and x('rindex')[0] < -.7
    assert x('nose')[1] > .5 and x('LHeel')[1] < -.85
    assert torch.allclose(x('lindex')*torch.tensor([-1, 1, 1]), x('rindex'), atol=1e-5)

def test_as_many_keypoints_as_smplx(body):
    ids = pytest.importorskip('smplx.vertex_ids').vertex_ids['smplx']
    assert set(body.keypoint_vertices) == set(ids)

def test_symmetric(body):
    g = torch.Generator().manual_seed(0)
    p = drawn_poses(4, 5).float()
    a, b = body(p), body(mirror_pose(p))
    flip = torch.tensor([-1, 1, 1])
    assert torch.allclose(a.joints[:, list(S.mirror)]*flip, b.joints, atol=1e-4)
    ids = torch.randint(len(body.template), (300,), generator=g)
    twin = torch.cdist(body.template[ids]*flip, body.template, compute_mode='donot_use_mm_for_euclid_dist').argmin(1)
    assert torch.allclose(a.vertices[:, ids]*flip, b.vertices[:, twin], atol=1e-4)

@pytest.mark.parametrize('name', embedded_data().names)
def test_skin_stays_whole(name):
    "No edge of the light body tears in any recording: neither a toe nor a shoulder comes off"
    light = Body.load('posebook-light')
    f, v = light.faces, light(clip_poses([name], 8).float()).vertices
    length = lambda x: (x[..., f, :]-x[..., f.roll(1, 1), :]).norm(dim=-1)
    gap = (length(v)-length(light.template)).numpy()
    assert np.isfinite(gap).all() and gap.max() < .11 and np.quantile(gap, .999) < .06 # metres

@pytest.mark.parametrize('joint, degrees', [('left_shoulder', (0, 0, -75)), ('left_shoulder', (0, 0, 60)), ('left_elbow', (0, -120, 0)),
    ('left_knee', (120, 0, 0)), ('left_hip', (-90, 0, 0)), ('left_wrist', (60, 0, 0)), ('neck', (0, 45, 0)), ('left_foot', (-40, 0, 0))])
def test_keeps_its_volume(body, joint, degrees):
    "A limb that bends far does not collapse: all of the body keeps 93 percent of its volume"
    p = torch.zeros(2, 55, 3)
    p[1, S.index(joint)] = torch.tensor(degrees).float().deg2rad()
    v, f = body(p).vertices, body.faces
    volume = (v[:, f[:, 0]]*torch.linalg.cross(v[:, f[:, 1]], v[:, f[:, 2]])).sum((1, 2))/6
    assert .93 < volume[1]/volume[0] < 1.05

def test_each_joint_moves_its_own(body):
    "Turning a joint moves what it carries and leaves what it does not"
    w = body.skin_weights.dense
    for j in (1, 10, 15, 20, 22, 23, 27, 39, 45):
        below = [k for k in range(55) if k == j or any(a == j for a in _above(k))]
        p = torch.zeros(2, 55, 3)
        p[1, j, 2] = .3
        v = body(p).vertices
        still = w[below].sum(0) == 0
        assert still.any() and (v[1]-v[0])[still].abs().max() < 1e-5
        assert (v[1]-v[0])[w[below].sum(0) > .6].norm(dim=-1).max() > 1e-3

def _above(j):
    while j > 0:
        j = S.parents[j]
        yield j

def test_measured_when_baked(body):
    about = json.loads(str(body.extra['meta']))
    assert about['name'] == body.name and about['version'] == 1
    assert about['fitted_weights']['mean_mm'] < .6 and about['joints_off_mm'] < .05
    assert about['fitted_weights']['p99_mm'] < .8*about['merged_weights']['p99_mm']

def test_held_out_clips_exist(): assert set(HELD_OUT) < set(embedded_data().names)

def test_drawn_poses_keep_to_their_ranges():
    P = drawn_poses(200, 1).rad2deg()
    for name, r in RANGES.items():
        x = P[:, S.index(name if name in S.joints else f'left_{name}')]
        lo, hi = torch.tensor(r).double().view(3, 2).T
        assert (x >= lo.clamp(max=0)-1e-9).all() and (x <= hi.clamp(min=0)+1e-9).all()

def test_without_anny(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, 'anny', None)
    with pytest.raises(ImportError, match=re.escape('pip install posebook[bake]')): AnnyRig()
