"""Conversions of rotations beside roma, forward and with the gradient.

    python benchmarks/bench_rotations.py              # eager: 1M rotations in float32
    python benchmarks/bench_rotations.py --compile    # and after `compile_rotations()`

Each number is the median of interleaved repeats after a warm-up; a ratio above 1 means that ours is
faster. roma writes quaternions (x, y, z, w) and 6D by columns, so each side gets its own layout; both
sides are checked to give the same values before anything is timed.
"""
import argparse, time
from statistics import geometric_mean, median

import roma, torch
import posebook.rotations as ours

xyzw = lambda q: q.roll(-1, -1).contiguous()
wxyz = lambda q: q.roll(1, -1).contiguous()
columns = lambda d6: d6.unflatten(-1, (2, 3)).mT.contiguous()
same = lambda x: x

def cases(n, dtype):
    "(our function's name, our input, roma's function, roma's input, roma's output in our layout)"
    g = torch.Generator().manual_seed(0)
    q = ours.random_quaternions(n, dtype, generator=g)
    R, v = ours.quaternion_to_matrix(q), ours.quaternion_to_axis_angle(q)
    d6 = torch.randn(n, 6, generator=g, dtype=dtype)
    return [('axis_angle_to_matrix', v, roma.rotvec_to_rotmat, v, same),
            ('matrix_to_axis_angle', R, roma.rotmat_to_rotvec, R, same),
            ('axis_angle_to_quaternion', v, roma.rotvec_to_unitquat, v, wxyz),
            ('quaternion_to_axis_angle', q, roma.unitquat_to_rotvec, xyzw(q), same),
            ('quaternion_to_matrix', q, roma.unitquat_to_rotmat, xyzw(q), same),
            ('matrix_to_quaternion', R, roma.rotmat_to_unitquat, R, lambda q: up(wxyz(q))),
            ('rotation_6d_to_matrix', d6, roma.special_gramschmidt, columns(d6), lambda R: R.mT)]

def up(q): return torch.where(q[..., :1] < 0, -q, q)

def runner(f, x, backward):
    "A call of `f` on `x`, with the gradient or without"
    if not backward: return lambda: f(x)
    x = x.clone().requires_grad_()
    g = torch.ones_like(f(x).detach())
    return lambda: torch.autograd.grad(f(x), x, g)

def interleaved(runs, repeats):
    "Median seconds of each run; they take turns, so that a busy machine slows all of them"
    for run in runs: run()
    times = [[] for _ in runs]
    for _ in range(repeats):
        for run, kept in zip(runs, times):
            start = time.perf_counter()
            run()
            kept.append(time.perf_counter()-start)
    return [median(t) for t in times]

def agree(name, a, b):
    worst = (a-b).abs().max().item()
    assert worst < 1e-3, f'{name}: ours and roma differ by {worst:.2g}: not the same conversion'

def table(n, repeats, dtype, compiled):
    "Print one row per conversion and pass, and the geometric means of the ratios"
    heads = ['ours', 'roma', 'ratio'] + ['compiled', 'ratio']*bool(compiled)
    print(f'{"ms":34}' + ''.join(f'{h:>10}' for h in heads))
    ratios = []
    for name, x, peer, y, layout in cases(n, dtype):
        agree(name, getattr(ours, name)(x), layout(peer(y)))
        for backward in (False, True):
            fs = [(getattr(ours, name), x), (peer, y)]
            if compiled: fs.append((getattr(compiled, name), x))
            mine, theirs, *fast = interleaved([runner(f, z, backward) for f, z in fs], repeats)
            ratios.append([theirs/t for t in (mine, *fast)])
            cells = [f'{mine*1e3:10.2f}{theirs*1e3:10.2f}{theirs/mine:10.2f}']
            cells += [f'{t*1e3:10.2f}{theirs/t:10.2f}' for t in fast]
            print(f'{name:25}{"+ backward" if backward else "forward":9}' + ''.join(cells), flush=True)
    for head, column in zip(('eager', 'compiled'), zip(*ratios)):
        print(f'{head}: {geometric_mean(column):.2f}x roma in the geometric mean, '
              f'{min(column):.2f}x at least')

def main():
    p = argparse.ArgumentParser(description='Conversions of rotations beside roma')
    p.add_argument('--n', type=int, default=1_000_000, help='rotations')
    p.add_argument('--repeats', type=int, default=7, help='timed calls of each')
    p.add_argument('--threads', type=int, default=torch.get_num_threads(), help='for both sides')
    p.add_argument('--double', action='store_true', help='float64 instead of float32')
    p.add_argument('--compile', action='store_true', help='also the compiled conversions')
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    dtype = torch.float64 if a.double else torch.float32
    print(f'{a.n:,} rotations, {str(dtype)[6:]}, {a.threads} thread(s), torch {torch.__version__}, '
          f'roma {roma.__version__}')
    table(a.n, a.repeats, dtype, ours.compile_rotations() if a.compile else None)

if __name__ == '__main__': main()
