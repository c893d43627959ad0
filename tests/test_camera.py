"The camera against independent arithmetic, round trips of every converter, and real frames where they are at hand."
import json, math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from posebook.camera import (CROSS, H36M_LENSES, MIRRORS, Camera, CameraError, Distortion, unreal_points,
                             unreal_rotation)
from posebook.rotations import axis_angle_to_matrix, quaternion_to_matrix

HERE = Path(__file__).resolve()
DATA = next((p for f in HERE.parents for p in (f/'shared/data', f.parent/'shared/data') if p.is_dir()), None)

def points(seed=0, n=40, lead=()):
    "Points around the origin of the world"
    return torch.randn(*lead, n, 3, generator=torch.Generator().manual_seed(seed)).double()*.4

number = lambda a, b: st.floats(a, b, allow_nan=False)

@st.composite
def cameras(draw, square=False, centered=False, distortion=None, even=False):
    "A camera that stands outside a ball of two metres and looks roughly at it"
    w = draw(st.integers(16, 2000))
    h = w if even else draw(st.integers(16, 2000))
    f = draw(number(.4, 6))*w
    fy = f if square else f*draw(number(.7, 1.4))
    c = [w/2, h/2] if centered else [w*draw(number(.2, .8)), h*draw(number(.2, .8))]
    R = axis_angle_to_matrix(torch.tensor([draw(number(-2.9, 2.9)) for _ in range(3)]).double()/math.sqrt(3))
    t = torch.tensor([draw(number(-1, 1)), draw(number(-1, 1)), draw(number(4, 20))]).double()
    d = None
    if distortion:
        k = [draw(number(-.2, .2)) for _ in range(3)]
        d = Distortion(torch.tensor(k).double(), torch.tensor([draw(number(-.01, .01)) for _ in range(2)]).double(), distortion)
    return Camera(torch.tensor([f, fy]).double(), torch.tensor(c).double(), R, t, w, h, d)

def same(a, b, tol=1e-5):
    "Two cameras see the same, in pixels of their picture"
    x = points()
    assert a.width == b.width and a.height == b.height
    assert (a.project(x)-b.project(x)).abs().max() < tol*max(a.width, a.height)

quick = settings(max_examples=40, deadline=None)

# ---- independent arithmetic

def by_hand(kind, X, R, t, f, c, k, p1, p2):
    "Projection of one point in plain numbers, from the published formulas"
    x, y, z = (sum(R[i][j]*X[j] for j in range(3))+t[i] for i in range(3))
    x, y = x/z, y/z
    r2 = x*x+y*y
    radial = 1+k[0]*r2+k[1]*r2**2+k[2]*r2**3
    if kind == 'opencv':
        u = x*radial+2*p1*x*y+p2*(r2+2*x*x)
        v = y*radial+p1*(r2+2*y*y)+2*p2*x*y
    else: # Human3.6M: tan = p1 y + p2 x acts like the radial factor, and (p2, p1) r2 is added
        tan = p1*y+p2*x
        u, v = x*(radial+tan)+p2*r2, y*(radial+tan)+p1*r2
    return f[0]*u+c[0], f[1]*v+c[1]

@pytest.mark.parametrize('lens', list(H36M_LENSES))
def test_human36m_reprojects(lens):
    L, q = H36M_LENSES[lens], torch.tensor([.14070565, -.15007018, -.7552408, .62232804]).double()
    where = torch.tensor([1841.1, 4955.3, 1563.4]).double()
    cam = Camera.from_h36m(q, where, lens)
    world = points(n=200)+torch.tensor([0, 0, .9]).double() # z up, metres
    R = quaternion_to_matrix(q/q.norm()).T.numpy()
    t = -R@where.numpy()/1000
    p2, p1 = L['tangential']
    want = [by_hand('h36m', X, R, t, L['focal'], L['center'], L['radial'], p1, p2) for X in world.numpy()]
    assert np.abs(cam.project(world).numpy()-want).max() < 1e-6
    back = cam.back_project(cam.project(world), cam.depth(world))
    assert (back-world).abs().max() < 1e-6
    again = Camera.from_h36m(*cam.to_h36m())
    assert (again.project(world)-cam.project(world)).abs().max() < 1e-6
    assert np.abs(cam.replaced(distortion=None).project(world).numpy()-want).max() > .05 # the lens matters

