"""Episodes of an evaluation that never ran."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def bare_episode(
    method: str, seed: int, success: bool, ratio: float = 0.3, **more: object
) -> dict[str, Any]:
    """What a summary cannot do without."""
    return {
        'task': 'pick_place',
        'method': method,
        'retention_ratio': 1.0 if method == 'unpruned' else ratio,
        'seed': seed,
        'asked_object': None,
        'success': success,
        'policy_steps': 10,
        'keyframes': 1,
        'retained_tokens_mean': 60.0,
        'pruning_ratio_mean': 0.7,
        'macs_mean': None,
        'latency_ms_p50': 10.0,
    } | more


def full_episode(method: str, seed: int, success: bool, **more: Any) -> dict[str, Any]:
    """A line as it is written, of key timesteps where the method has them."""
    is_safe = method.startswith('safe')
    return {
        'task': 'pick_place',
        'method': method.partition(':')[0],
        'variant': method,
        'retention_ratio': 1.0 if method == 'unpruned' else 0.2,
        'seed': seed,
        'asked_object': None,
        'success': success,
        'policy_steps': 10,
        'keyframes': 2 if is_safe else 0,
        'keyframe_steps': [0, 6] if is_safe else [],
        'keyframe_reasons': ['first step', 'subtask boundary'] if is_safe else [],
        'subtasks': ['pick'] * 5 + ['place'] * 5,
        'retained_tokens_mean': 192.0 if method == 'unpruned' else 60.0,
        'pruning_ratio_mean': 0.7,
        'macs_mean': None,
        'latency_ms_p50': 10.0 + seed,
        'wall_s': 1.0,
        'commit': 'abc',
        'config': {'checkpoint': 'cafe', 'training_seed': 0},
        'settings': {},
    } | more


def measured(key_ms: float | None, pruned_ms: float | None) -> dict[str, object]:
    return {'latency_ms_key_p50': key_ms, 'latency_ms_pruned_p50': pruned_ms}


def write(path: Path, episodes: list[dict[str, Any]]) -> Path:
    """A results file, its folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(e) + '\n' for e in episodes))
    return path


def read_table(text: str) -> list[dict[str, str]]:
    """The rows of the first Markdown table in ``text``, by column."""
    lines = text[text.index('| ') :].split('\n\n')[0].splitlines()
    head, _, *rows = [line[2:].removesuffix(' |').split(' | ') for line in lines]
    return [dict(zip(head, row, strict=True)) for row in rows]
