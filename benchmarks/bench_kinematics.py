"""Forward kinematics of the 55 SMPL-X joints beside the per-joint loop of the `smplx` package.

    python benchmarks/bench_kinematics.py [--batches 1 10 100 1000] [--threads 2] [--dtype float32]

Prints milliseconds of CPU time a call, medians of blocks of calls taken in turns, forward and forward + backward,
for the compiled walk (extra [fast]) and for the one in plain torch.
"""
import argparse, statistics, time
import torch
from posebook.kinematics import has_numba
from posebook.skeleton import forward_kinematics, get_skeleton, rest_joints

def inputs(batch, dtype):
    "Random rotations and what each side needs beside them"
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(min(batch, 1000), 55, 3, 3, generator=g, dtype=dtype)
    R = torch.linalg.qr(noise)[0]
    return R.repeat(-(-batch//len(R)), 1, 1, 1)[:batch].contiguous()

def fast(R):
    "Positions and global rotations, compiled"
    return forward_kinematics(R, 'smplx', backend='numba')

def plain(R):
    "The same in torch"
    return forward_kinematics(R, 'smplx', backend='torch')

def smplx_loop(R):
    "The same two from smplx"
    from smplx.lbs import batch_rigid_transform
    rest = rest_joints('smplx').to(R).expand(len(R), -1, -1)
    parents = torch.tensor(get_skeleton('smplx').parents)
    P, T = batch_rigid_transform(R, rest, parents, dtype=R.dtype)
    return P, T[..., :3, :3]

def forward(f, R):
    "One call without gradients"
    with torch.no_grad(): f(R)

def forward_backward(f, R):
    "One call, and the gradient of the joint positions"
    R = R.detach().requires_grad_()
    f(R)[0].sum().backward()

def milliseconds(run, f, R, calls):
    "CPU time of one call, mean of a few in a row"
    run(f, R)
    start = time.process_time()
    for _ in range(calls): run(f, R)
    return 1e3*(time.process_time()-start)/calls

def compare(run, R, repeats, sides):
    "Median milliseconds of each side, taken in turns"
    times = [[milliseconds(run, f, R, max(2, 50//len(R))) for f in sides] for _ in range(repeats)]
    return [statistics.median(t) for t in zip(*times)]

def main():
    "Print the table"
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--batches', type=int, nargs='+', default=[1, 10, 100, 1000])
    p.add_argument('--threads', type=int, default=torch.get_num_threads())
    p.add_argument('--dtype', default='float32', choices=['float32', 'float64'])
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    print(f'{a.dtype}, {a.threads} threads; milliseconds of CPU time a call')
    sides = ([fast] if has_numba() else [])+[plain, smplx_loop]
    print(f'{"batch":>8} {"":18} '+' '.join(f'{f.__name__:>10}' for f in sides)+'   smplx over each')
    for batch in a.batches:
        R = inputs(batch, getattr(torch, a.dtype))
        repeats = max(3, min(30, 5_000//batch))
        for name, run in (('forward', forward), ('forward + backward', forward_backward)):
            times = compare(run, R, repeats, sides)
            row = ' '.join(f'{t:10.3f}' for t in times)+'  '+' '.join(f'{times[-1]/t:6.1f}x' for t in times[:-1])
            print(f'{batch:8} {name:18} {row}', flush=True)

if __name__ == '__main__': main()