def test_human36m_extrinsics_agree_with_a_published_matrix():
    "Subject 1, camera 54138969: the quaternion of VideoPose3D beside the calibration matrix published elsewhere"
    cam = Camera.from_h36m([.1407056450843811, -.1500701755285263, -.755240797996521, .6223280429840088],
                           [1841.1070556640625, 4955.28466796875, 1563.4454345703125], '54138969')
    R = [[-.9153617321513369, .40180836633680234, .02574754463350265], [.051548117060134555, .1803735689384521,
        -.9822464900705729], [-.399319034032262, -.8977836111057917, -.185819527201491]]
    assert (cam.R-torch.tensor(R)).abs().max() < 1e-5
    assert (cam.t-torch.tensor([-.34605078, .54698078, 5.47448109])).abs().max() < 1e-4

@quick
@given(st.lists(number(-.2, .2), min_size=3, max_size=3), number(-.01, .01), number(-.01, .01))
def test_opencv_reprojects(k, p1, p2):
    K, rvec, t = [[900, 0, 510], [0, 910, 380], [0, 0, 1]], torch.tensor([.2, -.4, .1]).double(), [.1, -.2, 5.]
    cam = Camera.from_opencv(torch.tensor(K).double(), rvec, torch.tensor(t).double(), 1024, 768,
                             torch.tensor([k[0], k[1], p1, p2, k[2]]).double())
    x, R = points(), axis_angle_to_matrix(rvec).tolist()
    want = [by_hand('opencv', X, R, t, (900, 910), (510, 380), k, p1, p2) for X in x.tolist()]
    assert np.abs(cam.project(x).numpy()-want).max() < 1e-6

def test_opencv_rational_model():
    k, x, y = [.1, -.05, .01, .02, .03, -.01], .2, -.3
    r2 = x*x+y*y
    want = (1+k[0]*r2+k[1]*r2**2+k[2]*r2**3)/(1+k[3]*r2+k[4]*r2**2+k[5]*r2**3)
    d = Distortion(torch.tensor(k).double(), torch.zeros(2).double())
    assert np.allclose(d.distort(torch.tensor([[x, y]]).double())[0], [x*want, y*want], atol=1e-12)

# ---- round trips

@quick
@given(cameras(distortion='opencv'))
def test_opencv_round_trip(cam):
    form = cam.to_opencv()
    rvec, R = form.pop('rvec'), form['R']
    for turn in (R, rvec):
        same(Camera.from_opencv(**form|dict(R=turn), width=cam.width, height=cam.height), cam)

@quick
@given(cameras())
def test_opengl_round_trip(cam):
    same(Camera.from_opengl(*cam.to_opengl(.5, 50.), cam.width, cam.height), cam)

@quick
@given(cameras(), st.booleans())
def test_pytorch3d_round_trip(cam, in_ndc):
    form = cam.to_pytorch3d(in_ndc)
    (h, w), = form.pop('image_size')
    same(Camera.from_pytorch3d(**form, width=w, height=h), cam)

@quick
@given(cameras(centered=True))
def test_pytorch3d_fov_round_trip(cam):
    same(Camera.from_pytorch3d(**cam.to_pytorch3d_fov(), width=cam.width, height=cam.height), cam)

@quick
@given(cameras(square=True, centered=True), st.sampled_from(list(MIRRORS)), number(.001, 10))
def test_unreal_round_trip(cam, mirror, scale):
    V, fov = cam.to_unreal(mirror, scale)
    same(Camera.from_unreal(V, fov, cam.width, cam.height, mirror, scale), cam)
    x = points()
    flip = torch.tensor(MIRRORS[mirror]).double()
    row = torch.cat([x*flip/scale, torch.ones_like(x[:, :1])], 1)@V # Unreal's own arithmetic
    f = cam.width/2/math.tan(math.radians(fov)/2)
    uv = torch.stack([cam.width/2+f*row[:, 0]/row[:, 2], cam.height/2-f*row[:, 1]/row[:, 2]], -1)
    assert (uv-cam.project(x)).abs().max() < 1e-6*max(cam.width, cam.height)

@quick
@given(cameras(distortion='h36m'))
def test_h36m_round_trip(cam): same(Camera.from_h36m(*cam.to_h36m()), cam)

@quick
@given(cameras(square=True, centered=True), st.sampled_from(['horizontal', 'vertical', 'diagonal']))
def test_fov_round_trip(cam, axis):
    same(Camera.from_fov(cam.fov(axis), cam.width, cam.height, axis, cam.R, cam.t), cam)

