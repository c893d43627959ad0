"What the benchmarks of torch code share: how a piece of work is timed"
from time import perf_counter, process_time

import torch

def clock(work, seconds, gpu, most=50):
    "ms of each of some runs after one that warms up: CPU time, or wall time to the end on a GPU"
    work()
    times, now, end = [], perf_counter if gpu else process_time, perf_counter()+seconds
    while not times or (perf_counter() < end and len(times) < most):
        if gpu: torch.cuda.synchronize()
        start = now()
        work()
        if gpu: torch.cuda.synchronize()
        times.append(1e3*(now()-start))
    return times
