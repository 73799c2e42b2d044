"""What the node adds between a picture and a command, from the time stamps of messages.

Inputs are wall-clock times at which messages left their writers, in ns. No ROS in here.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class MessageTimes:
    """``pictures``: capture stamp -> when the last view of that moment was sent. ``chunks``:
    (capture stamp answered, when sent). ``commands``: when sent. ``policy_ms``: time in the
    policy, by capture stamp."""

    pictures: dict[int, int] = field(default_factory=dict)
    chunks: list[tuple[int, int]] = field(default_factory=list)
    commands: list[int] = field(default_factory=list)
    policy_ms: dict[int, float] = field(default_factory=dict)


def node_timing(times: MessageTimes) -> dict[str, Any]:
    """Distributions in ms.

    ``picture_to_chunk``: picture sent -> actions sent, policy included. ``node_overhead``: the
    same without the time in the policy. ``picture_to_command``: picture sent -> first command
    after its actions, which waits for the next control tick. ``command_period``.
    """
    commands = sorted(times.commands)
    chunk_ms, overhead_ms, command_ms = [], [], []
    for stamp_ns, sent_ns in times.chunks:
        picture_ns = times.pictures.get(stamp_ns)
        if picture_ns is None:
            continue
        chunk_ms.append((sent_ns - picture_ns) * 1e-6)
        overhead_ms.append(chunk_ms[-1] - times.policy_ms.get(stamp_ns, math.nan))
        following = bisect_right(commands, sent_ns)
        if following < len(commands):
            command_ms.append((commands[following] - picture_ns) * 1e-6)
    return {
        'picture_to_chunk_ms': distribution(chunk_ms),
        'node_overhead_ms': distribution(overhead_ms),
        'picture_to_command_ms': distribution(command_ms),
        'command_period_ms': distribution(np.diff(commands) * 1e-6),
    }


def distribution(values: Sequence[float]) -> dict[str, float | int | None]:
    """{'n', 'p50', 'p90', 'p99', 'max'} of the finite values."""
    finite = [float(value) for value in values if math.isfinite(value)]
    if not finite:
        return {'n': 0, 'p50': None, 'p90': None, 'p99': None, 'max': None}
    points = np.percentile(finite, (50, 90, 99, 100))
    named = zip(('p50', 'p90', 'p99', 'max'), (round(float(p), 3) for p in points), strict=True)
    return {'n': len(finite), **dict(named)}


def markdown_table(passes: Mapping[str, Mapping[str, Any]]) -> str:
    """One row a pass and quantity."""
    names = {
        'node_overhead_ms': 'picture sent to actions sent, policy time taken out',
        'picture_to_chunk_ms': 'picture sent to actions sent',
        'picture_to_command_ms': 'picture sent to first command',
        'command_period_ms': 'between two commands',
    }
    rows = [
        '| pass | ms | n | p50 | p90 | p99 | max |',
        '| --- | --- | ---: | ---: | ---: | ---: | ---: |',
    ]
    for title, found in passes.items():
        for key, text in names.items():
            values = found['timing'][key]
            shown = ' | '.join(
                '' if values[name] is None else f'{values[name]:.2f}'
                for name in ('p50', 'p90', 'p99', 'max')
            )
            rows.append(f'| {title} | {text} | {values["n"]} | {shown} |')
    ratios = ', '.join(
        f'{title}: {found["image_receive_ratio"]:.1%}'
        for title, found in passes.items()
        if found['image_receive_ratio'] is not None
    )
    return '\n'.join(rows) + f'\n\nPictures received / sent (worst view): {ratios}.\n'
