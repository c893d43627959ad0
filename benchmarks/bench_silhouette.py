"""Soft silhouettes: ours in torch and compiled, beside autograd through every pair of a face and a pixel.

The peer expands faces to the pixels of their boxes exactly as ours do, computes distances and coverage of each
pair with torch operations, adds logarithms per pixel, and lets autograd do the rest; where pytorch3d is
installed it is a peer, too. Same picture, same gradients (both are printed as differences). CPU ms of one
thread, medians, forward + backward with the camera; on a GPU wall time. Meshes: a stick insect of 6,019 faces
if the shared data is there (POSEBOOK_DATA), else a sphere of 5,120; and spheres.
"""
import argparse, os, statistics
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')   # read when torch is imported
import torch

from timing import clock
from posebook.body import Body
from posebook.camera import Camera
from posebook.raster import icosphere, pixel_boxes, pixel_pairs, project_faces
from posebook.silhouette import ndc_to_pixels, reach, soft_silhouette

def stick():
    "The shared stick insect, or None"
    root = Path(os.environ.get('POSEBOOK_DATA', Path(__file__).parents[2]/'shared/data'))
    path = root/'insects/SMILy_STICK.pkl'
    if not path.exists(): return None
    body = Body.load(path)
    v = body.template.float()
    return v-(v.amax(0)+v.amin(0))/2, body.faces

def naive(vertices, faces, camera, sigma, cutoff=1e-4):
    "Autograd over (face, pixel) pairs"
    tri = project_faces(vertices, faces, camera)
    W, H, r = camera.width, camera.height, reach(sigma, cutoff)
    total = tri.xy.new_zeros(H*W)
    for t, x, y in pixel_pairs(*pixel_boxes(tri, W, H, r), most=2**40):
        p = torch.stack([x, y], 1).to(tri.xy)+.5
        corners = tri.xy[tri.corners[t]]
        d2, cross = [], []
        for i, j in ((0, 1), (1, 2), (2, 0)):
            u, q = corners[:, j]-corners[:, i], p-corners[:, i]
            s = ((q*u).sum(1)/(u*u).sum(1).clamp(min=1e-12)).clamp(0, 1)
            d2.append((q-s[:, None]*u).square().sum(1))
            cross.append(u[:, 0]*q[:, 1]-u[:, 1]*q[:, 0])
        cross, d = torch.stack(cross), torch.stack(d2).amin(0)
        inside = (cross > 0).all(0) | (cross < 0).all(0)
        kept = inside | (d.detach() <= r*r)
        logs = torch.nn.functional.logsigmoid(-torch.where(inside, d, -d)[kept]/sigma**2)
        total = total.index_add(0, (y*W+x)[kept], logs)
    return (1-total.exp()).view(H, W)

def work(f, v, *args, **kw):
    "One forward and backward call; the picture and the gradient"
    x = v.clone().requires_grad_()
    alpha = f(x, *args, **kw)
    alpha.backward(torch.ones_like(alpha)*torch.linspace(-1, 1, alpha.shape[-1], device=v.device))
    return alpha.detach(), x.grad

def row(name, v, f, size, sigma, seconds):
    "One line: the peer, ours, ratios and the largest differences"
    cam = Camera.look_at(eye=(.6, .3, 3.), fov=40, width=size, height=size).to(v)
    gpu, ways = v.is_cuda, ['torch']+['numba']*(not v.is_cuda and bool(find_spec('numba')))
    want = work(naive, v, f, cam, sigma)
    base = statistics.median(clock(lambda: work(naive, v, f, cam, sigma), seconds, gpu))
    text = f'{name:8}{len(f):7,}{size:6}{sigma:7.2f}{base:9.1f}'
    for b in ways:
        got = work(soft_silhouette, v, f, cam, sigma, backend=b)
        ms = statistics.median(clock(lambda: work(soft_silhouette, v, f, cam, sigma, backend=b), seconds, gpu))
        off = (got[0]-want[0]).abs().max(), (got[1]-want[1]).abs().max()/want[1].abs().max()
        text += f'{ms:9.2f}{base/ms:7.1f}x{off[0]:9.0e}{off[1]:9.0e}'
    if find_spec('pytorch3d'):
        ms = statistics.median(clock(lambda: work(soft_silhouette, v, f, cam, sigma, backend='pytorch3d'), seconds, gpu))
        text += f'   pytorch3d {ms:.0f} ms'
    print(text, flush=True)

def main():
    "Print the table"
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--device', default='cpu')
    p.add_argument('--seconds', type=float, default=2., help='for each figure')
    a = p.parse_args()
    torch.set_num_threads(1)
    meshes = {'stick': stick(), 'sphere': icosphere(4)}
    print(f'forward + backward, ms on {a.device}, one thread; alpha and gradient: largest difference from autograd')
    print(f'{"mesh":8}{"faces":>7}{"px":>6}{"sigma":>7}{"autograd":>9}'
          +''.join(f'{b:>9}{"ratio":>8}{"alpha":>9}{"grad":>9}' for b in ('torch', 'numba')))
    for name, mesh in meshes.items():
        if mesh is None: continue
        v, f = (x.to(a.device) for x in mesh)
        for size in (128, 256):
            for sigma in (ndc_to_pixels(1e-4, size, size), 1., .5): row(name, v, f, size, sigma, a.seconds)

if __name__ == '__main__': main()
