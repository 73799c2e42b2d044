"""How many tokens a running policy may keep: as many as the latency budget allows, and more where
the shadow audit found that pruning changes the actions too much.

Ratios come from ``BUCKETS``, so that shapes (and captured GPU graphs) stay few. A change of ratio
costs one key timestep, therefore the hysteresis: it goes down as soon as the budget is missed, up
only when the next bucket is predicted to fit with room to spare.

Key timesteps run unpruned: no ratio makes them faster. The budget is held by the pruned steps, and
key timesteps that exceed it are named instead of being answered with ever fewer tokens.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass

import numpy as np

from safe_pruner_ros.runtime.config import AuditConfig, RetentionConfig

BUCKETS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)
PERCENTILE = 95.0
MIN_STEPS = 10  # fewer say nothing about a 95th percentile


@dataclass(frozen=True)
class RetentionState:
    """``ratio`` in force and why; ``warning`` is not empty when a promise cannot be kept."""

    ratio: float
    reason: str
    warning: str = ''


class RetentionController:
    """Fed by the worker thread after every policy step and every audit; readable from others.
    ``lock``: to be held from a change here until the policy has it, by whoever makes one, or the
    ratio that is reported may be another than the one in force."""

    def __init__(
        self, config: RetentionConfig, audit: AuditConfig, retention_ratio: float
    ) -> None:
        self.lock = threading.Lock()
        self._config, self._audit = config, audit
        self._pruned: deque[float] = deque(maxlen=config.window_steps)
        self._full: deque[float] = deque(maxlen=config.window_steps)
        self.set_base(retention_ratio)

    @property
    def state(self) -> RetentionState:
        return self._state

    def set_base(self, retention_ratio: float) -> None:
        """The user's ratio: in force until budget or audit ask for another one."""
        self._base, self._floor = retention_ratio, 0.0
        self._clean_audits = 0
        self._pruned.clear()
        self._full.clear()
        self._state = RetentionState(retention_ratio, 'as configured')

    def note_step(self, latency_ms: float, is_key_timestep: bool) -> float | None:
        """A finished policy step; the new ratio if it has to change, else None."""
        if not math.isfinite(latency_ms) or not self._config.latency_budget_ms:
            return None
        (self._full if is_key_timestep else self._pruned).append(latency_ms)
        if len(self._pruned) < MIN_STEPS:
            return None
        ratio, reason = self._wanted()
        return self._change(ratio, reason)

    def note_audit(self, deviation_rad: float) -> float | None:
        """Deviation of pruned from unpruned actions; the new ratio if it has to change."""
        limit = self._audit.max_deviation_rad
        if not limit:
            return None
        current = self._state.ratio
        if not deviation_rad <= limit:  # NaN is no agreement either
            self._clean_audits = 0
            self._floor = _above(current)
            return self._change(
                max(self._floor, current),
                f'an audit found {deviation_rad:.3f} rad between pruned and unpruned actions '
                f'(limit {limit:g})',
            )
        self._clean_audits += 1
        if self._floor and self._clean_audits >= self._audit.clean_audits:
            self._clean_audits = 0
            lower = _below(self._floor)
            self._floor = lower if lower > self._base else 0.0
            ratio = max(self._floor, self._base)
            if ratio < current and not self._config.latency_budget_ms:
                text = f'{self._audit.clean_audits} audits in a row were within {limit:g} rad'
                return self._change(ratio, text)
        return None

    def _change(self, ratio: float, reason: str) -> float | None:
        warning = self._warning(ratio)
        if ratio == self._state.ratio:
            if warning != self._state.warning:
                self._state = RetentionState(ratio, self._state.reason, warning)
            return None
        self._state = RetentionState(ratio, reason, warning)
        self._pruned.clear()
        return ratio

    def _wanted(self) -> tuple[float, str]:
        """The bucket for the latencies seen, and why."""
        config, current = self._config, self._state.ratio
        budget = config.latency_budget_ms
        p95 = _p95(self._pruned)
        allowed = [b for b in BUCKETS if max(config.min_ratio, self._floor) <= b]
        if p95 > budget:
            fitting = [b for b in allowed if b < current and self._predicted(b) <= budget]
            lower = [b for b in allowed if b < current]
            ratio = fitting[-1] if fitting else (lower[0] if lower else current)
            return ratio, f'p95 of pruned steps was {p95:.0f} ms, the budget is {budget:g} ms'
        above = [b for b in allowed if b > current]
        if above and len(self._pruned) == self._pruned.maxlen:
            predicted = self._predicted(above[0])
            if predicted <= config.headroom * budget:
                return above[0], (
                    f'{predicted:.0f} ms expected with more tokens, the budget is {budget:g} ms'
                )
        return current, self._state.reason

    def _predicted(self, ratio: float) -> float:
        """p95 of pruned steps at ``ratio``: linear between what pruned and full steps took (the
        layers behind the cut are linear in the tokens, the rest does not depend on them). Without
        a full step in sight: in proportion to the ratio, which overrates what more tokens cost."""
        current, pruned = self._state.ratio, _p95(self._pruned)
        if not self._full or current >= 1.0:
            return pruned * ratio / current
        slope = max(0.0, _p95(self._full) - pruned) / (1.0 - current)
        return pruned + slope * (ratio - current)

    def _warning(self, ratio: float) -> str:
        config = self._config
        budget = config.latency_budget_ms
        if not budget or len(self._pruned) < MIN_STEPS:
            return ''
        p95 = _p95(self._pruned)
        if p95 > budget and ratio == self._state.ratio:
            cause = (
                'the audit asks for this many tokens'
                if self._floor and ratio <= self._floor
                else 'fewer tokens are not allowed (runtime.retention.min_ratio)'
            )
            return (
                f'pruned steps take {p95:.0f} ms (p95), the budget is {budget:g} ms, and {cause}; '
                'use a faster device or a larger budget'
            )
        if self._full and _p95(self._full) > budget:
            return (
                f'key timesteps take {_p95(self._full):.0f} ms (p95), the budget is '
                f'{budget:g} ms: pruning cannot change that. Use a faster device or a larger one'
            )
        return ''


def _p95(values: deque[float]) -> float:
    return float(np.percentile(list(values), PERCENTILE))


def _above(ratio: float) -> float:
    return next((bucket for bucket in BUCKETS if bucket > ratio), 1.0)


def _below(ratio: float) -> float:
    return next((bucket for bucket in reversed(BUCKETS) if bucket < ratio), BUCKETS[0])
