"""Nearest neighbours by mean geodesic angle: ours, the usual brute force and the usual shortcuts.

Peers: einsum of quaternions, then acos, mean and the k least, as it is usually written; a shortlist of
64 by the chord of rotation matrices (one matrix product) with exact angles of those; faiss cells with
the same re-ranking, where faiss is installed. Every row is measured in one run. `exact` is the share
of neighbours that are those of a search in float64 over all pairs; `ratio` is beside einsum-acos.
Poses: clusters, and where POSEBOOK_DATA or ../shared/data has it, real motion capture.
"""
import os, sys
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from posebook.neighbours import PoseIndex
from posebook.rotations import (axis_angle_to_quaternion, matrix_to_axis_angle, quaternion_distance,
                                random_rotations)

THREADS, JOINTS, QUERIES, REPEATS = 2, 21, 256, 3
NOISE = .01, .05, .1, .25, .5, 1., None   # radians; None: uniform random rotations

def clusters(n, seed=0):
    "Clustered poses, for uniform noise has no neighbours worth the name"
    g = torch.Generator().manual_seed(seed)
    centres = .5*torch.randn(50, JOINTS, 3, generator=torch.Generator().manual_seed(9))
    return centres[torch.randint(50, (n,), generator=g)] + .15*torch.randn(n, JOINTS, 3, generator=g)

def real():
    "Body poses of real motion capture at 30 frames a second; None where there are none"
    folder = Path(os.environ.get('POSEBOOK_DATA', Path(__file__).parents[2]/'shared/data'))/'cmu'
    if not folder.is_dir(): return None
    from posebook.poses import PoseDataModule
    x = PoseDataModule(paths=[str(folder)], fps=30, middle=.8).whole_set().poses
    return torch.tensor(x)[:, 1:1+JOINTS]

def queries(r, noise, seed=1):
    "Noisy copies of some references, or poses of nothing but noise"
    g = torch.Generator().manual_seed(seed)
    if noise is None: return matrix_to_axis_angle(random_rotations(QUERIES*JOINTS, generator=g)).view(-1, JOINTS, 3)
    x = r[torch.randint(len(r), (QUERIES,), generator=g)]
    return x+noise*torch.randn(x.shape, generator=g)

def einsum_acos(q, r, k, rows=64):
    "The usual code, in chunks of queries so that memory holds out; `r` are quaternions"
    parts = [(2*torch.acos(torch.einsum('qjc,rjc->qrj', a, r).abs().clamp(max=1)).mean(-1)
              ).topk(k, largest=False) for a in axis_angle_to_quaternion(q).split(rows)]
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])

def float64(q, r, k):
    "The answer: all pairs in float64"
    q, r = (axis_angle_to_quaternion(x.double()) for x in (q, r))
    parts = [torch.cat([quaternion_distance(p, part).mean(-1) for part in r.split(8192)]) for p in q]
    return torch.stack([p.topk(k, largest=False).values for p in parts])

def clock(f, *args):
    start = perf_counter()
    return f(*args), perf_counter()-start

def compare(name, r, noises, ks):
    "Print one table"
    quats, methods = axis_angle_to_quaternion(r), ['auto', 'torch', 'chord']+['faiss']*bool(find_spec('faiss'))
    index = {m: PoseIndex(r, method=m) for m in methods}
    def usual(q, k): return einsum_acos(q, quats, k)
    peers = {'einsum-acos': usual, **{m: index[m].search for m in methods}}
    warm = queries(r, .1)
    for f in peers.values(): f(warm, 1)
    print(f'{name}: {len(r):,} references, {QUERIES} queries, {JOINTS} joints, {THREADS} threads')
    print(f'{"noise":8}{"k":>3}{"peer":>14}{"queries/s":>11}{"ratio":>8}{"exact":>9}')
    for noise in noises:
        q = queries(r, noise)
        answer = float64(q[:64], r, max(ks))
        for k in ks:
            times, found = {}, {}
            for _ in range(REPEATS):
                for p, f in peers.items():
                    found[p], t = clock(f, q, k)
                    times.setdefault(p, []).append(t)
            base = median(times['einsum-acos'])
            for p, t in times.items():
                i = found[p][1][:64]
                d = quaternion_distance(axis_angle_to_quaternion(q[:64].double())[:, None],
                                        axis_angle_to_quaternion(r.double()[i])).mean(-1).sort(1).values
                right = (d <= answer[:, :k]+1e-9).double().mean().item()
                t, kind = median(t), 'uniform' if noise is None else str(noise)
                print(f'{kind:8}{k:3}{p:>14}{QUERIES/t:11.0f}{base/t:8.1f}{right:9.2%}', flush=True)

def millions(n=1_000_000):
    "Bounded memory: what a search among many adds to the process at its peak"
    import resource
    r, peak = clusters(n), lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**10
    index = PoseIndex(r)
    index.search(queries(r, .1)[:8])   # makes the blocks, compiles
    before = peak()
    _, t = clock(index.search, queries(r, .5), 5)
    print(f'{n:,} references: {QUERIES/t:.0f} queries/s; the search added {peak()-before:.0f} MiB, '
          f'all {QUERIES} x {n:,} distances would take {QUERIES*n*4/2**20:.0f}')

def main():
    "Print the tables; `real` or `clusters` alone if named, `quick` for fewer rows"
    torch.set_num_threads(THREADS)
    words = sys.argv[1:]
    noises, ks = ((.1, None), (1,)) if 'quick' in words else (NOISE, (1, 5))
    if 'real' not in words: compare('clusters', clusters(20_000), noises, ks)
    if 'clusters' not in words and (x := real()) is not None: compare('real', x, noises, ks)
    if not words: millions()

if __name__ == '__main__': main()
