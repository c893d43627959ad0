"""Run every chapter and tests/, and end with the one line `N passed, N failed`.

`nbdev_test` alone can pass without having run anything, has no timeout and never counts. So each
chapter runs in its own process, two at a time, and passes only if that process ends well, says
`Success.` and stays inside its time.

    python .github/run_notebooks.py              every chapter, then tests/
    python .github/run_notebooks.py motion view  those with one of the words in their name
"""
import argparse, os, re, signal, subprocess, sys, tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(sys.prefix)/'cache'
# Seconds of processor time, which a busy machine does not stretch; a slow one may allow more.
CHAPTER_SECONDS = float(os.environ.get('POSEBOOK_CHAPTER_SECONDS', 60))
TIMEOUT = 600  # wall-clock seconds, per process

ONE_CHAPTER = """
import sys, time
from nbdev.test import nbdev_test
nbdev_test(path=sys.argv[1], n_workers=0)
print(f'{time.process_time():.1f}')
"""

RUNNING = set()  # processes to end when this one is interrupted

def environment():
    "One thread a process, no display, nothing cached in the home folder, this checkout's posebook"
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    own = dict(OMP_NUM_THREADS='1', MKL_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1',
               MPLBACKEND='agg', MPLCONFIGDIR=str(CACHE/'matplotlib'),
               IPYTHONDIR=str(CACHE/'ipython'), PYTHONUNBUFFERED='1', PYTHONPATH=path)
    return {**os.environ, **own}

def run(cmd, timeout=TIMEOUT, **kwargs):
    "Run `cmd` at the top of the checkout; its exit status (None when out of time) and its output"
    p = subprocess.Popen(cmd, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL,
                         text=True, encoding='utf-8', errors='replace',
                         start_new_session=True, **kwargs)
    RUNNING.add(p)
    try: out, in_time = p.communicate(timeout=timeout)[0], True
    except subprocess.TimeoutExpired:
        kill(p)
        out, in_time = p.communicate()[0], False
    finally:
        if p.poll() is not None: RUNNING.discard(p)
    return p.returncode if in_time else None, out

def kill(p):
    "End a process and all that it started"
    if p.poll() is None: os.killpg(p.pid, signal.SIGKILL)

def run_chapter(path):
    "Run one notebook; why it failed ('' if it passed), its processor seconds and its output"
    status, out = run([sys.executable, '-c', ONE_CHAPTER, str(path)],
                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if status is None: return f'did not end within {TIMEOUT} s', 0., out
    done = re.search(r'^Success\.\n([\d.]+)\n*\Z', out, re.M)
    if status or not done: return f'exit status {status}' if status else 'ended early', 0., out
    seconds = float(done[1])
    late = f'took {seconds:.0f} s of processor time; a chapter has {CHAPTER_SECONDS:.0f}'
    return late if seconds > CHAPTER_SECONDS else '', seconds, out

@contextmanager
def ended_on_interrupt(pool):
    "When interrupted, start nothing more and end what runs, instead of waiting for it"
    try: yield
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        for p in list(RUNNING): kill(p)
        raise

def run_chapters(paths, workers=2):
    "Run notebooks, printing each as it ends; returns how many passed and failed"
    failed = 0
    with ThreadPoolExecutor(workers) as pool, ended_on_interrupt(pool):
        jobs = {pool.submit(run_chapter, p): p.stem for p in paths}
        for job in as_completed(jobs):
            why, seconds, out = job.result()
            if why: print(out.rstrip(), file=sys.stderr, flush=True)
            verdict = f'FAIL {jobs[job]}: {why}' if why else f'ok   {jobs[job]} ({seconds:.0f} s)'
            print(verdict, flush=True)
            failed += bool(why)
    return len(paths)-failed, failed

def count_tests(report, status):
    "(passed, failed, skipped) of a JUnit `report`; a run that broke off is one more failure"
    if not report.exists(): return 0, 1, 0
    suites = list(ElementTree.parse(report).getroot().iter('testsuite'))
    count = lambda what: sum(int(s.get(what, 0)) for s in suites)
    failed, skipped = count('failures')+count('errors'), count('skipped')
    broke_off = status != 0 and not failed
    return max(count('tests')-failed-skipped, 0), failed+broke_off, skipped

def run_tests(paths):
    "Run pytest on `paths`, its progress shown; (passed, failed, skipped)"
    with tempfile.TemporaryDirectory() as d:
        report = Path(d)/'report.xml'
        options = ['-q', '-rs', '-p', 'no:cacheprovider', '--durations=5', '--durations-min=5']
        status, _ = run([sys.executable, '-m', 'pytest', *options, f'--junitxml={report}',
                         *map(str, paths)], timeout=3*TIMEOUT)
        return count_tests(report, status)

def wanted(paths, words):
    "Those of `paths` whose name contains one of `words`; all of them when there are no words"
    asked = lambda p: not words or any(w in p.stem for w in words)
    return [p for p in sorted(paths) if not p.name.startswith('_') and asked(p)]

def main():
    "Run what is asked for; the exit status is 0 only if something ran and nothing failed"
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('words', nargs='*', help='parts of names of chapters and test files')
    words = parser.parse_args().words
    chapters = wanted((ROOT/'nbs').glob('*.ipynb'), words)
    tests = wanted((ROOT/'tests').glob('test_*.py'), words)
    for d in ('matplotlib', 'ipython'): (CACHE/d).mkdir(parents=True, exist_ok=True)
    print(f'{len(chapters)} chapters, two at a time', flush=True)
    passed, failed = run_chapters(chapters)
    skipped = 0
    if tests:
        print(f'\n{len(tests)} test files', flush=True)
        p, f, skipped = run_tests(tests)
        passed, failed = passed+p, failed+f
    if skipped: print(f'{skipped} skipped, for the reasons above')
    print(f'{passed} passed, {failed} failed', flush=True)
    sys.exit(failed > 0 or passed == 0)

if __name__ == '__main__':
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try: main()
    except KeyboardInterrupt:
        for p in list(RUNNING): kill(p)
        sys.exit('interrupted')
