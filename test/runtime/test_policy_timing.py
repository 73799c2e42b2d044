"""What preflight says of chunks is what the action buffer does with them."""

from __future__ import annotations

import numpy as np
import pytest

from safe_pruner_ros.runtime.action_buffer import ActionBuffer
from safe_pruner_ros.runtime.codes import Code
from safe_pruner_ros.runtime.config import ActionConfig, PolicyConfig
from safe_pruner_ros.runtime.policy_timing import ChunkTiming, timing_findings
from safe_pruner_ros.types import ActionChunk

OFT = ChunkTiming(25, 15, 0.04)
ONE = ChunkTiming(1, 1, 0.2)


def said(chunk: ChunkTiming, age_s: float | None = None, step_s: float | None = None) -> list[str]:
    return [str(finding) for finding in timing_findings(chunk, age_s, step_s)]


def test_room_there_is_without_a_measurement() -> None:
    (line,) = said(OFT)
    assert line.startswith('OK       timing: a policy step every 0.6 s (15 of 25 actions, 0.04 s')
    assert 'when it takes more than 0.4 s' in line
    assert 'pictures 0.05 s old (assumed) a chunk is late, and not used, from 0.95 s on' in line
    (line,) = said(ChunkTiming(25, 25, 0.04))
    assert line.startswith('NOTE     timing: execution_horizon is the whole chunk (25 of 25')
    assert 'wait one policy step after every chunk, set policy.execution_horizon below' in line
    (line,) = said(ONE)
    assert 'when the step takes more than 0.15 s' in line and 'below' not in line


@pytest.mark.parametrize(
    ('chunk', 'age_s', 'step_s', 'start', 'words'),
    [
        (OFT, 0.1, 0.3, 'OK', 'arrives 0.4 s into the 0.6 s that are executed'),
        (OFT, 0.3, 0.35, 'NOTE', 'arrives 0.05 s after its 0.6 s were meant to be over'),
        (OFT, 0.05, 0.5, 'NOTE', 'the arms wait 0.1 s after every chunk'),
        (OFT, 0.05, 1.0, 'PROBLEM', 'every chunk of 1 s is late by 0.05 s and the arms never'),
        (ONE, 0.05, 0.16, 'PROBLEM', 'late by 0.01 s'),
        (ONE, 0.05, 0.14, 'NOTE', 'the arms wait 0.14 s after every chunk'),
        # Too old to be sent before the chunk is over.
        (ChunkTiming(16, 4, 0.2, 1.5), 0.1, 1.45, 'PROBLEM', 'every chunk of 1.5 s is late'),
    ],
)
def test_what_a_measured_step_means(chunk, age_s, step_s, start, words) -> None:
    line = said(chunk, age_s, step_s)[-1]
    assert line.startswith(start) and words in line and '(assumed)' not in line


@pytest.mark.parametrize('step_s', [0.05, 0.14, 0.16, 0.3])
@pytest.mark.parametrize('chunk', [ONE, ChunkTiming(2, 1, 0.1)])
def test_late_means_that_the_buffer_refuses(kit, chunk, step_s) -> None:
    """Whoever is told that every chunk is late gets ACTION_LATE, and nobody else."""
    layout = kit.robot().layout
    buffer = ActionBuffer(layout, ActionConfig(), 20_000_000)
    rows = np.zeros((chunk.size, len(layout)))
    made = ActionChunk(rows, layout.names, kit.T0, round(chunk.period_s * 1e9))
    reason = buffer.push(made, kit.T0 + round((0.05 + step_s) * 1e9))
    is_late = reason is not None and reason.code is Code.ACTION_LATE
    assert is_late == said(chunk, 0.05, step_s)[-1].startswith('PROBLEM')


def test_the_configuration_counts(kit) -> None:
    from dataclasses import replace

    slow = replace(kit.config(), policy=PolicyConfig(execution_horizon=3, period_s=0.4))
    assert ChunkTiming.of(slow, 8, 4, 0.1) == ChunkTiming(8, 3, 0.4, 1.5)
    assert ChunkTiming.of(kit.config(), 8, 4, 0.1) == ChunkTiming(8, 4, 0.1, 1.5)
