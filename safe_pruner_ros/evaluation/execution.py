"""Spreads episodes over the processes or machines of a joblib backend, and survives dead workers.

Knows jobs and records, not what is in them. Which backend runs is joblib's own setting, so it may
come from `on_backend` here or from a `joblib.parallel_config` around it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TypeVar

from joblib import Parallel, delayed, effective_n_jobs, parallel_config
from joblib.externals.loky.process_executor import TerminatedWorkerError
from joblib.parallel import get_active_backend

MAX_DEATHS = 10  # in a row, without one finished episode: it will not get better

RECOVERY_S = 60.0  # for a cluster's workers to appear: it may just have been started

JobT = TypeVar('JobT')
Record = dict[str, Any]


class WorkerDied(RuntimeError):
    """Worker processes end without an answer; what was finished is saved."""


def run_jobs(
    function: Callable[[JobT], Record], jobs: Sequence[JobT], n_jobs: int = 0
) -> Iterator[tuple[JobT, Record]]:
    """(job, function(job)) as they finish, each job once.

    ``n_jobs``: how many at a time, 0 = all that the backend has. When a worker dies, what was
    under way goes to the end and runs again one by one, so that a job that kills its worker stops
    nobody else (a Dask cluster runs the jobs of a dead worker again by itself). Raises WorkerDied
    when all others are done, naming (`str`) the jobs whose worker died again, or when workers
    keep dying whatever they run.
    """
    waiting = dict(enumerate(jobs))
    suspects: dict[int, JobT] = {}
    fruitless = 0
    while waiting:
        before, started = len(waiting), set[int]()
        try:
            for number, record in _finished(function, waiting, n_jobs or -1, started):
                yield waiting.pop(number), record
        except TerminatedWorkerError as error:
            fruitless = 0 if len(waiting) < before else fruitless + 1
            if fruitless >= MAX_DEATHS:
                raise _keeps_dying() from error
            print('note: a worker process died; what it was running runs again', file=sys.stderr)
            # Which of them it was, nobody says.
            suspects |= {number: waiting.pop(number) for number in started & set(waiting)}
    yield from _one_by_one(function, suspects)


def _one_by_one(
    function: Callable[[JobT], Record], suspects: dict[int, JobT]
) -> Iterator[tuple[JobT, Record]]:
    """Each in a process of its own with nothing else running: who dies now was the one."""
    dead: list[str] = []
    fruitless = 0
    for number, job in suspects.items():
        try:
            for _, record in _finished(function, {number: job}, 2, set()):
                yield job, record
                fruitless = 0
        except TerminatedWorkerError as error:
            dead.append(str(job))
            fruitless += 1
            if fruitless >= MAX_DEATHS:
                raise _keeps_dying() from error
    if dead:
        raise WorkerDied(
            f'the worker process of {len(dead)} episodes died twice, the second time with nothing '
            f'else running: {"; ".join(dead)}. All others are saved; run the same command again '
            'to try these again'
        )


def _keeps_dying() -> WorkerDied:
    return WorkerDied(
        f'worker processes keep dying ({MAX_DEATHS} times without a finished episode; most often: '
        'out of memory). Finished episodes are saved; run the same command again to go on, with '
        'fewer --jobs if memory is short'
    )


def _numbered(
    function: Callable[[JobT], Record], number: int, job: JobT
) -> tuple[int, Record]:  # at module level: a backend has to find it in another process
    return number, function(job)


def _finished(
    function: Callable[[JobT], Record], left: dict[int, JobT], n_jobs: int, started: set[int]
) -> Iterator[tuple[int, Record]]:
    """Answers as they come; the numbers that were handed to a worker go to ``started``."""
    backend, _ = get_active_backend()
    # Two for the last job too: alone it would run in this process, and could end it.
    n_jobs = min(effective_n_jobs(n_jobs), max(2, len(left)))

    def calls(jobs: Iterable[tuple[int, JobT]]) -> Iterator[Any]:
        for number, job in jobs:
            started.add(number)
            yield delayed(_numbered)(function, number, job)

    everything = list(left.items())  # the caller takes out what is finished
    if backend.supports_return_generator:
        # A job is seconds long: one at a time, so that nothing finished waits for a batch mate.
        yield from Parallel(
            n_jobs=n_jobs,
            return_as='generator_unordered',
            batch_size=1,
            pre_dispatch='2*n_jobs',
        )(calls(everything))
        return
    wave = 8 * n_jobs  # such a backend (Ray's) answers only when all that it was given is done
    for first in range(0, len(everything), wave):
        part = everything[first : first + wave]
        yield from Parallel(n_jobs=n_jobs, batch_size=1)(calls(part))


def check_backend(where: str) -> None:
    """ValueError unless ``where`` is written as `on_backend` reads it."""
    kind, _, address = where.partition(':')
    if (kind, bool(address)) not in (('local', False), ('dask', True)) and kind != 'ray':
        raise ValueError(
            f"a backend is 'local', 'dask:tcp://HOST:PORT' or 'ray[:ADDRESS]', got {where!r}"
        )


@contextmanager
def on_backend(where: str) -> Iterator[None]:
    """Run what is inside on 'local' processes, 'dask:SCHEDULER' or 'ray[:ADDRESS]'.

    Raises ValueError for another word, a package that is missing or a cluster that is not there.
    """
    check_backend(where)
    kind, _, address = where.partition(':')
    if kind == 'local':
        yield
    elif kind == 'dask':
        with _dask_client(address) as client, parallel_config(backend='dask', client=client):
            yield
    else:
        _needed('ray').init(address=address or 'auto', log_to_driver=False)
        _needed('ray.util.joblib').register_ray()
        with parallel_config(backend='ray'):
            yield


def _dask_client(address: str) -> Any:
    module = _needed('distributed')
    try:
        client = module.Client(address, timeout='10s')
    except (OSError, ValueError) as error:
        raise ValueError(f'no Dask scheduler at {address!r}: {error}') from error
    try:
        client.wait_for_workers(2, timeout=RECOVERY_S)
    except TimeoutError as error:
        client.close()
        raise ValueError(
            f'the Dask cluster at {address} has fewer than two workers after {RECOVERY_S:g} s; '
            'with one joblib would run everything in this process'
        ) from error
    return client


def _needed(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        package = 'ray' if module.startswith('ray') else "'dask[distributed]'"
        raise ValueError(
            f'this backend needs {module} ({error}); pip install {package} on every machine'
        ) from error
