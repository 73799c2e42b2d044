"""`safe-pruner replay`: a bag through the methods, judged, as JSON, page and film. No rclpy."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from safe_pruner_ros.evaluation.plan import Cell
from safe_pruner_ros.evaluation.policy_source import PolicySource
from safe_pruner_ros.evaluation.provenance import run_facts
from safe_pruner_ros.evaluation.replay.metrics import Limits, evaluate_replay
from safe_pruner_ros.evaluation.replay.replay import UNPRUNED, build_lanes, replay
from safe_pruner_ros.evaluation.replay.report import write_report
from safe_pruner_ros.evaluation.replay.video import ReplayVideo
from safe_pruner_ros.policies.policy import InstructionError, PolicyOutput, PolicySpec
from safe_pruner_ros.ros.bags.mapping import apply_map, parse_map
from safe_pruner_ros.ros.bags.reader import Bag
from safe_pruner_ros.ros.bags.source import BagSource
from safe_pruner_ros.ros.startup import build_kinematics
from safe_pruner_ros.runtime.config import Config, PolicyConfig, check_policy_fits
from safe_pruner_ros.types import Observation


def main(arguments: argparse.Namespace, config: Config, cells: tuple[Cell, ...]) -> int:
    """0 when every method keeps the stated limits, else 1. ValueError for wrong requests."""
    policy = config.policy

    limits = Limits(**{item.name: getattr(arguments, item.name) for item in fields(Limits)})
    mapping = parse_map(arguments.map)
    with Bag(arguments.bag) as bag:
        robot = apply_map(config.robot, mapping, bag)
        weights = PolicySource.of(policy).pinned()
        with weights.unchanged():
            lanes = build_lanes(cells, weights.build(UNPRUNED, {}))
        spec = lanes[0].policy.spec
        check_policy_fits(spec, robot)
        kinematics = build_kinematics(replace(config, robot=robot))
        horizon, period_s = timing(spec, policy)
        buffer = config.runtime.buffer
        source = BagSource(
            bag, robot, buffer, horizon * period_s, arguments.instruction, arguments.clock
        )
        shown = lanes[min(1, len(lanes) - 1)]
        video = ReplayVideo(arguments.out / 'overlay.mp4', spec, shown.name, horizon * period_s)

        with video:

            def on_step(observation: Observation, outputs: Mapping[str, PolicyOutput]) -> None:
                if not arguments.no_video:
                    video.add(observation, outputs.get(shown.name))
                if sys.stderr.isatty():
                    print(f'\r{source.observations} policy steps', end='', file=sys.stderr)

            try:
                record = replay(source, robot.layout, lanes, horizon, period_s, on_step)
            except InstructionError as error:
                raise ValueError(
                    f'{bag.path}: {error}; give another one with --instruction'
                ) from error
        record.kinematics, record.end_effectors = kinematics, robot.end_effectors
        deadline_ms = arguments.deadline_ms or 1e3 * horizon * period_s
        commands = source.commands()
        report = {
            **evaluate_replay(record, commands, deadline_ms, limits),
            'source': source.summary(),
            'robot': robot.name,
            **facts_of_run(weights),
        }
    json_path, html_path = write_report(
        arguments.out, record, report, commands, has_video=not arguments.no_video
    )
    _print(report)
    print(f'written to {html_path} and {json_path}')
    return 0 if report['passed'] else 1


def timing(spec: PolicySpec, policy: PolicyConfig) -> tuple[int, float]:
    """(actions of a chunk that are executed, s between them), as the node has it."""
    horizon = min(policy.execution_horizon or spec.execution_horizon, spec.chunk_size)
    return horizon, policy.period_s or spec.period_s


def facts_of_run(weights: PolicySource) -> dict[str, Any]:
    """Where the numbers of a report come from."""
    return {
        'policy': weights.name,
        'checkpoint': weights.checkpoint or 'shipped',
        'checkpoint_sha256': weights.facts()['checkpoint'],
        'device': weights.device,
        **run_facts(),
    }


def _print(report: Mapping[str, Any]) -> None:
    steps, seconds = report['policy_steps'], report['duration_s']
    print(f'{steps} policy steps over {seconds:.1f} s')
    for method in report['methods']:
        apart = method['deviation_rad']
        print(
            f'{method["name"]:>20}: deviation p99 {_shown(apart["p99"])} max '
            f'{_shown(apart["max"])} rad, {method["gripper_flips"]} gripper flips, '
            f'{method["retained_tokens_mean"] or 0:.1f} of {method["n_visual"]} tokens, '
            f'{_shown(method["latency_ms"]["p50"], ".1f")} ms p50, '
            f'{len(method["failed_steps"])} failed, {method["compared_steps"]} compared steps'
        )
        for problem in method['exceeded']:
            print(f'{"":>20}  LIMIT EXCEEDED {problem}')


def _shown(value: float | None, style: str = '.4f') -> str:
    return 'none' if value is None else format(value, style)
