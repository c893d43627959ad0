"""The rasteriser beside a ray caster: random triangles, cameras inside meshes, shared edges, batches, bad input."""
from importlib.util import find_spec

import pytest, torch

from posebook.camera import Camera, Distortion
from posebook.raster import (icosphere, interpolate, occluded, over, pixel_boxes, pixel_pairs, project_faces, rasterize,
                             render, shrink)
from posebook.raster import _edge_at, _edges

FAST = ['torch']+['numba']*bool(find_spec('numba'))

def soup(n=60, seed=0, dtype=torch.float64):
    "Random triangles around the origin, some large"
    g = torch.Generator().manual_seed(seed)
    middle = 2*torch.rand(n, 1, 3, generator=g, dtype=dtype)-1
    corners = middle+torch.randn(n, 3, 3, generator=g, dtype=dtype)*(.1+torch.rand(n, 1, 1, generator=g, dtype=dtype))
    return corners.flatten(0, 1), torch.arange(3*n).view(-1, 3)

def cast(v, f, cam, near):
    "Nearest face, depth and weights along the ray of each pixel centre, by solving for the point on each face"
    y, x = torch.meshgrid(torch.arange(cam.height), torch.arange(cam.width), indexing='ij')
    rays = cam.rays(torch.stack([x, y], -1).view(-1, 2).to(v)+.5)
    d = torch.cat([rays, torch.ones_like(rays[:, :1])], 1)
    M = cam.to_camera(v)[f].mT                                   # columns are corners
    w = torch.linalg.solve(M[None], d[:, None, :, None])[..., 0]  # (pixels, faces, 3)
    z = 1/w.sum(-1)
    z = torch.where((w >= 0).all(-1) & (z >= near), z, torch.inf)
    depth, face = z.min(1)
    weights = w[torch.arange(len(w)), face]*depth[:, None]
    face[depth.isinf()] = -1
    shape = cam.height, cam.width
    return face.view(shape), depth.view(shape), weights.view(*shape, 3)

@pytest.mark.parametrize('backend', FAST)
@pytest.mark.parametrize('eye', [(0, .2, 4.), (.3, .1, .4)], ids=['outside', 'inside'])
def test_equals_ray_casting(backend, eye):
    v, f = soup()
    cam = Camera.look_at(eye=torch.tensor(eye, dtype=torch.float64), fov=55, width=48, height=37)
    got, (face, depth, weights) = rasterize(v, f, cam, backend, near=.05), cast(v, f, cam, .05)
    same = got.face == face
    assert same.float().mean() > .998          # the rest: two faces at one depth, or a centre on an edge
    on = same & got.covered
    assert on.any() and torch.allclose(got.depth[on], depth[on], rtol=1e-6)
    assert torch.allclose(got.weights[on], weights[on], atol=1e-5)

@pytest.mark.parametrize('seed', range(6))
def test_every_centre_of_a_closed_mesh_is_covered_once(seed):
    g = torch.Generator().manual_seed(seed)
    v, f = icosphere(3)
    v = v @ torch.linalg.qr(torch.randn(3, 3, generator=g))[0]
    if seed == 0: v = (v*8).round()/8          # many corners on pixel centres
    cam = Camera(torch.full((2,), 64.), torch.tensor([32., 32.]), torch.eye(3), torch.tensor([0., 0, 4]), 65, 64)
    tri, count = project_faces(v, f, cam, cull=True), torch.zeros(65*64, dtype=torch.long)
    start, way, sign, tie = _edges(tri.xy[tri.corners])
    for t, x, y in pixel_pairs(*pixel_boxes(tri, 65, 64)):
        E = torch.stack([_edge_at(start[:, k], way[:, k], sign[:, k], t, x+.5, y+.5) for k in range(3)], 1)
        inside = ((E > 0) | ((E == 0) & tie[t])).all(1)
        count.index_add_(0, (y*65+x)[inside], torch.ones_like(t)[inside])
    whole = rasterize(v, f, cam, 'torch').covered.flatten()
    assert count[whole].max() == 1 or seed == 0
    assert ((count > 0) == whole).float().mean() > .999
    inner = whole.view(64, 65)[8:-8, 8:-8]
    assert inner[24, 24] and whole.sum() > 800

@pytest.mark.skipif(len(FAST) < 2, reason='numba is not installed')
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_compiled_equals_torch(dtype):
    v, f = soup(300, 1, dtype)
    cam = Camera.look_at(eye=torch.tensor([[0., 0, 5], [2., 1, 0], [.1, 0, .3]]), fov=50, width=61, height=40)
    a, b = (rasterize(v.expand(3, -1, -1), f, cam, backend) for backend in FAST)
    assert (a.face == b.face).float().mean() > .9995
    on = a.face == b.face
    assert torch.equal(a.depth[on], b.depth[on]) and torch.equal(a.weights[on], b.weights[on])

def test_threads_stay():
    before = torch.get_num_threads()
    rasterize(*icosphere(1), Camera.look_at(eye=(0, 0, 3), width=20, height=20))
    assert torch.get_num_threads() == before

