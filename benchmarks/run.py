"""Run the benchmarks one after another: `make bench`, or `make bench BENCH=rotations` for one.

Each bench_*.py prints its own table: ours, the peer, and the ratio, measured in the same run.
"""
import subprocess, sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

def main(words):
    "Run the benchmarks whose name contains one of `words` (or all); 1 if one of them broke off"
    known = {p.stem.removeprefix('bench_'): p for p in sorted(HERE.glob('bench_*.py'))}
    scripts = {n: p for n, p in known.items() if not words or any(w in n for w in words)}
    if not scripts:
        asked = f'no benchmark is called {" or ".join(words)}; ' if words else ''
        print(f'{asked}there are: {", ".join(known) or "none"}', file=sys.stderr)
        return 1
    broken = []
    for i, (name, script) in enumerate(scripts.items(), 1):
        print(f'== {name} ({i} of {len(scripts)})', flush=True)
        if subprocess.run([sys.executable, str(script)], cwd=HERE.parent).returncode:
            broken.append(name)
        print(flush=True)
    if broken: print(f'broke off: {", ".join(broken)}', file=sys.stderr)
    return int(bool(broken))

if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
