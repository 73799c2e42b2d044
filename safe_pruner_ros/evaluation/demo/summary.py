"""summary.json of a demo: the numbers, and nothing that needs the pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safe_pruner_ros.evaluation.demo.record import (
    DemoRecord,
    EpisodeRecord,
    StepRecord,
    percentiles,
)
from safe_pruner_ros.evaluation.results import to_json


def summarise(record: DemoRecord) -> dict[str, Any]:
    """JSON-ready. Means and percentiles are over all policy steps, key timesteps included;
    ``image_receive_ratio`` is that of the worst view; ``command_period_ms`` is wall time, whatever
    ``rate_factor`` is."""
    steps = record.steps
    reasons = Counter(step.reason for step in steps if step.is_key_timestep)
    return {
        'episodes': len(record.episodes),
        'successes': record.successes,
        'method': record.method,
        'retention_ratio': record.retention_ratio,
        'pruning_ratio_mean': _mean([1 - step.n_retained / step.n_visual for step in steps]),
        'keyframes': sum(reasons.values()),
        'policy_step_ms': percentiles([_total_ms(step) for step in steps]),
        'command_period_ms': percentiles(record.command_periods_ms),
        'image_receive_ratio': min(record.receive_ratios.values(), default=None),
        'policy_steps': len(steps),
        'retained_tokens_mean': _mean([float(step.n_retained) for step in steps]),
        'visual_tokens': steps[0].n_visual if steps else None,
        'keyframe_reasons': dict(reasons),
        'policy_step_key_ms': percentiles([_total_ms(s) for s in steps if s.is_key_timestep]),
        'policy_step_pruned_ms': percentiles(
            [_total_ms(s) for s in steps if not s.is_key_timestep]
        ),
        'observation_age_ms': percentiles([1e3 * step.age_s for step in steps]),
        'image_receive_ratio_by_view': dict(record.receive_ratios),
        'commands': len(record.command_periods_ms),
        'guard_ticks': dict(record.guard_ticks),
        'rate_factor': record.rate_factor,
        'per_episode': [_episode(episode) for episode in record.episodes],
    }


def _episode(episode: EpisodeRecord) -> dict[str, Any]:
    return {
        'number': episode.number,
        'seed': episode.seed,
        'instruction': episode.instruction,
        'success': episode.success,
        'duration_s': round(episode.duration_s, 3),
        'note': episode.note,
        'policy_steps': len(episode.steps),
        'keyframes': [
            {'time_s': round(step.time_s, 3), 'policy_step': step.step, 'reason': step.reason}
            for step in episode.keyframes
        ],
        'pruning_ratio_mean': _mean([1 - s.n_retained / s.n_visual for s in episode.steps]),
        'stages': [[round(time_s, 3), stage] for time_s, stage in episode.stages],
    }


def _total_ms(step: StepRecord) -> float:
    return step.latency_ms.get('total', float('nan'))


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


def write_summary(record: DemoRecord, path: Path, **more: Any) -> dict[str, Any]:
    """Write `summarise` plus ``more`` entries; returns what was written."""
    summary = summarise(record) | more
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_json(summary) + '\n')
    return summary
