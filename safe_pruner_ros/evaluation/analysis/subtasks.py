"""Does a fall of attention similarity tell where a subtask begins? Scored against the expert.

A boundary is the first policy step of another subtask. A detection is a key timestep that the
method took because it saw a boundary. Pure functions of steps; chance is part of the score,
because in an episode of ten steps a guess is often near.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from safe_pruner_ros.core.pruner import KeyframeReason, Pruner
from safe_pruner_ros.evaluation.analysis.estimates import Estimate, ratio_estimate
from safe_pruner_ros.evaluation.analysis.recording import Recording

CHANCE_DRAWS = 200

DetectionCase = tuple[tuple[int, ...], tuple[int, ...], int]  # boundaries, detections, steps


@dataclass(frozen=True)
class EpisodeScore:
    """``delays``: steps from boundary to detection, one a match, negative when it came early."""

    n_boundaries: int
    n_detections: int
    delays: tuple[int, ...]


@dataclass(frozen=True)
class DetectionScore:
    """Over all episodes. ``precision``: matched detections of all; ``recall``: matched boundaries
    of all; ``chance_*``: the same number of detections, placed at random. ``delay_*`` in policy
    steps, NaN without a match. ``rate``: detections of all policy steps after the first."""

    precision: Estimate
    recall: Estimate
    chance_precision: float
    chance_recall: float
    delay_mean: float
    delay_median: float
    rate: float
    n_boundaries: int
    n_detections: int
    n_matched: int

    @property
    def f1(self) -> float:
        total = self.n_boundaries + self.n_detections
        return 2 * self.n_matched / total if total else float('nan')


def boundaries_of(subtasks: Sequence[str]) -> tuple[int, ...]:
    """Steps whose subtask is not that of the step before; never step 0."""
    return tuple(k for k in range(1, len(subtasks)) if subtasks[k] != subtasks[k - 1])


def score_episode(
    boundaries: Sequence[int], detections: Sequence[int], tolerance: int
) -> EpisodeScore:
    """Match boundaries and detections at most ``tolerance`` steps apart, each at most once: as
    many as possible, and of those matchings the one with the smallest total distance.

    Step 0 is no detection: every method runs it in full. Raises ValueError for a negative
    tolerance or step, or one that is there twice.
    """
    if tolerance < 0:
        raise ValueError(f'tolerance must not be negative, got {tolerance}')
    for name, steps in (('boundaries', boundaries), ('detections', detections)):
        if len(set(steps)) < len(steps) or any(step < 0 for step in steps):
            raise ValueError(f'{name} must be different steps from 0 on, got {list(steps)}')
    found = np.array(sorted(step for step in detections if step > 0), dtype=int)
    true = np.array(sorted(boundaries), dtype=int)
    delay = found[None, :] - true[:, None]
    # One more match outweighs any distance.
    reward = np.where(abs(delay) <= tolerance, (tolerance + 1) * (1 + len(true)) - abs(delay), 0)
    rows, columns = linear_sum_assignment(reward, maximize=True)
    matched = abs(delay[rows, columns]) <= tolerance
    return EpisodeScore(len(true), len(found), tuple(map(int, delay[rows, columns][matched])))


def score_detection(episodes: Sequence[DetectionCase], tolerance: int) -> DetectionScore:
    """``episodes``: boundaries, detections and number of policy steps of each."""
    scores = [score_episode(true, found, tolerance) for true, found, _ in episodes]
    delays = [delay for score in scores for delay in score.delays]
    matched = [len(score.delays) for score in scores]
    detections = [score.n_detections for score in scores]
    boundaries = [score.n_boundaries for score in scores]
    chance = _by_chance(episodes, detections, tolerance)
    places = sum(max(0, steps - 1) for _, _, steps in episodes)
    return DetectionScore(
        precision=ratio_estimate(matched, detections),
        recall=ratio_estimate(matched, boundaries),
        chance_precision=chance / sum(detections) if sum(detections) else float('nan'),
        chance_recall=chance / sum(boundaries) if sum(boundaries) else float('nan'),
        delay_mean=float(np.mean(delays)) if delays else float('nan'),
        delay_median=float(np.median(delays)) if delays else float('nan'),
        rate=sum(detections) / places if places else float('nan'),
        n_boundaries=sum(boundaries),
        n_detections=sum(detections),
        n_matched=sum(matched),
    )


def _by_chance(
    episodes: Sequence[DetectionCase],
    detections: Sequence[int],
    tolerance: int,
) -> float:
    """Expected number of matches when each episode's detections fall anywhere after step 0."""
    rng, total = np.random.default_rng(0), 0
    for (true, _, steps), count in zip(episodes, detections, strict=True):
        if not count or not true:
            continue
        for _ in range(CHANCE_DRAWS):
            placed = 1 + rng.choice(steps - 1, size=count, replace=False)
            total += len(score_episode(true, placed.tolist(), tolerance).delays)
    return total / CHANCE_DRAWS


def replay_detections(recording: Recording, pruner: Pruner) -> tuple[int, ...]:
    """Steps at which ``pruner`` would have seen a boundary on this episode. What it would have
    dropped is measured all the same, and the episode does not answer to it."""
    pruner.reset()
    found = []
    for step in range(recording.n_steps):
        context, attention = recording.step(step)
        plan = pruner.plan(context)
        pruner.observe(context, plan, attention)
        if plan.keyframe is KeyframeReason.SUBTASK_BOUNDARY:
            found.append(step)
    return tuple(found)
