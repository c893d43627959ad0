"""Soft silhouettes beside their definition: every pixel and face, in float64, with autograd."""
from importlib.util import find_spec

import pytest, torch

import posebook.silhouette as silhouette
from posebook.camera import Camera
from posebook.raster import icosphere, project_faces, rasterize
from posebook.silhouette import iou_loss, mask_bce_loss, ndc_to_pixels, pixels_to_ndc, reach, soft_silhouette

FAST = ['torch']+['numba']*bool(find_spec('numba'))

def definition(xy, corners, W, H, sigma, cutoff=1e-4):
    "alpha = 1 - prod(1-D) over all faces, one picture"
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing='ij')
    p = torch.stack([x, y], -1).view(-1, 1, 2).to(xy)+.5
    d2, side = [], []
    for i, j in ((0, 1), (1, 2), (2, 0)):
        a, b = xy[corners[:, i]], xy[corners[:, j]]
        u, q = b-a, p-a
        t = ((q*u).sum(-1)/(u*u).sum(-1).clamp(min=1e-300)).clamp(0, 1)
        d2.append((q-t[..., None]*u).square().sum(-1))
        side.append(u[:, 0]*q[..., 1]-u[:, 1]*q[..., 0])
    d2, side = torch.stack(d2).amin(0), torch.stack(side)
    inside = (side > 0).all(0) | (side < 0).all(0)
    x = torch.where(inside, d2, -d2)/sigma**2
    near = inside | (d2 <= reach(sigma, cutoff)**2)
    return (1-torch.where(near, torch.sigmoid(-x), 1.).prod(1)).view(H, W)

