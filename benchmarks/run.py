"""Run the benchmarks one after another: `make bench`, or `make bench BENCH=rotations` for one.

Each bench_*.py prints its own table: ours, the peer, and the ratio, measured in the same run.
"""
import subprocess, sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

def main(words):
    "Run those benchmarks whose name contains one of `words` (all without words); 1 if any of them broke off"
    scripts = [p for p in sorted(HERE.glob('bench_*.py')) if not words or any(w in p.stem for w in words)]
    if not scripts:
        names = ', '.join(p.stem.removeprefix('bench_') for p in sorted(HERE.glob('bench_*.py')))
        print(f'no benchmark is called {" or ".join(words) or "anything"}; there are: {names or "none"}', file=sys.stderr)
        return 1
    broken = []
    for i, script in enumerate(scripts, 1):
        print(f'== {script.stem.removeprefix("bench_")} ({i} of {len(scripts)})', flush=True)
        if subprocess.run([sys.executable, str(script)], cwd=HERE.parent).returncode: broken.append(script.name)
        print(flush=True)
    if broken: print(f'broke off: {", ".join(broken)}', file=sys.stderr)
    return int(bool(broken))

if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
