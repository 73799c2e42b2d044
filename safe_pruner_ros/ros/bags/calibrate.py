"""`safe-pruner calibrate`: bags -> the setting with the most pruning under a limit. No rclpy."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safe_pruner_ros.core.catalog import accepted_settings, resolved_settings
from safe_pruner_ros.evaluation.observation_store import ObservationStore
from safe_pruner_ros.evaluation.policy_source import PolicySource
from safe_pruner_ros.evaluation.replay.calibration import (
    RATIO,
    THRESHOLD,
    Calibration,
    Outcome,
    calibrate,
    grid,
    sweep,
)
from safe_pruner_ros.evaluation.replay.calibration_report import (
    ONE_RECORDING,
    pruner_block,
    summarize,
    unpruned_problems,
    verdict,
    write_calibration,
)
from safe_pruner_ros.evaluation.replay.metrics import Limits
from safe_pruner_ros.policies.catalog import CAUSAL
from safe_pruner_ros.policies.policy import InstructionError
from safe_pruner_ros.ros.bags.mapping import apply_map, parse_map
from safe_pruner_ros.ros.bags.reader import Bag
from safe_pruner_ros.ros.bags.replay import facts_of_run, timing
from safe_pruner_ros.ros.bags.source import BagSource
from safe_pruner_ros.runtime.config import Config, check_policy_fits


def main(
    arguments: argparse.Namespace,
    config: Config,
    method: str,
    settings: Mapping[str, Any],
    ratios: list[float],
    thresholds: list[float],
) -> int:
    """0 when a setting was found and held where it could be judged, else 1."""
    limits = Limits(**{item.name: getattr(arguments, item.name) for item in fields(Limits)})
    given = {name: value for name, value in vars(limits).items() if value is not None}
    if not given:
        raise ValueError(
            'calibrate needs a limit to calibrate for, e.g. --max-deviation-p99-rad 0.02'
        )
    accepted = accepted_settings(method)
    if RATIO not in accepted:
        raise ValueError(f'method {method!r} has nothing to calibrate; it prunes nothing')
    if len({path.resolve() for path in arguments.bag}) != len(arguments.bag):
        raise ValueError('a recording is given twice; it would judge its own choice')
    tries = grid(ratios, thresholds if THRESHOLD in accepted else None)
    weights = PolicySource.of(config.policy).pinned()
    with weights.unchanged():
        policy = weights.build(method, {**settings, RATIO: 1.0})
    horizon, period_s = timing(policy.spec, config.policy)
    deadline_ms = arguments.deadline_ms or 1e3 * horizon * period_s
    with ExitStack() as stack:
        recordings = {}
        for path in arguments.bag:
            folder = stack.enter_context(TemporaryDirectory(prefix='safe_pruner_'))
            recordings[str(path)] = _read(path, arguments, config, horizon * period_s, folder)
        check_policy_fits(policy.spec, config.robot)
        progress = _Progress(len(tries) * len(recordings))
        try:
            outcomes, unpruned = sweep(
                policy, recordings, config.robot.layout, tries, limits, horizon, period_s,
                deadline_ms, progress.show,
            )  # fmt: skip
        except InstructionError as error:
            raise ValueError(f'{error}; give another one with --instruction') from error
    result = calibrate(outcomes, unpruned)
    chosen = {} if result.chosen is None else result.chosen.changes()
    resolved = resolved_settings(
        method, {**settings, **chosen}, causal=config.policy.name in CAUSAL
    )
    tried = () if result.chosen else (RATIO, THRESHOLD)
    report = {
        **summarize(result, given),
        'method': method,
        'settings': {name: value for name, value in resolved.items() if name not in tried},
        'robot': config.robot.name,
        **facts_of_run(weights),
    }
    json_path, html_path = write_calibration(arguments.out, result, report)
    _print(result, report)
    print(f'written to {html_path} and {json_path}')
    return 0 if result.passed else 1


def _read(
    path: Path, arguments: argparse.Namespace, config: Config, period_s: float, folder: str
) -> ObservationStore:
    store = ObservationStore(Path(folder))
    with Bag(path) as bag:
        robot = apply_map(config.robot, parse_map(arguments.map), bag)
        store.fill(
            BagSource(
                bag, robot, config.runtime.buffer, period_s, arguments.instruction, arguments.clock
            )
        )
    print(f'{path}: {len(store)} observations', file=sys.stderr)
    return store


class _Progress:
    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0

    def show(self, outcome: Outcome) -> None:
        self._done += 1
        if sys.stderr.isatty():
            end = '\n' if self._done == self._total else ''
            print(f'\r{self._done} of {self._total} passes', end=end, file=sys.stderr, flush=True)


def _print(result: Calibration, report: Mapping[str, Any]) -> None:
    for point in report['curve']:
        apart = point['worst_deviation_rad']
        tau = f', tau {point[THRESHOLD]:g}' if THRESHOLD in point else ''
        print(
            f'retention {point[RATIO]:g}{tau}: {100 * point["kept_share"]:5.1f} % kept, p99 '
            f'{apart["p99"]:.4f}, max {apart["max"]:.4f} rad'
            f'{"" if point["keeps_limits"] else "  over the limit"}'
        )
    if result.chosen is None:
        print('no setting keeps the limits: leave pruning off, or look at the recording')
    else:
        print(f'proposed: {result.chosen.name}. In the policy file:')
        print(pruner_block(report['method'], report['settings']), end='')
    for problem in unpruned_problems(result):
        print(f'note: {problem}')
    if result.chosen is None:
        return
    if not result.judgements:
        print(ONE_RECORDING)
    for item in result.judgements:
        name = 'nothing' if item.setting is None else item.setting.name
        print(f'judged on {item.recording} (the others choose {name}): {verdict(item)}')