@quick
@given(number(.2, 3), number(-1, 1), number(-1, 1), st.integers(32, 512), number(500, 9000))
def test_weak_perspective_round_trip(s, tx, ty, size, f):
    weak = torch.tensor([s, tx, ty]).double()
    cam = Camera.from_weak_perspective(weak, size, f)
    assert (cam.to_weak_perspective()-weak).abs().max() < 1e-6
    origin = cam.project(torch.zeros(1, 3).double())[0]
    want = torch.tensor([(s*tx+1)*size/2, (s*ty+1)*size/2]).double()
    assert (origin-want).abs().max() < 1e-6*size # exact at the root

@quick
@given(cameras(), number(-200, 200), number(-200, 200), st.integers(1, 900), st.integers(1, 900), st.integers(1, 900),
       st.integers(1, 900))
def test_crop_then_resize(cam, x, y, w, h, w2, h2):
    new, uv = cam.crop(x, y, w, h).resize(w2, h2), cam.project(points())
    want = (uv-uv.new_tensor([x, y]))*uv.new_tensor([w2/w, h2/h])
    assert (new.project(points())-want).abs().max() < 1e-6
    back = new.resize(w, h).crop(-x, -y, cam.width, cam.height)
    same(back, cam, 1e-9)

@quick
@given(cameras(distortion='opencv'), st.sampled_from(['opencv', 'h36m']))
def test_back_projection(cam, form):
    cam = cam.replaced(distortion=Distortion(cam.distortion.radial, cam.distortion.tangential, form))
    x = points()
    back = cam.back_project(cam.project(x), cam.depth(x))
    assert (back-x).abs().max() < 1e-5

@quick
@given(cameras(distortion='opencv'))
def test_frames(cam):
    x = points()
    assert (cam.to_world(cam.to_camera(x))-x).abs().max() < 1e-9
    A, b = axis_angle_to_matrix(torch.tensor([.3, .2, -.7]).double()), torch.tensor([.3, .1, -.2]).double()
    assert (cam.in_frame(A, b, .5).project(x)-cam.project(.5*x@A.T+b)).abs().max() < 1e-5*max(cam.width, 1)

# ---- batches, devices, gradients

def test_batches_broadcast():
    R = axis_angle_to_matrix(torch.randn(5, 3, generator=torch.Generator().manual_seed(1))*.3)
    cam = Camera(400., [100., 90.], R, [0., 0., 5.], 200, 180)
    x = points(lead=(5,)).float()
    assert cam.shape == (5,) and cam.project(x).shape == (5, 40, 2)
    one = torch.stack([cam[i].project(x[i]) for i in range(5)])
    assert torch.allclose(one, cam.project(x), atol=1e-3)
    assert cam[1:3].shape == (2,) and cam.project(x[0]).shape == (5, 40, 2)
    two = Camera(400., [100., 90.], R.view(5, 1, 3, 3), torch.randn(3, 3)*.1+torch.tensor([0., 0., 5.]), 200, 180)
    assert two.shape == (5, 3) and two.project(points(lead=(5, 3)).float()).shape == (5, 3, 40, 2)

@pytest.mark.parametrize('form', list(CROSS))
def test_gradients(form):
    x = points(n=3).requires_grad_()
    d = Distortion(torch.tensor([-.1, .05, .01]).double(), torch.tensor([.001, .002]).double(), form)
    t = torch.tensor([.1, .2, 5.]).double().requires_grad_()
    f = torch.tensor([90., 80.]).double().requires_grad_()
    def run(x, t, f): return Camera(f, torch.tensor([5., 6.]).double(), torch.eye(3).double(), t, 10, 12, d).project(x)
    assert torch.autograd.gradcheck(run, (x, t, f))

def test_behind_is_finite_and_pulls_sideways():
    cam = Camera.look_at((0., 0., 3.))
    x = torch.tensor([[.1, 0., 5.]], requires_grad=True)
    uv = cam.project(x)
    uv.sum().backward()
    assert uv.isfinite().all() and x.grad.isfinite().all() and not cam.visible(x).any()
    assert cam.depth(x) < 0 and x.grad[0, 2] == 0 and x.grad[0, 0] != 0

def test_types():
    assert Camera(1., [0., 0.], torch.eye(3), [0., 0., 1.], 2, 2).R.dtype == torch.float32
    assert Camera(1., [0., 0.], np.eye(3), [0., 0., 1.], 2, 2).focal.dtype == torch.float64
    cam = Camera(1., [0., 0.], torch.eye(3), [0., 0., 1.], 2, 2, Distortion(torch.zeros(2), torch.zeros(2)))
    assert cam.to(torch.float64).distortion.radial.dtype == torch.float64
    with pytest.raises(Exception): cam.width = 3 # frozen

# ---- errors

