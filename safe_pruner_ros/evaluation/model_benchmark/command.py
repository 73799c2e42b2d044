"""`safe-pruner benchmark --model`: builds, measures, writes JSON beside a Markdown table."""

from __future__ import annotations

import argparse
import resource
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from safe_pruner_ros.core.catalog import accepted_settings
from safe_pruner_ros.core.selection import n_retained
from safe_pruner_ros.evaluation.benchmark import parse_threads
from safe_pruner_ros.evaluation.flops.scoring import NOT_COUNTED, has_keyframes, settings_of
from safe_pruner_ros.evaluation.flops.step import stage_macs, step_stages
from safe_pruner_ros.evaluation.latency import KEY, METHOD, PRUNED, UNPRUNED
from safe_pruner_ros.evaluation.model_benchmark.measure import (
    SCOPES,
    STAGES,
    measure,
    summarise,
)
from safe_pruner_ros.evaluation.model_benchmark.random_models import (
    RandomModel,
    build_random_model,
    random_observations,
)
from safe_pruner_ros.evaluation.provenance import run_facts
from safe_pruner_ros.evaluation.results import to_json
from safe_pruner_ros.policies.device import choose_device, choose_dtype
from safe_pruner_ros.policies.graphed_decoder import use_graphs

N_OBSERVATIONS = 8


def run(
    name: str,
    size: str,
    method: str,
    retention_ratio: float,
    *,
    keyframe_share: float,
    rounds: int,
    threads: Sequence[int],
    device: str,
    dtype: str,
    graphs: bool = False,
) -> dict[str, Any]:
    """Everything that goes into the JSON, without provenance. ``graphs``: both policies replay
    CUDA graphs, each compared with eager when it is captured (`policies/cuda_graphs.py`)."""
    place = choose_device(device)
    weights = choose_dtype(dtype, place)
    if graphs and place.type != 'cuda':
        raise ValueError(f'--graphs needs a GPU, the device is {device!r}; use --device cuda')
    model = build_random_model(name, size, place, weights)
    settings = _settings(method, retention_ratio)
    unpruned, pruned = model.make_policy('unpruned', {}), model.make_policy(method, settings)
    if graphs:
        use_graphs(unpruned)
        use_graphs(pruned)
    observations = random_observations(unpruned, N_OBSERVATIONS)
    before, by_threads = torch.get_num_threads(), {}
    if place.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(place)
    errors: list[npt.NDArray[np.float64]] = []
    try:
        for count in threads:
            torch.set_num_threads(count)
            samples, errors = measure(unpruned, pruned, observations, rounds)
            if not errors:
                raise ValueError(
                    f'{method} at retention {retention_ratio:g} pruned nothing: there is no '
                    'pruned step to compare; take another method or a lower ratio'
                )
            by_threads[str(count)] = summarise(samples, keyframe_share)
    finally:
        torch.set_num_threads(before)
    return {
        'model': name,
        'size': size,
        'parameters': model.parameters,
        'device': device,
        'dtype': str(weights).removeprefix('torch.'),
        'graphs': graphs,
        'method': method,
        'retention_ratio': retention_ratio,
        'n_visual': model.counted.tokens.visual,
        'n_tokens': model.counted.tokens.length,
        'n_retained': n_retained(model.counted.tokens.visual, retention_ratio),
        'settings': settings,
        'rounds': rounds,
        'macs': _macs(model, method, retention_ratio, keyframe_share),
        'threads': by_threads,
        'peak_memory_bytes': _peak_memory(place),
        'action_error': _error(errors),
    }


def _settings(method: str, retention_ratio: float) -> dict[str, Any]:
    settings = settings_of(method, retention_ratio)
    if 'similarity_threshold' in accepted_settings(method):
        settings['similarity_threshold'] = 0.0
    return settings


def _macs(model: RandomModel, method: str, ratio: float, share: float) -> dict[str, Any] | None:
    """None for a method whose operations nobody has counted."""
    if method in NOT_COUNTED:
        return None
    counted = {
        UNPRUNED: stage_macs(step_stages(model.counted, 'unpruned', 1.0, is_key=False)),
        KEY: stage_macs(step_stages(model.counted, method, ratio, is_key=True)),
        PRUNED: stage_macs(step_stages(model.counted, method, ratio, is_key=False)),
    }
    totals = {mode: sum(stages.values()) for mode, stages in counted.items()}
    share = share if has_keyframes(method) else 0.0
    mixed = share * totals[KEY] + (1 - share) * totals[PRUNED]
    return {
        'by_stage': counted,
        'ratio_pruned': totals[UNPRUNED] / totals[PRUNED],
        'ratio_mixed': totals[UNPRUNED] / mixed,
    }


