"""How often, why and how far apart key timesteps come, from evaluation results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from safe_pruner_ros.core.pruner import KeyframeReason
from safe_pruner_ros.evaluation.analysis.estimates import Estimate, ratio_estimate
from safe_pruner_ros.evaluation.analysis.subtasks import DetectionCase, boundaries_of
from safe_pruner_ros.evaluation.configurations import labeller
from safe_pruner_ros.evaluation.results import Record
from safe_pruner_ros.evaluation.summary import cell_key

Key = tuple[str, str, float]  # task, variant, retention ratio


@dataclass(frozen=True)
class KeyframeRow:
    """``variant``: followed by what tells its configuration apart where the results hold several
    (checkpoint, split, ...). ``share``: key timesteps of all policy steps. ``per_episode``,
    ``gap_mean``: how many, and policy steps between two (NaN where none has two). ``reasons``:
    share of each reason."""

    task: str
    variant: str
    retention_ratio: float
    episodes: int
    share: Estimate
    per_episode: float
    gap_mean: float
    reasons: dict[str, float]


def keyframe_rows(episodes: Iterable[Record]) -> list[KeyframeRow]:
    """One row a task, variant, ratio and configuration that took key timesteps at all, in order
    of appearance."""
    return [_row(key, group) for key, group in _groups(episodes).items()]


def detection_cases(episodes: Iterable[Record]) -> dict[str, list[DetectionCase]]:
    """The cases of `score_detection`, by task, variant, ratio and configuration, of what took key
    timesteps at all. An episode without any is a case as well: its boundaries were missed.
    Episodes whose steps nobody named are none."""
    return {
        f'{task}, {variant} at {ratio:g}': cases
        for (task, variant, ratio), group in _groups(episodes).items()
        if (cases := [_case(episode) for episode in group if _has_subtasks(episode)])
    }


def _groups(episodes: Iterable[Record]) -> dict[Key, list[Record]]:
    episodes = list(episodes)
    label = labeller(episode.get('config', {}) for episode in episodes)
    groups: dict[Key, list[Record]] = {}
    for episode in episodes:
        _, task, variant, ratio = cell_key(episode)
        if episode.get('policy_steps'):
            key = (task, variant + label(episode.get('config', {})), ratio)
            groups.setdefault(key, []).append(episode)
    return {key: group for key, group in groups.items() if any(e['keyframes'] for e in group)}


def _has_subtasks(episode: Record) -> bool:
    return len(episode.get('subtasks') or ()) == int(episode['policy_steps'])


def _case(episode: Record) -> DetectionCase:
    steps = int(episode['policy_steps'])
    return boundaries_of(episode['subtasks']), _detections(episode), steps


def _row(key: Key, group: Sequence[Record]) -> KeyframeRow:
    counts = [int(episode['keyframes']) for episode in group]
    gaps = [gap for episode in group for gap in np.diff(sorted(episode['keyframe_steps']))]
    reasons = Counter(reason for episode in group for reason in episode['keyframe_reasons'])
    return KeyframeRow(
        *key,
        episodes=len(group),
        share=ratio_estimate(counts, [int(episode['policy_steps']) for episode in group]),
        per_episode=float(np.mean(counts)),
        gap_mean=float(np.mean(gaps)) if gaps else float('nan'),
        reasons={name: count / sum(counts) for name, count in reasons.most_common()},
    )


def _detections(episode: Record) -> tuple[int, ...]:
    """Policy steps of an evaluated episode that became key because a boundary was seen."""
    pairs = zip(episode['keyframe_steps'], episode['keyframe_reasons'], strict=True)
    return tuple(step for step, why in pairs if why == KeyframeReason.SUBTASK_BOUNDARY.value)
