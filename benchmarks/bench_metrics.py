"""Exact nearest neighbours by mean geodesic angle, beside the plain ways to find them.

Peers: einsum of quaternions, then acos and mean over chunks of queries, as it is usually written; and
our own `shortlist=64` (one matrix product, then exact angles of the 64 nearest by chord), which is
faster but not exact. A peer misses where its distance is more than 1e-3 rad too long.
"""
from statistics import median
from time import perf_counter

import torch

from posebook.metrics import nearest_neighbours
from posebook.rotations import axis_angle_to_quaternion as quaternion

THREADS, JOINTS, REPEATS = 1, 21, 3

def poses(n, seed):
    "Clustered poses, for uniform noise has no neighbours worth the name"
    g = torch.Generator().manual_seed(seed)
    centres = .5*torch.randn(50, JOINTS, 3, generator=torch.Generator().manual_seed(9))
    return centres[torch.randint(50, (n,), generator=g)] + .15*torch.randn(n, JOINTS, 3, generator=g)

def einsum_acos(q, r, rows=250):
    "The usual code, in chunks of queries so that memory holds out"
    r = quaternion(r)
    parts = [2*torch.acos(torch.einsum('qjc,rjc->qrj', a, r).abs().clamp(max=1)).mean(-1).amin(1)
             for a in quaternion(q).split(rows)]
    return torch.cat(parts)

def shortlist(q, r): return nearest_neighbours(q, r, shortlist=64)[0][:, 0]
def ours(q, r): return nearest_neighbours(q, r)[0][:, 0]

def clock(f, *args):
    start = perf_counter()
    return f(*args), perf_counter()-start

def main():
    "Print seconds and ratios; medians of interleaved repeats"
    torch.set_num_threads(THREADS)
    print(f'{JOINTS} joints, {THREADS} thread; seconds, medians of {REPEATS} interleaved repeats')
    print(f'{"queries x references":22}{"peer":>14}{"ours":>9}{"peer":>9}{"ratio":>8}{"missed":>9}')
    for Q, R in ((100, 1000), (1000, 10_000), (1000, 40_000)):
        q, r = poses(Q, 0), poses(R, 1)
        peers, times = [ours, einsum_acos, shortlist], {}
        for f in peers: f(q[:50], r[:500])
        for _ in range(REPEATS):
            for f in peers:
                d, t = clock(f, q, r)
                times.setdefault(f, []).append(t)
                if f is ours: true = d
                else: f.missed = ((d-true) > 1e-3).float().mean().item()
        base = median(times[ours])
        for f in peers[1:]:
            t = median(times[f])
            print(f'{f"{Q} x {R}":22}{f.__name__:>14}{base:9.3f}{t:9.3f}{t/base:8.1f}{f.missed:9.2%}')

if __name__ == '__main__': main()
