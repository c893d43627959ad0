"""Lifting: how many poses a second, and how much that costs, from pixels to metres.

    python benchmarks/bench_lifting.py [--frames 300] [--seconds 2]

The first table lifts a clip of 17 joints with `Lifter.lift` (windows, normaliser, network and the mean of windows that overlap), for
our sizes; "x 30" and "x 50" say how many times faster than a camera of so many frames a second. One thread is given in CPU time, which
a busy machine does not change; two threads in wall time, the fastest of some runs, which it does. The bar is 5 times real time on two
cores for `small`. Untrained weights: they cost the same.

The second table has the published networks beside ours: parameters, multiply-accumulates of one forward pass and of one pose. Those
of published networks were counted once with torch's flop counter on their released code (attention included) and are quoted here;
ours are counted by this run in the same way.

The third table is the graph alone, one thread each: torch beside onnxruntime, which needs `posebook[onnx]`. Both are fed the same and
must give the same.
"""
import argparse, tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from timing import clock
from posebook.keypoint_networks import count_macs, count_parameters
from posebook.lifting import Lifter

OURS = [('transformer', 'nano', 1), ('transformer', 'tiny', 1), ('transformer', 'small', 1), ('transformer', 'small', 27),
        ('vit', 'tiny', 1), ('vit', 'small', 27), ('mlp', 'tiny', 1), ('mlp', 'small', 1)]
# name, frames in, poses out of a forward pass, millions of parameters, millions of multiply-accumulates of a forward pass
ANCHORS = [('VideoPose3D', 27, 1, 8.56, 87), ('VideoPose3D', 243, 1, 16.95, 2610), ('PoseFormer', 27, 1, 9.57, 280),
           ('PoseFormer', 81, 1, 9.60, 850), ('PoseFormerV2', 27, 1, 14.36, 39), ('PoseFormerV2', 243, 1, 14.38, 542),
           ('P-STMO-S', 243, 1, 6.48, 860), ('MHFormer', 27, 1, 19.2, 520), ('MHFormer', 351, 1, 31.5, 8220),
           ('MotionAGFormer-XS', 27, 27, 2.24, 1080), ('MotionAGFormer-S', 81, 81, 4.82, 7860),
           ('MotionAGFormer-B', 243, 243, 11.72, 64_500), ('MotionBERT-Lite', 243, 243, 16.00, 71_000),
           ('MotionBERT', 243, 243, 42.47, 185_400)]

def people(n, frames=1, seed=0):
    "Points (n, frames, 17, 2) in pixels that could be people"
    g = torch.Generator().manual_seed(seed)
    return 500+120*torch.randn(n, 1, 17, 2, generator=g)+10*torch.randn(n, frames, 17, 2, generator=g)

def fastest(work, seconds):
    "ms of the fastest of some calls by the clock on the wall, after one that warms up"
    work()
    times, end = [], perf_counter()+seconds
    while len(times) < 3 or perf_counter() < end:
        start = perf_counter()
        work()
        times.append(1e3*(perf_counter()-start))
    return min(times)

def clips(frames, seconds):
    "Poses a second of whole clips"
    clip = people(1, frames)[0]
    print(f'a clip of {frames} frames and 17 joints, pixels to metres; 1 thread in CPU time, 2 threads in wall time')
    print(f'{"network":22}{"frames":>7}{"params":>12}{"poses/s, 1t":>13}{"x 30":>7}{"x 50":>7}{"poses/s, 2t":>13}{"x 30":>7}{"x 50":>7}')
    for family, size, T in OURS:
        m = Lifter(network=family, size=size, frames=T).eval()
        cells = ''
        for threads in (1, 2):
            torch.set_num_threads(threads)
            work = lambda: m.lift(clip)
            rate = 1e3*frames/(median(clock(work, seconds, False)) if threads == 1 else fastest(work, seconds))
            cells += f'{rate:13,.0f}{rate/30:7.0f}{rate/50:7.0f}'
        print(f'{family+" "+size:22}{T:7}{count_parameters(m.net):12,}{cells}', flush=True)

def costs():
    "Parameters and multiply-accumulates, published and ours"
    print('\nparameters and multiply-accumulates (M); published networks as counted on their code, ours in this run')
    print(f'{"network":22}{"frames":>7}{"params":>10}{"MAC, pass":>11}{"MAC, pose":>11}')
    rows = [(n, T, out, p, c) for n, T, out, p, c in ANCHORS]
    for family, size, T in OURS:
        net = Lifter(network=family, size=size, frames=T).net
        rows.append((f'{family} {size}', T, T, count_parameters(net)/1e6, count_macs(net)/1e6))
    for n, T, out, p, c in sorted(rows, key=lambda r: r[4]/r[2]): print(f'{n:22}{T:7}{p:10.2f}{c:11,.1f}{c/out:11,.1f}')

def engines(seconds):
    "torch and onnxruntime on the same graph"
    try: from posebook.lift_export import OnnxLifter, example_windows, export_onnx, graph_of, onnx_packages; onnx_packages()
    except Exception as e: return print(f'\nno comparison with onnxruntime: {e}')
    torch.set_num_threads(1)
    print('\nthe graph alone, one thread, CPU time in ms of a batch; ratio above 1: onnxruntime is faster')
    print(f'{"network":22}{"frames":>7}{"batch":>7}{"torch":>10}{"onnxruntime":>13}{"ratio":>8}')
    with tempfile.TemporaryDirectory() as d:
        for family, size, T in [('transformer', 'tiny', 1), ('transformer', 'small', 27), ('mlp', 'tiny', 1)]:
            m = Lifter(network=family, size=size, frames=T).eval()
            ort, graph = OnnxLifter(export_onnx(m, Path(d)/f'{family}{T}.onnx'), threads=1), graph_of(m)
            for n in (1, 16, 256) if T == 1 else (1, 16):
                p, c, s = example_windows(m, n)
                batch = dict(points=p, seen=c, size=s)
                with torch.no_grad():
                    if (graph(p, c)[0]-ort.run(batch)[0]).abs().max() > 1e-4: raise AssertionError('not the same')
                    both = [lambda: graph(p, c), lambda: ort.run(batch)]
                    rounds = [[clock(f, seconds/6, False) for f in both] for _ in range(3)]
                a, b = (median(t for r in rounds for t in r[k]) for k in (0, 1))
                print(f'{family+" "+size:22}{T:7}{n:7}{a:10.2f}{b:13.2f}{a/b:8.2f}', flush=True)

def main():
    "Print the tables"
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--frames', type=int, default=300)
    p.add_argument('--seconds', type=float, default=1.5)
    a = p.parse_args()
    clips(a.frames, a.seconds); costs(); engines(a.seconds)

if __name__ == '__main__': main()
