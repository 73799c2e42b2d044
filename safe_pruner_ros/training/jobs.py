"""Independent simulator jobs in worker processes: one environment a worker, progress shown."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import torch
from joblib import Parallel, delayed
from rich.progress import track

from safe_pruner_ros.sim.env import DualArmEnv


@cache
def environment(task: str) -> DualArmEnv:
    """One environment a worker process, with its renderer."""
    torch.set_num_threads(1)
    env = DualArmEnv(task)
    atexit.register(env.close)  # before Python takes OpenGL apart
    return env


def batches(seeds: Sequence[int], size: int) -> list[Sequence[int]]:
    """``seeds`` cut into jobs of ``size``."""
    return [seeds[i : i + size] for i in range(0, len(seeds), size)]


def run_jobs(
    work: Any, jobs: Iterable[tuple[Any, ...]], count: int, processes: int, description: str
) -> list[Any]:
    """``work(*job)`` for each of ``count`` jobs, results in order."""
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    results = Parallel(n_jobs=processes, return_as='generator')(
        delayed(work)(*job) for job in jobs
    )
    return list(track(results, description=description, total=count))