GOOD = dict(focal=[500., 500.], center=[5., 5.], R=np.eye(3), t=[0., 0., 3.], width=10, height=10)
BAD = [(dict(focal=[0., 1.]), 'focal'), (dict(center=[1.]), 'center'), (dict(R=np.eye(4)), r'R: expected shape'),
       (dict(R=np.eye(3)*1.1), 'rotations'), (dict(R=np.diag([1, 1, -1.])), 'reflection'), (dict(t=[0., np.inf, 1.]), 't: '),
       (dict(width=0), 'width'), (dict(height=2.5), 'height'), (dict(R=np.stack([np.eye(3)]*2), t=np.zeros((3, 3))), 'batch'),
       (dict(R=[0., 0., 0.]), 'from_opencv')]

@pytest.mark.parametrize('change, text', BAD)
def test_bad_camera(change, text):
    with pytest.raises(CameraError, match=text): Camera(**GOOD|change)

@pytest.mark.parametrize('call, text', [
    (lambda: Camera.from_fov(200.), 'fov'), (lambda: Camera.from_fov(20., axis='up'), 'axis of fov'),
    (lambda: Camera.from_opencv(np.eye(4), np.eye(3), np.zeros(3), 5, 5), 'K'),
    (lambda: Camera.from_opencv([[1, .5, 0], [0, 1, 0], [0, 0, 1.]], np.eye(3), np.zeros(3), 5, 5), 'skew'),
    (lambda: Camera.from_opengl(np.eye(4), np.eye(4), 5, 5), 'perspective'),
    (lambda: Camera.from_pytorch3d(np.eye(3), np.zeros(3), 5, 5), 'either'),
    (lambda: Camera.from_weak_perspective([1., 2.]), 'weak'),
    (lambda: Camera.from_unreal(np.eye(3), 20., 5, 5), 'View Matrix'),
    (lambda: Camera.from_unreal(np.eye(4), 20., 5, 5, 'w'), 'mirror'),
    (lambda: Camera(**GOOD)[0], 'batch'), (lambda: Camera(**GOOD).view([0, 0, 1], 5, 5), 'box'),
    (lambda: Camera.from_h36m([1., 0, 0, 0], [0., 0, 0], '54138969').to_opencv(), 'h36m'),
    (lambda: Camera.from_h36m([1., 0, 0, 0], [0., 0, 0], '54138969').to_opengl(), 'distorting'),
    (lambda: Camera(**GOOD|dict(focal=[1., 2.])).to_unreal(), 'fx')])
def test_bad_conversion(call, text):
    with pytest.raises(CameraError, match=text): call()

# ---- real frames

def planes(camera):
    "The `View Matrix` of a frame, and its `FOV`"
    V = [[camera['View Matrix'][p][a] for a in 'xyzw'] for p in ('xPlane', 'yPlane', 'zPlane', 'wPlane')]
    return torch.tensor(V).double(), torch.tensor(camera['FOV']).double()

@pytest.mark.skipif(DATA is None, reason='no replicAnt frames at hand')
@pytest.mark.parametrize('folder', ['replicant_demo', 'replicant_masks'])
def test_replicant_frames_reproject(folder):
    frames = [f for f in sorted((DATA/'insects'/folder).glob('*.json')) if not f.name.startswith('_')]
    batch = json.loads(next((DATA/'insects'/folder).glob('_BatchData*.json')).read_text())['Image Resolution']
    assert frames
    for f in frames:
        data = json.loads(f.read_text())['iterationData']
        cam = Camera.from_unreal(*planes(data['camera']), batch['x'], batch['y'])
        for subject in data['subject Data']:
            for animal in subject.values():
                at = list(animal['keypoints'].values())
                X = torch.tensor([[k['3DPos'][a] for a in 'xyz'] for k in at]).double()
                uv = torch.tensor([[k['2DPos'][a] for a in 'xy'] for k in at]).double()
                assert (cam.project(unreal_points(X))-uv).abs().max() < 1e-3, f.name

def test_rotations_and_points_mirror_alike():
    q = torch.tensor([.2, -.4, .1, .8]).double()
    q = q/q.norm()
    R = quaternion_to_matrix(q[[3, 0, 1, 2]]) # as if the world were right-handed
    for mirror, flip in MIRRORS.items():
        x, m = points(), torch.tensor(flip).double()
        turned = x@R.T
        assert torch.allclose(unreal_points(turned, mirror), unreal_points(x, mirror)@unreal_rotation(q, mirror).T)
        assert torch.allclose(unreal_rotation(q, mirror), torch.diag(m)@R@torch.diag(m))