def test_batches_equal_single_pictures():
    v, f = icosphere(2)
    cams = Camera.look_at(eye=torch.tensor([[0., 0, 3], [3., 0, 0], [0., .5, .5]]), fov=60, width=31, height=23)
    vs = torch.stack([v, .7*v, v+.1])
    all_ = rasterize(vs.view(3, 1, -1, 3).expand(3, 2, -1, 3), f, Camera(cams.focal, cams.center, cams.R[:, None],
                                                                         cams.t[:, None], 31, 23))
    assert all_.face.shape == (3, 2, 23, 31)
    for i in range(3):
        one = rasterize(vs[i], f, cams[i])
        assert torch.equal(one.face, all_.face[i, 1]) and torch.allclose(one.depth, all_.depth[i, 0])
    shared = rasterize(v, f, cams)             # one mesh, several cameras
    assert torch.equal(shared.face[0], rasterize(v, f, cams[0]).face)

def test_depth_has_gradients():
    v, f = icosphere(1, torch.float64)
    cam = Camera.look_at(eye=torch.tensor([0., 0, 3], dtype=torch.float64), fov=50, width=12, height=12)
    on = rasterize(v, f, cam).covered
    def depth(x): return rasterize(x, f, cam).depth[on]
    assert torch.autograd.gradcheck(depth, v.clone().requires_grad_(), eps=1e-7, atol=1e-5)

def test_distortion_moves_vertices():
    v, f = icosphere(3)
    cam = Camera.look_at(eye=(0, 0, 3), fov=50, width=40, height=40)
    bent = cam.replaced(distortion=Distortion(torch.tensor([.4, 0.]), torch.zeros(2)))
    assert rasterize(v, f, bent).covered.sum() > rasterize(v, f, cam).covered.sum()

def test_nothing_to_see():
    v, f = icosphere(1)
    cam = Camera.look_at(eye=(0, 0, 3), width=9, height=7)
    for x, faces in ((v+50, f), (v+torch.tensor([0, 0, 9.]), f), (v, f[:0])):
        for b in FAST:
            got = rasterize(x, faces, cam, b)
            assert not got.covered.any() and got.depth.isinf().all() and got.weights.abs().sum() == 0
    assert render(v+50, f, cam).abs().sum() == 0
    flat = torch.zeros(3, 3)                   # a face of no area
    assert not rasterize(flat, torch.tensor([[0, 1, 2]]), cam, 'torch').covered.any()

@pytest.mark.parametrize('vertices, faces, says', [
    (torch.zeros(4, 2), torch.zeros(1, 3).long(), 'shape (..., V, 3)'),
    (torch.zeros(4, 3), torch.zeros(1, 4).long(), 'shape (F, 3)'),
    (torch.zeros(4, 3), torch.zeros(1, 3), 'whole numbers'),
    (torch.zeros(4, 3), torch.tensor([[0, 1, 4]]), 'within 0 and 3'),
    (torch.full((4, 3), torch.nan), torch.tensor([[0, 1, 2]]), 'not finite')])
def test_bad_meshes_are_refused(vertices, faces, says):
    with pytest.raises(ValueError) as e: rasterize(vertices, faces, Camera.look_at(eye=(0, 0, 3)))
    assert says in str(e.value)

def test_occlusion_agrees_with_depth():
    v, f = soup(80, 3)
    cam = Camera.look_at(eye=torch.tensor([0., 0, 5], dtype=torch.float64), fov=45, width=80, height=80)
    got = rasterize(v, f, cam)
    rows, cols = got.covered.nonzero().T
    pixel, z = torch.stack([cols, rows], 1).to(v)+.5, got.depth[rows, cols]
    assert occluded(cam.back_project(pixel, z+.05), v, f, cam).all()
    assert not occluded(cam.back_project(pixel, z-.001), v, f, cam).any()
    assert not occluded(cam.back_project(pixel, z+.05), v, f, cam, tolerance=.06+10).any()

def test_average_of_squares_keeps_colour():
    image = torch.zeros(4, 4, 4)
    image[:2, :2] = torch.tensor([1., .5, 0, 1])
    small = shrink(image, 4)
    assert torch.allclose(small[0, 0], torch.tensor([1., .5, 0, .25]))
    assert torch.allclose(over(small, 'white')[0, 0], torch.tensor([1., .875, .75, 1]))

def test_interpolates_any_number_of_channels():
    v, f = icosphere(2)
    seen = rasterize(torch.stack([v, v]), f, Camera.look_at(eye=(0, 0, 3), width=16, height=16))
    x = interpolate(seen, f, torch.stack([v[:, :2], 2*v[:, :2]]))
    assert x.shape == (2, 16, 16, 2) and torch.allclose(2*x[0], x[1], atol=1e-5)

@pytest.mark.skipif(not find_spec('pytorch3d'), reason='pytorch3d is not installed: it has no wheel here')
def test_same_faces_as_pytorch3d():
    v, f = icosphere(4)
    cam = Camera.look_at(eye=(0, .3, 3), fov=50, width=128, height=96)
    a, b = (rasterize(v, f, cam, backend) for backend in ('torch', 'pytorch3d'))
    assert (a.face == b.face).float().mean() > .999
