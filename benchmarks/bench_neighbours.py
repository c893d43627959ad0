"""Nearest neighbours by mean geodesic angle: ours, the usual brute force and the usual shortcuts.

Peers: einsum of quaternions, then acos, mean and the k least, as it is usually written; a shortlist of
64 by the chord of rotation matrices (one matrix product) with exact angles of those; faiss cells with
the same re-ranking, where faiss is installed. Every row is measured in one run, ours as the best of
three, peers once. `exact` is the share of neighbours of the first queries that are those of a search in
float64 over all pairs; the ratios are beside einsum-acos, in time on the clock and in CPU time of all
threads, which other work on the machine disturbs less; on one thread, so that none spins for others.
Prepared indices are not in the times. Poses: clusters, and where POSEBOOK_DATA or ../shared/data has it,
real motion capture.
"""
import os, sys, warnings
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter, process_time

os.environ.setdefault('OMP_NUM_THREADS', '1')   # read when torch and faiss are imported
import torch

from posebook.neighbours import PoseIndex
from posebook.rotations import (axis_angle_to_quaternion, matrix_to_axis_angle, quaternion_distance,
                                random_rotations)

THREADS, JOINTS, QUERIES, CHECKED = 1, 21, 128, 8
REPEATS = dict(auto=3, torch=3)
NOISE = .01, .1, .25, 1., None   # radians; None: uniform random rotations

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

def clock(f, *args, repeats=1):
    "What `f` returns, and the least of its times: on the clock, and of all CPUs"
    times = []
    for _ in range(repeats):
        start = perf_counter(), process_time()
        found = f(*args)
        times.append((perf_counter()-start[0], process_time()-start[1]))
    return found, *map(min, zip(*times))

def share_exact(q, r, found, answer):
    "Share of found neighbours that are as near as the answer"
    d = quaternion_distance(axis_angle_to_quaternion(q.double())[:, None],
                            axis_angle_to_quaternion(r.double()[found])).mean(-1).sort(1).values
    return (d <= answer+1e-9).double().mean().item()

def compare(name, r, noises, ks):
    "Print one table"
    quats, methods = axis_angle_to_quaternion(r), ['auto', 'torch', 'chord']+['faiss']*bool(find_spec('faiss'))
    index = {m: PoseIndex(r, method=m) for m in methods}
    def usual(q, k): return einsum_acos(q, quats, k)
    peers = {'einsum-acos': usual, **{m: index[m].search for m in methods}}
    warm = queries(r, .1)
    if find_spec('numba'): PoseIndex(r[:64], method='numba').search(warm)   # 'auto' uses what is compiled
    for f in peers.values(): f(warm, 1)
    print(f'{name}: {len(r):,} references, {QUERIES} queries, {JOINTS} joints, {THREADS} thread')
    print(f'{"noise":8}{"k":>3}{"peer":>14}{"queries/s":>11}{"ratio":>8}{"CPU ms":>9}{"ratio":>8}{"exact":>9}')
    for noise in noises:
        q = queries(r, noise)
        answer, kind = float64(q[:CHECKED], r, max(ks)), 'uniform' if noise is None else str(noise)
        for k in ks:
            for p, f in peers.items():
                (_, near), wall, cpu = clock(f, q, k, repeats=REPEATS.get(p, 1))
                if p == 'einsum-acos': base = wall, cpu
                right = share_exact(q[:CHECKED], r, near[:CHECKED], answer[:, :k])
                print(f'{kind:8}{k:3}{p:>14}{QUERIES/wall:11.0f}{base[0]/wall:8.1f}{1e3*cpu:9.0f}'
                      f'{base[1]/cpu:8.1f}{right:9.2%}', flush=True)

def millions(n=1_000_000):
    "Bounded memory: what a search among many adds to the process at its peak"
    import resource
    r, peak = clusters(n), lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**10
    index = PoseIndex(r)
    index.search(queries(r, .1)[:8])   # makes the blocks, compiles
    before = peak()
    _, t, _ = clock(index.search, queries(r, .5), 5)
    print(f'{n:,} references: {QUERIES/t:.0f} queries/s; the search added {peak()-before:.0f} MiB, '
          f'all {QUERIES} x {n:,} distances would take {QUERIES*n*4/2**20:.0f}')

def main():
    "Print the tables; `real` or `clusters` alone if named, `quick` for fewer rows"
    torch.set_num_threads(THREADS)
    warnings.simplefilter('ignore')   # what the data leaves out is told elsewhere
    words = sys.argv[1:]
    noises = (.1, None) if 'quick' in words else NOISE
    if 'real' not in words: compare('clusters', clusters(20_000), noises, (1,))
    if 'clusters' not in words and (x := real()) is not None: compare('real', x, noises, (1, 5))
    if not words: millions()

if __name__ == '__main__': main()
