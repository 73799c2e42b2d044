"""Is a policy step fast enough for its chunks? Arithmetic of what the node does with them.

    picture ...age... step begins ...step... chunk arrives
    |<---- action k of the chunk is due (k + 1) * period after the picture ---->|

What is due before the chunk arrives is skipped (`action_buffer.py`). The next step begins when
``horizon`` actions are over (`inference_worker.py`); the rest of the chunk is what the arms live
on while it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from safe_pruner_ros.runtime.config import Config
from safe_pruner_ros.runtime.finding import Finding

# Where nobody measured it: a camera at 30 Hz whose driver copies and stamps at once.
ASSUMED_PICTURE_AGE_S = 0.05


@dataclass(frozen=True)
class ChunkTiming:
    """``size`` actions ``period_s`` apart, of which ``horizon`` are executed; no action is sent
    later than ``max_age_s`` after its picture."""

    size: int
    horizon: int
    period_s: float
    max_age_s: float = float('inf')

    @classmethod
    def of(cls, config: Config, size: int, horizon: int, period_s: float) -> ChunkTiming:
        """What a policy says (all three), as ``config`` has it executed."""
        policy = config.policy
        return cls(
            size,
            min(policy.execution_horizon or horizon, size),
            policy.period_s or period_s,
            config.runtime.actions.max_action_age_s,
        )

    @property
    def end_s(self) -> float:
        """When the last action that is sent is due, after the picture."""
        return min(self.size * self.period_s, self.max_age_s)

    @property
    def executed_s(self) -> float:
        """When the next policy step begins, after the picture."""
        return self.horizon * self.period_s

    @property
    def spare_s(self) -> float:
        """What is left of the actions when the next policy step begins; never below 0."""
        return max(0.0, self.end_s - self.executed_s)


def timing_findings(
    chunk: ChunkTiming, picture_age_s: float | None = None, step_s: float | None = None
) -> Iterator[Finding]:
    """What the arms will feel. ``picture_age_s``: of a picture when it arrives, ``step_s``: of a
    policy step; None: not measured."""
    age_s = ASSUMED_PICTURE_AGE_S if picture_age_s is None else picture_age_s
    age = f'pictures {age_s:.3g} s old{" (assumed)" if picture_age_s is None else ""}'
    actions = f'{chunk.horizon} of {chunk.size} actions, {chunk.period_s:g} s apart'
    late_s = chunk.end_s - age_s
    if chunk.horizon == chunk.size:
        more = ', set policy.execution_horizon below that' if chunk.size > 1 else ''
        yield Finding(
            'note',
            'timing',
            f'execution_horizon is the whole chunk ({actions}): the arms wait one policy step '
            f'after every chunk{more}; with {age} a chunk is late, and not used, when the step '
            f'takes more than {max(0.0, late_s):.3g} s',
        )
    elif step_s is None:
        yield Finding(
            'ok',
            'timing',
            f'a policy step every {chunk.executed_s:.3g} s ({actions}); the arms wait when it '
            f'takes more than {chunk.spare_s:.3g} s; with {age} a chunk is late, and not used, '
            f'from {max(0.0, late_s):.3g} s on',
        )
    if step_s is not None:
        yield _judge(chunk, age_s, age, step_s)


def _judge(chunk: ChunkTiming, age_s: float, age: str, step_s: float) -> Finding:
    step = f'a policy step takes {step_s:.3g} s here'
    faster = 'use a faster device or a smaller retention_ratio'
    late_s = age_s + step_s - chunk.end_s
    if late_s > 0:
        return Finding(
            'problem',
            'timing',
            f'{step}: with {age} every chunk of {chunk.end_s:.3g} s is late by {late_s:.3g} s and '
            f'the arms never move; {faster}, or a longer policy.period_s (slow motion)',
        )
    wait_s = step_s - chunk.spare_s
    if wait_s > 0:
        lower = ', or a lower policy.execution_horizon' if chunk.horizon > 1 else ''
        return Finding(
            'note',
            'timing',
            f'{step} and {chunk.spare_s:.3g} s of actions are left when it begins: the arms wait '
            f'{wait_s:.3g} s after every chunk; {faster}{lower}',
        )
    behind_s = age_s + step_s - chunk.executed_s
    if behind_s > 0:
        return Finding(
            'note',
            'timing',
            f'{step}: with {age} a chunk arrives {behind_s:.3g} s after its '
            f'{chunk.executed_s:.3g} s were meant to be over, so the policy runs without a pause '
            f'and the arms follow older actions than planned; {faster}, or a higher '
            'policy.execution_horizon',
        )
    return Finding(
        'ok',
        'timing',
        f'{step}: with {age} a chunk arrives {age_s + step_s:.3g} s into the '
        f'{chunk.executed_s:.3g} s that are executed of it',
    )
