"""The same episodes on every backend; none lost or counted twice, whatever is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster
from joblib import parallel_config

from safe_pruner_ros.evaluation.evaluate import evaluate
from safe_pruner_ros.evaluation.execution import on_backend
from safe_pruner_ros.evaluation.plan import EvaluationPlan, build_cells
from safe_pruner_ros.evaluation.policy_source import PolicySource
from safe_pruner_ros.evaluation.results import ResultsError, read_episodes
from safe_pruner_ros.evaluation.rollout import RolloutSettings
from safe_pruner_ros.evaluation.worker import forget_warm

LATENCIES = tuple(f'latency_ms_{part}' for part in ('mean', 'p50', 'key_p50', 'pruned_p50'))
VARYING = (*LATENCIES, 'wall_s', 'commit')
METHODS = ('unpruned', 'random', 'safe_pruner:tau=0.9')
SEEDS = (500_000, 500_001)
PATIENCE_S = 900.0  # of a machine with much else to do


def plan(checkpoint: Path, methods: tuple[str, ...] = METHODS, **more: Any) -> EvaluationPlan:
    return EvaluationPlan(
        'pick_place',
        build_cells(methods, [0.25], {}),
        SEEDS,
        policy=PolicySource(checkpoint=str(checkpoint)),
        rollout=RolloutSettings(max_policy_steps=2, execution_horizon=1),
        **more,
    )


def outcome(folder: Path) -> list[dict[str, Any]]:
    """Episodes without what may differ between two runs."""
    episodes = read_episodes(folder / 'episodes.jsonl')  # which refuses one that is there twice
    kept = [{k: v for k, v in episode.items() if k not in VARYING} for episode in episodes]
    return sorted(kept, key=lambda episode: (episode['variant'], episode['seed']))


@pytest.fixture(scope='module')
def expected(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process alone comes to."""
    folder = tmp_path_factory.mktemp('alone')
    evaluate(plan(checkpoint), folder, jobs=1)
    forget_warm()
    return outcome(folder)


def test_line_of_an_episode(expected: list[dict[str, Any]]) -> None:
    line = expected[-2]
    assert line['variant'] == 'unpruned' and len(expected) == len(METHODS) * len(SEEDS)
    asked = ['task', 'method', 'retention_ratio', 'seed', 'success', 'policy_steps', 'keyframes']
    assert {*asked, 'retained_tokens_mean', 'macs_mean', 'settings', 'config'} <= set(line)
    assert line['config']['execution_horizon'] == 1 and len(line['config']['checkpoint']) == 16
    safe = next(line for line in expected if line['method'] == 'safe_pruner')
    assert safe['settings']['similarity_threshold'] == 0.9 and safe['settings']['alpha'] == 0.5


def test_threads_come_to_the_same(checkpoint: Path, expected, tmp_path: Path) -> None:
    with parallel_config(backend='threading'):
        evaluate(plan(checkpoint), tmp_path, jobs=2)
    assert outcome(tmp_path) == expected


def test_dask_cluster_comes_to_the_same(checkpoint: Path, expected, tmp_path: Path) -> None:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        on_backend(f'dask:{cluster.scheduler_address}'),
    ):
        evaluate(plan(checkpoint), tmp_path)
    assert outcome(tmp_path) == expected


