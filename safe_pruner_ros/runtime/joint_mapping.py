"""Joint values of one message <-> joints of the configuration, by name. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from safe_pruner_ros.runtime.codes import Code, Reason
from safe_pruner_ros.runtime.config import SinkConfig, StateSourceConfig
from safe_pruner_ros.types import FloatArray, JointCommand


class StateError(ValueError):
    """A state message that must not be used; ``reason`` has the code."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.reason = Reason(code, text)


def state_values(
    source: StateSourceConfig, names: Sequence[str], positions: Sequence[float]
) -> dict[str, float]:
    """Message -> {joint: model value}; extra names are ignored, order does not matter.

    Raises StateError: lengths differ, a needed name is missing or repeated, NaN or Inf, no names
    although the source is not ``positional``, other names than the configured ones although it is.
    """
    where = f'state source {source.name!r} ({source.topic})'
    if source.positional:
        expected = [mapping.robot_name for mapping in source.joints]
        if any(names) and list(names) != expected:
            raise StateError(
                Code.STATE_NAMES,
                f'{where}: positional is true, for messages without names, but these carry '
                f'{_short(names)} and the joints of the robot file are {_short(expected)}; take '
                f'positional out and give each joint its `name`',
            )
        names = expected
    if len(names) != len(positions):
        raise StateError(
            Code.STATE_SIZE,
            f'{where}: {len(positions)} positions for {len(names)} names; '
            + (
                'positional: true needs exactly the configured joints'
                if source.positional
                else 'if the driver sends no names, set positional: true for this source'
            ),
        )
    needed = [mapping.robot_name for mapping in source.joints]
    values = dict(zip(names, positions, strict=True))
    if missing := [name for name in needed if name not in values]:
        raise StateError(
            Code.STATE_NAMES,
            f'{where}: joints {missing} are missing, the message has {_short(sorted(values))}; '
            f'correct the driver or the name of these joints in the robot file',
        )
    if len(values) != len(names):
        repeated = sorted({n for n in needed if list(names).count(n) > 1})
        if repeated:
            raise StateError(
                Code.STATE_NAMES,
                f'{where}: joints {repeated} appear more than once; two drivers may share a name',
            )
    if bad := [name for name in needed if not math.isfinite(values[name])]:
        raise StateError(
            Code.STATE_NONFINITE,
            f'{where}: {bad} are not finite ({[float(values[n]) for n in bad]}); '
            f'check the encoder or the driver',
        )
    result = {m.joint: m.to_model(float(values[m.robot_name])) for m in source.joints}
    if bad := [joint for joint, value in result.items() if not math.isfinite(value)]:
        raise StateError(
            Code.STATE_NONFINITE, f'{where}: {bad} overflow when scaled; check scale and driver'
        )
    return result


def recipients(
    sources: Sequence[StateSourceConfig], names: Sequence[str]
) -> Sequence[StateSourceConfig]:
    """Those of the ``sources`` on one topic that a message with ``names`` is for: all that have a
    joint in it. The message of the other arm's driver is no mistake of this arm's.

    With nobody's joints it is for all of them: a name is wrong then, and their refusal tells it.
    """
    if len(sources) == 1:
        return sources
    given = set(names)
    known = [
        source
        for source in sources
        if source.positional or any(mapping.robot_name in given for mapping in source.joints)
    ]
    return known or sources


def sink_values(sink: SinkConfig, command: JointCommand) -> tuple[tuple[str, ...], FloatArray]:
    """Command -> (robot names, values [n] in robot units) of one sink, in its order."""
    by_name = dict(zip(command.joint_names, command.positions.tolist(), strict=True))
    names = tuple(mapping.robot_name for mapping in sink.joints)
    return names, np.array([m.to_robot(by_name[m.joint]) for m in sink.joints])


def _short(names: Sequence[str], limit: int = 20) -> str:
    shown = [str(name)[:60] for name in names[:limit]]
    return f'{shown}{f" and {len(names) - limit} more" if len(names) > limit else ""}'
