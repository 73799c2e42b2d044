"""`safe-pruner benchmark`: policy step latency, written as JSON beside a Markdown table."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from safe_pruner_ros.evaluation.latency import markdown_table, ratio_line, run_benchmark
from safe_pruner_ros.evaluation.methods import parse_settings
from safe_pruner_ros.evaluation.plan import build_cells
from safe_pruner_ros.evaluation.policy_source import PolicySource
from safe_pruner_ros.evaluation.provenance import run_facts
from safe_pruner_ros.evaluation.results import to_json
from safe_pruner_ros.policies.catalog import CAUSAL
from safe_pruner_ros.runtime.config import PolicyConfig
from safe_pruner_ros.sim.env import DualArmEnv

FIRST_SEED = 800_100  # of scenes that serve neither training nor any choice or reported rate


def parse_threads(text: str) -> list[int]:
    """'1,2' -> [1, 2]; ValueError unless all are at least 1."""
    try:
        threads = [int(part) for part in text.split(',')]
    except ValueError:
        threads = []
    if not threads or min(threads) < 1:
        raise ValueError(f'--threads takes counts like 1,2, got {text!r}')
    return threads


def main(
    arguments: argparse.Namespace,
    policy: PolicyConfig,
    configured: Mapping[str, Mapping[str, Any]],
) -> int:
    """Measure, print, write; ``configured`` as in `build_cells`."""
    threads = parse_threads(arguments.threads)
    settings = parse_settings(arguments.settings)
    (cell,) = build_cells(
        [arguments.method],
        [arguments.retention],
        settings,
        configured,
        causal=policy.name in CAUSAL,
    )
    seeds = range(FIRST_SEED, FIRST_SEED + arguments.episodes)
    with DualArmEnv(arguments.task) as env:
        result = run_benchmark(
            env,
            cell,
            threads,
            seeds,
            arguments.rounds,
            PolicySource.of(policy),
        )
    result |= run_facts()
    text = ''
    for count in threads:
        found = result['threads'][str(count)]
        text += (
            f'{cell.method} at {cell.retention_ratio:g}, {policy.device}, {count} torch '
            f'thread{"s" if count > 1 else ""}, ms:\n\n{markdown_table(found)}\n'
            f'{ratio_line(found)}\n\n'
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / 'policy_step.json').write_text(to_json(result) + '\n')
    (arguments.out / 'policy_step.md').write_text(text)
    print(text)
    print(f'written to {arguments.out / "policy_step.json"}')
    return 0
