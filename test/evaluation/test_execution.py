"""Every job is answered once: on any backend, and when workers are killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster
from joblib import parallel_config

from safe_pruner_ros.evaluation import execution
from safe_pruner_ros.evaluation.execution import WorkerDied, on_backend, run_jobs

JOBS = ['ab', 'c', 'def', 'g', 'hi']


# 'multiprocessing' stands for backends that answer in waves, as Ray's does.
@pytest.mark.parametrize('backend', ['sequential', 'threading', 'loky', 'multiprocessing'])
def test_every_job_is_answered_once(backend: str) -> None:
    with parallel_config(backend=backend, n_jobs=2):
        found = list(run_jobs(dict.fromkeys, JOBS, 2))
    assert sorted(job for job, _ in found) == sorted(JOBS)
    assert all(record == dict.fromkeys(job) for job, record in found)


def test_nothing_to_do() -> None:
    assert list(run_jobs(dict.fromkeys, [])) == []


def test_a_job_that_raises_ends_the_run() -> None:
    with pytest.raises(TypeError, match='iterable'):
        list(run_jobs(dict.fromkeys, [['a'], 3], 2))


def test_a_killed_worker_costs_nothing(tmp_path: Path, capsys) -> None:
    marker = tmp_path / 'died'

    def dies_once(job: int) -> dict[str, Any]:
        if job == 3 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {'job': job}

    found = list(run_jobs(dies_once, range(8), 2))
    assert marker.exists() and 'a worker process died' in capsys.readouterr().err
    assert sorted(record['job'] for _, record in found) == list(range(8))


def test_a_job_that_always_kills_its_worker_stops_nobody_else() -> None:
    def dies(job: int) -> dict[str, Any]:
        if job in (0, 17):
            os.kill(os.getpid(), signal.SIGKILL)
        return {'job': job}

    found: list[int] = []
    with pytest.raises(WorkerDied, match='of 2 episodes died twice.*: 0; 17. All others') as error:
        found.extend(record['job'] for _, record in run_jobs(dies, range(30), 2))
    assert sorted(found) == [job for job in range(30) if job not in (0, 17)]
    assert 'run the same command again' in str(error.value)


def test_workers_that_die_whatever_they_run_are_an_error(monkeypatch) -> None:
    monkeypatch.setattr(execution, 'MAX_DEATHS', 2)

    def dies(job: int) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    with pytest.raises(WorkerDied, match='keep dying .2 times'):
        list(run_jobs(dies, range(40), 2))
    with pytest.raises(WorkerDied, match='keep dying .2 times'):  # one by one
        list(run_jobs(dies, range(3), 2))


def test_a_killed_dask_worker_costs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / 'died'

    def dies_once(job: int) -> dict[str, Any]:
        if job == 1 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {'job': job}

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        on_backend(f'dask:{cluster.scheduler_address}'),
    ):
        found = list(run_jobs(dies_once, range(5)))
    assert marker.exists() and sorted(record['job'] for _, record in found) == list(range(5))


@pytest.mark.parametrize('where', ['', 'dask', 'dask:', 'local:2', 'spark:x'])
def test_unknown_backends_are_refused(where: str) -> None:
    with pytest.raises(ValueError, match="a backend is 'local', 'dask:tcp"), on_backend(where):
        pass


@pytest.mark.parametrize(('where', 'package'), [('dask:tcp://x:1', 'distributed'), ('ray', 'ray')])
def test_missing_packages_are_named(where: str, package: str, monkeypatch) -> None:
    monkeypatch.setitem(__import__('sys').modules, package, None)  # as if not installed
    with pytest.raises(ValueError, match=f'needs {package}.*pip install'), on_backend(where):
        pass
