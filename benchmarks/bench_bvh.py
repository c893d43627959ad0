"""Reading a BVH file beside bvhio: text in, local rotations and positions of the joints out.

    python benchmarks/bench_bvh.py [FILE.bvh ...]     # default: real recordings, or a made-up one

`bvhio.readAsBvh` only parses, `bvhio.readAsHierarchy` also builds the tree of local rotations, which
is what `read_bvh` does. Both sides run on one thread and are checked to place the joints alike before
anything is timed; each number is the median of interleaved repeats, a ratio above 1 means that ours is
faster.
"""
import argparse, gc, os, tempfile, time
from pathlib import Path
from statistics import geometric_mean, median

import bvhio, numpy as np, torch
from posebook.motion import march, read_bvh, write_bvh

ROOT = Path(__file__).resolve().parent.parent

def files():
    "Real recordings of two rigs where there are any, else a made-up take of the same size"
    cmu = Path(os.environ.get('POSEBOOK_DATA', ROOT/'../shared/data'))/'cmu'
    real = [cmu/'bvh_mb/01_01.bvh', cmu/'bvh_daz/indian/04.bvh']
    if all(p.exists() for p in real): return real
    path = Path(tempfile.mkdtemp())/'march.bvh'
    write_bvh(march(2750, 120., 'smplh'), path)
    return [path]

def agree(path):
    "Stop unless both place all joints alike in a frame in the middle"
    ours = read_bvh(path, scale=1., fix_offsets=False)
    t, x = len(ours)//2, ours.joints().numpy()
    root = bvhio.readAsHierarchy(str(path)).loadPose(t)
    for joint, _, _ in root.layout():
        p = joint.PositionWorld
        off = np.abs(x[t, ours.skeleton.index(joint.Name)]-[p.x, p.y, p.z]).max()
        assert off < 1e-2, f'{path}: {joint.Name} is {off:.2g} file units apart'
    return len(ours), len(ours.skeleton)

def interleaved(runs, repeats):
    "Median seconds of each run; they take turns, so that a busy machine slows all of them"
    times = [[] for _ in runs]
    for i in range(repeats+1):
        for run, kept in zip(runs, times):
            gc.collect()   # or one side would sweep up what the other left behind
            start = time.perf_counter()
            run()
            if i: kept.append(time.perf_counter()-start)
    return [median(t) for t in times]

def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument('files', nargs='*', type=Path, help='BVH files')
    args.add_argument('--repeats', type=int, default=5)
    args = args.parse_args()
    torch.set_num_threads(1)
    ratios = []
    print(f'{"file":12}{"frames":>8}{"joints":>8}   {"peer":24}{"ours, ms":>10}{"peer, ms":>10}{"ratio":>8}')
    for path in args.files or files():
        frames, joints = agree(path)
        runs = [lambda: read_bvh(path, scale=1.), lambda: bvhio.readAsBvh(str(path)),
                lambda: bvhio.readAsHierarchy(str(path))]
        ours, *peers = [s*1000 for s in interleaved(runs, args.repeats)]
        for name, peer in zip(('bvhio.readAsBvh', 'bvhio.readAsHierarchy'), peers):
            ratios.append(peer/ours)
            print(f'{path.name:12}{frames:8}{joints:8}   {name:24}{ours:10.0f}{peer:10.0f}{ratios[-1]:7.1f}x')
    print(f'geometric mean {geometric_mean(ratios):.1f}x, least {min(ratios):.1f}x')

if __name__ == '__main__': main()
