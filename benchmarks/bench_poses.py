"""Pose sets beside plain npz files: building one, opening it, and fetching batches of random poses.

    python benchmarks/bench_poses.py [--files 100] [--frames 1000] [--batch 4096] [--threads 2]

The peer is what one writes without a pose set: `np.load` of every file, concatenate, index; or,
where the poses do not fit in memory, `np.load` of the files that a batch needs. Milliseconds, medians
of interleaved repeats.
"""
import argparse, statistics, tempfile, time
from pathlib import Path

import numpy as np, torch
from torch.utils.data import DataLoader, Dataset

from posebook.motion import Motion, write_npz
from posebook.poses import PoseSet
from posebook.skeleton import get_skeleton

def write_files(folder, files, frames):
    "Random walks on the body joints, as npz files"
    for i in range(files):
        x = np.zeros((frames,55,3), 'f4')
        x[:,:22] = np.random.default_rng(i).normal(size=(frames,22,3)).cumsum(0)*.01
        m = Motion(torch.from_numpy(x), torch.zeros(frames,3), get_skeleton('smplx'), 30.)
        write_npz(m, folder/f'm{i:04d}.npz')
    return sorted(folder.glob('*.npz'))

def load_poses(path):
    with np.load(path) as z: return z['poses'].reshape(-1,55,3)

def from_files(files, frames, ids):
    "A batch from npz files: each file that is needed is opened once"
    out,of = np.empty((len(ids),55,3), 'f4'),ids//frames
    for f in np.unique(of): out[of==f] = load_poses(files[f])[ids[of==f]%frames]
    return out

class Items(Dataset):
    "One pose at a time, from an array in memory"
    def __init__(self, x): self.x = x
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return torch.from_numpy(self.x[i])

def epoch(loader): return sum(len(b) for b in loader)

def cases(files, frames, batch, folder):
    "(what, ours, peer, do both give the same) of each row"
    x = np.concatenate([load_poses(f) for f in files])
    s = PoseSet.build(files, folder/'set', middle=1.)
    ids = np.random.default_rng(0).integers(0, len(x), batch)
    number = iter(range(10**6))
    build = lambda: PoseSet.build(files, folder/f'set{next(number)}', middle=1.)[:]
    every = lambda: np.concatenate([load_poses(f) for f in files])
    yield 'files to one array', build, every, np.array_equal
    yield 'open what was built', lambda: PoseSet.load(s.folder)[:], every, np.array_equal
    fetch = lambda: s[ids]
    yield 'a batch, poses on disk', fetch, lambda: from_files(files, frames, ids), np.array_equal
    yield 'a batch, poses in memory', fetch, lambda: x[ids], np.array_equal
    ours,peer = s.loader(batch, shuffle=True), DataLoader(Items(x), batch, shuffle=True)
    yield 'an epoch of batches', lambda: epoch(ours), lambda: epoch(peer), int.__eq__

def milliseconds(f):
    start = time.perf_counter()
    f()
    return 1e3*(time.perf_counter()-start)

def main():
    "Print the table"
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--files', type=int, default=100)
    p.add_argument('--frames', type=int, default=1000)
    p.add_argument('--batch', type=int, default=4096)
    p.add_argument('--repeats', type=int, default=5)
    p.add_argument('--threads', type=int, default=torch.get_num_threads())
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    print(f'{a.files} files of {a.frames} poses, batches of {a.batch}, {a.threads} threads; in ms')
    print(f'{"":26} {"posebook":>10} {"plain npz":>10} {"ratio":>8}')
    with tempfile.TemporaryDirectory() as d:
        (Path(d)/'npz').mkdir()
        files = write_files(Path(d)/'npz', a.files, a.frames)
        for what,ours,peer,same in cases(files, a.frames, a.batch, Path(d)):
            assert same(ours(), peer()), f'{what}: the two sides differ'
            times = [(milliseconds(ours), milliseconds(peer)) for _ in range(a.repeats)]
            o,q = (statistics.median(t) for t in zip(*times))
            print(f'{what:26} {o:10.2f} {q:10.2f} {q/o:7.2f}x', flush=True)

if __name__ == '__main__': main()