def soup(n, seed, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    c = 2*torch.rand(n, 1, 3, generator=g, dtype=dtype)-1+.5*torch.randn(n, 3, 3, generator=g, dtype=dtype)
    return c.flatten(0, 1), torch.arange(3*n).view(-1, 3)

def camera(eye=(0., .2, 4.), W=40, H=31, dtype=torch.float64):
    return Camera.look_at(eye=torch.tensor(eye, dtype=dtype), fov=50, width=W, height=H)

@pytest.mark.parametrize('backend', FAST)
@pytest.mark.parametrize('sigma', [.2, 1., 6.])
@pytest.mark.parametrize('eye', [(0., .2, 4.), (.2, 0, .5)], ids=['outside', 'inside'])
def test_equals_the_definition_with_its_gradient(backend, sigma, eye):
    v, f = soup(12, 0)
    cam = camera(eye)
    pull = torch.randn(31, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    def whole(x):
        tri = project_faces(x, f, cam, near=.1)
        return definition(tri.xy, tri.corners, 40, 31, sigma)
    def ours(x): return soft_silhouette(x, f, cam, sigma, backend=backend, near=.1)
    x, y = (v.clone().requires_grad_() for _ in range(2))
    a, b = whole(x), ours(y)
    assert (a-b).abs().max() < 1e-9
    (a*pull).sum().backward(); (b*pull).sum().backward()
    assert (x.grad-y.grad).abs().max() <= 1e-7*x.grad.abs().max()
    single = ours(v.float()) if eye[2] > 1 else b.float()
    assert (single-b).abs().max() < 2e-4       # float32: faces far larger than the picture

@pytest.mark.parametrize('backend', FAST)
def test_fine_mesh_in_float32(backend):
    v, f = icosphere(3)
    cam = camera(W=40, H=31, dtype=torch.float32)
    tri = project_faces(v.double(), f, cam.to(torch.float64))
    x = v.clone().requires_grad_()
    a = soft_silhouette(x, f, cam, 1., backend=backend)
    assert (a-definition(tri.xy, tri.corners, 40, 31, 1.)).abs().max() < 5e-6
    a.square().sum().backward()
    y = v.double().requires_grad_()
    soft_silhouette(y, f, cam.to(torch.float64), 1., backend='torch').square().sum().backward()
    assert (x.grad-y.grad).abs().max() < 2e-4*y.grad.abs().max()

@pytest.mark.parametrize('backend', FAST)
def test_gradcheck_with_the_camera(backend):
    v, f = icosphere(0, torch.float64)
    t = torch.tensor([.05, .1, 3.], dtype=torch.float64, requires_grad=True)
    focal = torch.tensor([9., 9.5], dtype=torch.float64, requires_grad=True)
    def alpha(x, t, focal):
        cam = Camera(focal, torch.tensor([5., 4.], dtype=torch.float64), torch.eye(3, dtype=torch.float64), t, 10, 9)
        return soft_silhouette(x, f, cam, 1.3, 1e-12, backend=backend)
    assert torch.autograd.gradcheck(alpha, (v.clone().requires_grad_(), t, focal), eps=1e-7, atol=1e-5)

@pytest.mark.parametrize('backend', FAST)
def test_degenerate_faces_are_lines(backend):
    v = torch.tensor([[-1., 0, 0], [1, .1, 0], [-1, 0, 0], [.3, .4, 0], [.3, .4, 0], [.3, .4, 0]], dtype=torch.float64)
    f, cam = torch.tensor([[0, 1, 2], [3, 4, 5]]), camera()
    tri = project_faces(v, f, cam)
    x = v.clone().requires_grad_()
    a = soft_silhouette(x, f, cam, 1., backend=backend)
    assert torch.allclose(a, definition(tri.xy, tri.corners, 40, 31, 1.), atol=1e-9) and a.max() > .4
    a.sum().backward()
    assert x.grad.isfinite().all()

@pytest.mark.parametrize('backend', FAST)
def test_batches_equal_single_pictures(backend):
    v, f = icosphere(2)
    cams = Camera.look_at(eye=torch.tensor([[0., 0, 3], [3., 0, 0]]), fov=60, width=33, height=21)
    x = torch.stack([v, .6*v]).requires_grad_()
    a = soft_silhouette(x, f, cams, backend=backend)
    assert a.shape == (2, 21, 33)
    a.square().sum().backward()
    for i in range(2):
        y = x[i].detach().clone().requires_grad_()
        b = soft_silhouette(y, f, cams[i], backend=backend)
        b.square().sum().backward()
        assert torch.allclose(a[i], b, atol=1e-6) and torch.allclose(x.grad[i], y.grad, atol=1e-4)

def test_kept_and_made_again_are_equal(monkeypatch):
    v, f = icosphere(2, torch.float64)
    grads = []
    for kept in (2**23, 0):
        monkeypatch.setattr(silhouette, '_KEPT', kept)
        x = v.clone().requires_grad_()
        soft_silhouette(x, f, camera(), backend='torch').square().sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)

@pytest.mark.parametrize('backend', FAST)
def test_out_of_the_picture(backend):
    v, f = icosphere(1)
    for x in (v+50, v+torch.tensor([0, 0, 9.]), v+torch.tensor([2.2, 0, 0])):
        x = x.clone().requires_grad_()
        a = soft_silhouette(x, f, camera(dtype=torch.float32), 1., backend=backend)
        a.sum().backward()
        assert a.isfinite().all() and x.grad.isfinite().all()
    assert a.max() > .4                        # the last is cut by the border
    assert soft_silhouette(v, f[:0], camera(dtype=torch.float32), backend=backend).abs().max() == 0

def test_once_only_and_threads_stay():
    before = torch.get_num_threads()
    x = icosphere(1)[0].requires_grad_()
    a = soft_silhouette(x, icosphere(1)[1], camera(dtype=torch.float32))
    g, = torch.autograd.grad(a.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError): g.sum().backward()
    assert torch.get_num_threads() == before

def test_culling_keeps_the_outline():
    v, f = icosphere(3)
    cam = camera(W=80, H=80, dtype=torch.float32)
    a, b = (soft_silhouette(v, f, cam, .5, cull=c) for c in (False, True))
    assert ((a > .5) != (b > .5)).float().mean() < .02 and (b <= a+1e-5).all()
    hard = rasterize(v, f, cam).covered
    solid = soft_silhouette(v, f, cam, .5, solid=True)
    assert (solid[~hard] == a[~hard]).all() and solid[36:44, 36:44].min() == 1

def test_sigma_of_pytorch3d():
    assert abs(pixels_to_ndc(ndc_to_pixels(3e-5, 100, 300), 100, 300)-3e-5) < 1e-12

@pytest.mark.parametrize('options, says', [(dict(sigma=0.), 'sigma > 0'), (dict(cutoff=.7), 'between 0 and 0.5'),
                                           (dict(backend='gl'), "found 'gl'")])
def test_bad_options_are_refused(options, says):
    with pytest.raises(ValueError) as e: soft_silhouette(*icosphere(0), camera(dtype=torch.float32), **options)
    assert says in str(e.value)

def test_losses():
    m = torch.zeros(2, 8, 8); m[0, :4] = 1; m[1, :, :2] = 1
    assert iou_loss(m, m).max() < 1e-6 and torch.allclose(iou_loss(1-m, m), torch.ones(2))
    assert (mask_bce_loss(m, m) < .01).all() and (mask_bce_loss(1-m, m) > 5).all()

@pytest.mark.skipif(not find_spec('pytorch3d'), reason='pytorch3d is not installed: it has no wheel here')
def test_same_alpha_as_pytorch3d():
    v, f = icosphere(2)
    cam = camera(W=64, H=48, dtype=torch.float32)
    a, b = (soft_silhouette(v, f, cam, 1., backend=backend) for backend in ('torch', 'pytorch3d'))
    assert (a-b).abs().max() < 1e-3