def test_another_configuration_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    evaluate(plan(checkpoint, ('safe_pruner:tau=0.9',)), tmp_path, jobs=1)
    before = (tmp_path / 'episodes.jsonl').read_bytes()
    with pytest.raises(ResultsError, match='max_policy_steps was 2, now 3'):
        changed = plan(checkpoint)
        evaluate(
            EvaluationPlan(**{**vars(changed), 'rollout': RolloutSettings(3, 1)}), tmp_path, jobs=1
        )
    # The same name, but what it starts from has changed.
    cells = build_cells(['safe_pruner:tau=0.9'], [0.25], {}, {'safe_pruner': {'norm': 'l1'}})
    with pytest.raises(ResultsError, match=r"they were \{'norm': 'none'\}, now \{'norm': 'l1'\}"):
        evaluate(EvaluationPlan(**{**vars(plan(checkpoint)), 'cells': cells}), tmp_path, jobs=1)
    # A setting that did not exist when these episodes ran, at its default now, is no change.
    lines = [json.loads(line) for line in before.splitlines()]
    for line in lines:
        del line['settings']['deep_weight']
    (tmp_path / 'episodes.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    cells_before = evaluate(plan(checkpoint, ('safe_pruner:tau=0.9',)), tmp_path, jobs=1)
    assert cells_before[0].episodes == len(SEEDS)


class Run:
    """`safe-pruner evaluate` in a process of its own."""

    def __init__(self, checkpoint: Path, out: Path) -> None:
        self.lines = out / 'episodes.jsonl'
        self.log = out / 'log.txt'
        out.mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'safe_pruner_ros.cli', 'evaluate', '--methods', *METHODS,
             '--retention', '0.25', '--seeds', ','.join(map(str, SEEDS)), '--jobs', '2',
             '--checkpoint', str(checkpoint), '--max-policy-steps', '2',
             '--execution-horizon', '1', '--set', 'random.seed=0', '--out', str(out)],
            stdout=self.log.open('w'), stderr=subprocess.STDOUT,
        )  # fmt: skip

    def wait_until(self, ready: Callable[[], Any]) -> Any:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end and self.process.poll() is None:
            if found := ready():
                return found
            time.sleep(0.02)
        raise AssertionError(self.log.read_text())

    def kill(self) -> str:
        """kill -9; the workers would wait for more to do for five minutes, so they go too."""
        children = _children(self.process.pid)
        self.process.kill()
        self.process.wait()
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        return self.log.read_text()

    def finished(self) -> int:
        return self.lines.read_bytes().count(b'\n') if self.lines.is_file() else 0

    def workers(self) -> list[int]:
        """Those that hold a policy, i.e. are in the middle of an episode."""
        found = []
        for child in _children(self.process.pid):
            try:
                command = Path(f'/proc/{child}/cmdline').read_bytes()
                mapped = Path(f'/proc/{child}/maps').read_text()
            except OSError:  # gone meanwhile
                continue
            if b'popen_loky' in command and 'libtorch_cpu' in mapped:
                found.append(child)
        return found


def _children(pid: int) -> list[int]:
    """All descendants; a process or thread that ends while it is read has none."""
    direct: list[int] = []
    with suppress(OSError):
        for task in Path(f'/proc/{pid}/task').iterdir():
            with suppress(OSError):
                direct += map(int, (task / 'children').read_text().split())
    return direct + [grandchild for child in direct for grandchild in _children(child)]


@pytest.mark.skipif(not Path('/proc/self/task').is_dir(), reason='finds processes in /proc')
def test_kill_minus_nine(checkpoint: Path, tmp_path: Path) -> None:
    """A worker first, then the whole run, then the file cut: the third go completes it."""
    first = Run(checkpoint, tmp_path)
    os.kill(first.wait_until(first.workers)[0], signal.SIGKILL)
    first.wait_until(lambda: first.finished() >= 2)
    assert 'a worker process died; what it was running runs again' in first.kill()

    saved = first.lines.read_bytes()
    whole = saved[: saved.rindex(b'\n') + 1]
    assert whole.count(b'\n') < len(METHODS) * len(SEEDS)
    first.lines.write_bytes(whole[:-40])  # as a crash in the middle of a write leaves it

    second = Run(checkpoint, tmp_path)
    assert second.process.wait(PATIENCE_S) == 0, second.log.read_text()
    assert [(line['variant'], line['seed']) for line in outcome(tmp_path)] == sorted(
        (variant, seed)
        for variant in ('unpruned', 'random', 'safe_pruner:similarity_threshold=0.9')
        for seed in SEEDS
    )
    summary = json.loads((tmp_path / 'summary.json').read_text())
    assert summary['complete']
    assert all(cell['episodes'] == len(SEEDS) for cell in summary['cells'])
    assert (tmp_path / 'success_tokens.png').stat().st_size > 10_000
