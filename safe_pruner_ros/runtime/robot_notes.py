"""What is allowed in a robot file, and right for few robots."""

from __future__ import annotations

from collections.abc import Iterator

from safe_pruner_ros.runtime.config import JointMapping, RobotConfig


def robot_notes(robot: RobotConfig) -> Iterator[str]:
    """One sentence each, for preflight and the log."""
    if robot.simulated:
        yield (
            'simulated: true says that nothing real moves: the shipped weights may command it. '
            'Take it out of the file of a real robot'
        )
    read = {m.joint: m for source in robot.state_sources for m in source.joints}
    for sent in (m for sink in robot.sinks for m in sink.joints):
        how = {kind: _conversion(m) for kind, m in (('read', read[sent.joint]), ('sent', sent))}
        if how['read'] != how['sent']:
            yield (
                f'{sent.joint!r} is read with {how["read"]} and commanded with {how["sent"]}. '
                'Unless its two topics differ just so, the first command is a jump that no limit '
                'sees: send one small command by hand first (docs/bringup.md, step 5)'
            )


def _conversion(mapping: JointMapping) -> str:
    turned = ', invert' if mapping.invert else ''
    return f'scale {mapping.scale:g}, offset {mapping.offset:g}{turned}'