def _peak_memory(device: torch.device) -> int:
    """Of the GPU's allocator; on a CPU of the whole process since its start."""
    if device.type == 'cuda':
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _error(errors: Sequence[npt.NDArray[np.float64]]) -> dict[str, float] | None:
    if not errors:
        return None
    every = np.stack(errors)
    return {'mean': float(every.mean()), 'max': float(every.max())}


def table(result: Mapping[str, Any]) -> str:
    """One row a mode: p50 of the stages, p50/p90/p99 of the whole step, ms."""
    rows = [
        [
            'step',
            'n',
            *(f'{stage} p50' for stage in STAGES),
            'step p50',
            'p90',
            'p99',
        ],
        ['---', *['---:'] * (len(STAGES) + 4)],
    ]
    for mode, found in result['modes'].items():
        whole, ms = found['ms']['step'], found['ms']
        label = mode
        if mode == METHOD:
            label = f'{100 * result["keyframe_share"]:g} % key, the rest pruned'
        rows.append(
            [
                label,
                str(found['samples']),
                *(f'{ms[stage]["p50"]:.2f}' for stage in STAGES),
                *(f'{whole[name]:.2f}' for name in ('p50', 'p90', 'p99')),
            ]
        )
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows) + '\n'


def ratio_lines(result: Mapping[str, Any], macs: Mapping[str, Any] | None) -> str:
    """Speedups by scope and what the count of MACs promises, as sentences."""

    def shown(scope: str, name: str) -> str:
        found = result['speedup'][scope][name]
        return f'{found["p50"]:.2f} ({found["p25"]:.2f} to {found["p75"]:.2f})'

    step = result['speedup']['step']['unpruned_over_pruned']['p50']
    lines = [
        f'Unpruned / {what}, median of rounds (quartiles): '
        + ', '.join(f'{scope} {shown(scope, name)}' for scope in SCOPES)
        for what, name in (('pruned', 'unpruned_over_pruned'), ('mixed', 'unpruned_over_mixed'))
    ]
    if macs is not None:
        lines.append(
            f'MACs of the step: {macs["ratio_pruned"]:.2f} to 1, so the measured speedup is '
            f'{step / macs["ratio_pruned"]:.2f} of it (mixed {macs["ratio_mixed"]:.2f} to 1)'
        )
    share = 100 * result['scoring_share']
    lines.append(f'Scoring, matching and selection: {share:.1f} % of a pruned step')
    return '\n'.join(f'- {line}' for line in lines) + '\n'


def main(arguments: argparse.Namespace) -> int:
    """Measure, print, write ``model_step.json`` and ``.md`` into the results folder."""
    device = str(choose_device(arguments.device or 'cpu'))
    result = run(
        arguments.model,
        arguments.size,
        arguments.method,
        arguments.retention,
        keyframe_share=arguments.keyframe_share,
        rounds=arguments.rounds,
        threads=parse_threads(arguments.threads),
        device=device,
        graphs=arguments.graphs,
        dtype=arguments.dtype or 'auto',
    )
    result |= run_facts()
    text = ''
    for count, found in result['threads'].items():
        text += (
            f'{result["model"]} {result["size"]} ({result["parameters"] / 1e6:.0f} M parameters, '
            f'{result["n_tokens"]} tokens, {result["n_retained"]} of {result["n_visual"]} visual '
            f'ones kept), {result["method"]}, {device}, {result["dtype"]}, '
            f'{"graphs" if result["graphs"] else "eager"}, {count} torch threads, ms:\n\n'
            f'{table(found)}\n{ratio_lines(found, result["macs"])}\n'
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / 'model_step.json').write_text(to_json(result) + '\n')
    (arguments.out / 'model_step.md').write_text(text)
    print(text)
    print(f'peak memory {result["peak_memory_bytes"] / 1e9:.2f} GB')
    if result['action_error']:
        error = result['action_error']
        print(f'actions, |pruned - unpruned|: mean {error["mean"]:.4g}, max {error["max"]:.4g}')
    print(f'written to {arguments.out / "model_step.json"}')
    return 0
