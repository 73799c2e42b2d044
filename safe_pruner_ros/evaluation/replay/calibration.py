"""Which setting of a pruning method prunes most while its actions stay near the unpruned ones.

Every setting answers every recorded observation; the proposal is the setting that keeps the fewest
visual tokens, key timesteps included, among those that keep the limits on every recording. A
number that chose cannot judge: with several recordings each one is judged by the setting that the
others would have chosen. One policy is loaded, once; retention 1 is the unpruned policy
(test/core: bit for bit).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from safe_pruner_ros.evaluation.replay.metrics import Limits, evaluate_replay
from safe_pruner_ros.evaluation.replay.replay import UNPRUNED, Lane, Replay, replay
from safe_pruner_ros.policies.policy import Policy
from safe_pruner_ros.types import JointLayout, Observation

THRESHOLD = 'similarity_threshold'
RATIO = 'retention_ratio'


@dataclass(frozen=True)
class Setting:
    """``similarity_threshold`` None: the method has none."""

    retention_ratio: float
    similarity_threshold: float | None = None

    @property
    def name(self) -> str:
        if self.similarity_threshold is None:
            return f'retention {self.retention_ratio:g}'
        return f'retention {self.retention_ratio:g}, tau {self.similarity_threshold:g}'

    def changes(self) -> dict[str, float]:
        """As the pruner takes them."""
        found = {RATIO: self.retention_ratio}
        if self.similarity_threshold is not None:
            found[THRESHOLD] = self.similarity_threshold
        return found


@dataclass(frozen=True)
class Outcome:
    """A setting on a recording. ``numbers``: its entry of a replay report. ``kept_share``: mean
    of retained / visual tokens over ``policy_steps``."""

    setting: Setting
    recording: str
    policy_steps: int
    kept_share: float
    numbers: Mapping[str, Any]

    @property
    def keeps_limits(self) -> bool:
        return not self.numbers['exceeded']


@dataclass(frozen=True)
class Judgement:
    """``recording`` under the setting that all other recordings chose; None: they chose none, and
    ``outcome`` is that of the unpruned policy."""

    recording: str
    setting: Setting | None
    outcome: Outcome

    @property
    def passed(self) -> bool:
        return self.setting is not None and self.outcome.keeps_limits


@dataclass(frozen=True)
class Calibration:
    """``outcomes``: settings x recordings; ``unpruned``: recordings, judged by the same limits,
    of which it can exceed those on latency. ``judgements`` is empty with a single recording."""

    outcomes: tuple[Outcome, ...]
    unpruned: tuple[Outcome, ...]
    chosen: Setting | None
    judgements: tuple[Judgement, ...]

    @property
    def passed(self) -> bool:
        """A setting was found, and its choice held on recordings that had no part in it."""
        return self.chosen is not None and all(item.passed for item in self.judgements)


def grid(ratios: Iterable[float], thresholds: Iterable[float] | None) -> tuple[Setting, ...]:
    """Ratios x thresholds; None for a method without a threshold. Raises ValueError."""
    ratios, taus = list(ratios), None if thresholds is None else list(thresholds)
    for ratio in ratios:
        if not 0 < ratio < 1:
            raise ValueError(f'retention to try must be in (0, 1), got {ratio}')
    for tau in taus or ():
        if not 0 <= tau <= 1:
            raise ValueError(f'a threshold to try must be in [0, 1], got {tau}')
    if not ratios or taus == []:
        raise ValueError('nothing to try; give at least one retention ratio and threshold')
    return tuple(Setting(ratio, tau) for ratio in ratios for tau in (taus or (None,)))


def sweep(
    policy: Policy,
    recordings: Mapping[str, Iterable[Observation]],
    layout: JointLayout,
    settings: Sequence[Setting],
    limits: Limits,
    horizon: int = 0,
    period_s: float = 0.0,
    deadline_ms: float = float('inf'),
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> tuple[tuple[Outcome, ...], tuple[Outcome, ...]]:
    """Every setting on every recording, which is gone through once for each; (their outcomes,
    those of the unpruned policy).

    Raises InstructionError when the policy knows no such instruction, ValueError when it cannot
    change its pruner.
    """
    found, unpruned = [], []
    # Not the method at retention 1: that answers the same, but takes its time for scoring.
    baseline = Lane(UNPRUNED, UNPRUNED, 1.0, policy.with_pruner(UNPRUNED))
    for name, observations in recordings.items():
        record = replay(observations, layout, [baseline], horizon, period_s)
        unpruned.append(_outcome(Setting(1.0), name, record, baseline, limits, deadline_ms))
        for setting in settings:
            policy.update_pruner(**setting.changes())
            lane = Lane(setting.name, '', setting.retention_ratio, policy)
            record = replay(observations, layout, [lane], horizon, period_s)
            outcome = _outcome(setting, name, record, baseline, limits, deadline_ms)
            found.append(outcome)
            on_outcome(outcome)
    return tuple(found), tuple(unpruned)


def _outcome(
    setting: Setting,
    recording: str,
    record: Replay,
    baseline: Lane,
    limits: Limits,
    deadline_ms: float,
) -> Outcome:
    compared = replace(record, lanes=(baseline, replace(record.lanes[-1])))
    numbers = evaluate_replay(compared, [], deadline_ms, limits)['methods'][1]
    del numbers['speedup']  # of two passes with minutes between them: no ratio
    pruned = numbers['pruned_share_mean']
    kept = 1.0 if pruned is None else 1.0 - pruned
    return Outcome(setting, recording, len(record.stamps_ns), kept, numbers)


def calibrate(outcomes: Sequence[Outcome], unpruned: Sequence[Outcome]) -> Calibration:
    """The proposal from all recordings, and for each the judgement by the others."""
    recordings = tuple(dict.fromkeys(outcome.recording for outcome in outcomes))
    judgements = []
    for held_out in recordings if len(recordings) > 1 else ():
        setting = choose([o for o in outcomes if o.recording != held_out])
        judged = unpruned if setting is None else [o for o in outcomes if o.setting == setting]
        outcome = next(o for o in judged if o.recording == held_out)
        judgements.append(Judgement(held_out, setting, outcome))
    return Calibration(tuple(outcomes), tuple(unpruned), choose(outcomes), tuple(judgements))


def choose(outcomes: Sequence[Outcome]) -> Setting | None:
    """The setting with the fewest tokens kept that keeps the limits on all recordings; among
    equals the one nearest to unpruned. None: there is none."""
    by_setting: dict[Setting, list[Outcome]] = {}
    for outcome in outcomes:
        by_setting.setdefault(outcome.setting, []).append(outcome)
    good = {
        setting: group
        for setting, group in by_setting.items()
        if all(outcome.keeps_limits for outcome in group)
    }
    if not good:
        return None
    return min(good, key=lambda setting: (kept_share(good[setting]), worst(good[setting], 'p99')))


def kept_share(outcomes: Sequence[Outcome]) -> float:
    """Over all policy steps of these recordings."""
    steps = sum(outcome.policy_steps for outcome in outcomes)
    return sum(o.kept_share * o.policy_steps for o in outcomes) / max(1, steps)


def worst(outcomes: Sequence[Outcome], statistic: str) -> float:
    """Largest deviation ('p50', 'p99', 'max') of arm joints [rad] over recordings; without a
    value infinite."""
    values = [outcome.numbers['deviation_rad'][statistic] for outcome in outcomes]
    return max(float('inf') if value is None else value for value in values)
