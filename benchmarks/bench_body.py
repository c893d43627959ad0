"""A body of the size of SMPL-X beside the `smplx` package: forward, forward + backward, and joints alone.

    python benchmarks/bench_body.py [--batches 1 32 256] [--seconds 3] [--size smplx]

The model is random: 10,475 vertices, 55 joints, 486 pose correctives, 10 shapes and 10 expressions, four weights a
vertex. Prints milliseconds of CPU time a call, medians of interleaved blocks of five calls (a body is mostly called
many times in a row; the bases of two packages do not fit one cache), and smplx over each of ours.
"""
import argparse, contextlib, io, statistics, tempfile
from pathlib import Path
from time import perf_counter, process_time
import numpy as np, smplx, torch
from posebook.body import Body
from posebook.kinematics import has_numba
from posebook.skeleton import get_skeleton

def model(V=10475, seed=0):
    "Random arrays by the keys of the official file"
    r, J = np.random.default_rng(seed), 55
    f32 = lambda *n: r.normal(size=n).astype('f4')
    w, near = np.zeros((V, J), 'f4'), np.sort(r.integers(0, J, (V, 4)), 0)
    np.put_along_axis(w, near, r.random((V, 4), dtype='f4')+.01, 1)
    reg = np.zeros((J, V), 'f4')
    reg[np.arange(J)[:, None], r.integers(0, V, (J, 30))] = 1/30
    return dict(v_template=f32(V, 3)*.3, f=r.integers(0, V, (2*V, 3)).astype('u4'), weights=w/w.sum(1, keepdims=True),
        J_regressor=reg/reg.sum(1, keepdims=True), shapedirs=f32(V, 3, 20)*.01, posedirs=f32(V, 3, 486)*.001,
        kintree_table=np.array([get_skeleton('smplx').parents, range(J)]), hands_componentsl=np.eye(45), hands_componentsr=np.eye(45),
        hands_meanl=np.zeros(45), hands_meanr=np.zeros(45), lmk_faces_idx=np.zeros(51, int), lmk_bary_coords=np.full((51, 3), 1/3))

def both(folder):
    "The same model in smplx and here"
    path = Path(folder)/'SMPLX_NEUTRAL.npz'
    np.savez(path, **model())
    with contextlib.redirect_stdout(io.StringIO()): peer = smplx.create(str(path), 'smplx', use_pca=False)
    return peer, {n: Body.load(path, backend=n) for n in (['numba'] if has_numba() else [])+['torch']}

def inputs(B):
    "Random poses, shapes and expressions"
    g = torch.Generator().manual_seed(0)
    return torch.randn(B, 55, 3, generator=g)*.4, torch.randn(B, 10, generator=g), torch.randn(B, 10, generator=g)

def call_smplx(peer, p, b, e):
    "Vertices and joints from smplx"
    out = peer(betas=b, expression=e, global_orient=p[:, 0], body_pose=p[:, 1:22].flatten(1), jaw_pose=p[:, 22], leye_pose=p[:, 23],
               reye_pose=p[:, 24], left_hand_pose=p[:, 25:40].flatten(1), right_hand_pose=p[:, 40:].flatten(1), return_shaped=False,
               transl=torch.zeros(len(p), 3))
    return out.vertices, out.joints[:, :55]

def backward(f):
    "A function that also computes the gradients of its inputs"
    def run(*x):
        x = [t.detach().requires_grad_() for t in x]
        (f(*x)[0]**2).sum().backward()
    return run

def medians(works, seconds):
    "Milliseconds of CPU time of each of some functions, taken in turns"
    for w in works: w()
    times, end = [[] for _ in works], perf_counter()+seconds
    while len(times[-1]) < 3 or (perf_counter() < end and len(times[-1]) < 100):
        for t, w in zip(times, works):
            w()
            start = process_time()
            for _ in range(5): w()
            t.append(200*(process_time()-start))
    return [statistics.median(t) for t in times]

def main():
    "Print the table"
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--batches', type=int, nargs='+', default=[1, 32, 256])
    p.add_argument('--threads', type=int, default=torch.get_num_threads())
    p.add_argument('--seconds', type=float, default=4.)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    with tempfile.TemporaryDirectory() as d: peer, ours = both(d)
    print(f'{a.threads} threads; milliseconds of CPU time a call')
    print(f'{"batch":>6} {"":18} {"smplx":>9} '+' '.join(f'{n:>9} {"":7}' for n in ours))
    for B in a.batches:
        peer.batch_size = B # its landmarks are repeated that often
        x = inputs(B)
        theirs, mine = call_smplx(peer, *x), {n: b(x[0], *x[1:]) for n, b in ours.items()}
        worst = max((u-v).abs().max().item() for m in mine.values() for u, v in zip(m, theirs))
        def row(name, works):
            with torch.set_grad_enabled('backward' in name): t = medians(works, a.seconds)
            print(f'{B:6} {name:18} {t[0]:9.2f} '+' '.join(f'{m:9.3f} {t[0]/m:6.1f}x' for m in t[1:]), flush=True)
        full = lambda *y: call_smplx(peer, *y)
        row('forward', [lambda: full(*x)]+[lambda b=b: b(*x) for b in ours.values()])
        row('forward + backward', [lambda: backward(full)(*x)]+[lambda b=b: backward(b)(*x) for b in ours.values()])
        row('joints, shaped', [lambda: full(*x)]+[lambda b=b: b.joints(x[0], x[1]) for b in ours.values()])
        row('joints', [lambda: full(*x)]+[lambda b=b: b.joints(x[0]) for b in ours.values()])
        print(f'{"":6} largest difference from smplx {worst:.1e} m')

if __name__ == '__main__': main()
