"""What no message tells: who else is on our topics. Asked of the ROS graph, from time to time.

A node that was killed stays in the graph until its lease ends (20 s with Fast DDS defaults), so
one that restarts may be seen twice for that long: the arms hold until it is seen once again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from rclpy.lifecycle import LifecycleNode

from safe_pruner_ros.ros.discovery import publishers_of
from safe_pruner_ros.ros.inputs import Inputs
from safe_pruner_ros.ros.publishers import CommandPublishers
from safe_pruner_ros.runtime.codes import Code, Reason

# With these nothing is sent, not even a hold; with the first until `~/resume`.
LATCHED = frozenset({Code.COMMAND_RIVAL, Code.COMMAND_UNSENT})
SILENCING = LATCHED | {Code.COMMAND_UNHEARD}


class GraphWatch:
    """``views``: cameras whose pictures count. For the executor thread.

    ``is_dry_run``: commands are previews, so who else sends or listens does not matter.
    """

    def __init__(
        self,
        node: LifecycleNode,
        commands: CommandPublishers,
        inputs: Inputs,
        views: Collection[str],
        is_dry_run: bool,
    ) -> None:
        self._node, self._commands, self._is_dry_run = node, commands, is_dry_run
        self._seen_rivals: dict[str, list[str]] = {}
        self._sources: dict[str, list[str]] = {}
        for kind, name, topic in inputs.sources:
            if kind != 'camera' or name in views:
                self._sources.setdefault(topic, []).append(f'{kind} {name!r}')

    def look(self) -> tuple[Reason, ...]:
        """Why the arms must hold now. A rival is remembered until `forget_rivals`."""
        rivals = self.rivals()
        self._seen_rivals = rivals or self._seen_rivals
        rival = _rival(self._seen_rivals, bool(rivals))
        outputs = [reason for reason in (rival, self._unheard()) if reason is not None]
        return (*outputs, *self.doubled_inputs())

    def rivals(self) -> dict[str, list[str]]:
        """Command topic -> other nodes that publish on it now."""
        return {} if self._is_dry_run else self._commands.rivals()

    def forget_rivals(self) -> None:
        self._seen_rivals = {}

    def _unheard(self) -> Reason | None:
        """Commands that nobody gets run ahead of an arm that stands still, and it would jump after
        them when its controller is back. Both arms wait: half a task is none."""
        deaf = [topic for topic, count in self._commands.listeners().items() if count == 0]
        if not deaf or self._is_dry_run:
            return None
        return Reason(
            Code.COMMAND_UNHEARD,
            f'nobody listens on {", ".join(deaf)}. Nothing is sent; start the controller of the '
            'robot, or correct the topics of its sinks',
        )

    def doubled_inputs(self) -> tuple[Reason, ...]:
        """One reason for each topic of cameras or joints with more publishers than it has sources.

        Pictures of two cameras under one name, or the zeros of a forgotten joint_state_publisher
        between the measured joints, pass every check of a single message. Drivers of two arms may
        share /joint_states: each has an entry of its own in state_sources.
        """
        found = []
        for topic, sources in self._sources.items():
            # Counting is cheap; who it is only matters when there are too many.
            count = self._node.count_publishers(topic)
            if count > len(sources):
                nodes = publishers_of(self._node, topic) or ['unknown'] * count
                found.append(_doubled(topic, sources, nodes))
        return tuple(reason for reason in found if reason is not None)


def _rival(seen: Mapping[str, list[str]], is_there: bool) -> Reason | None:
    """Latched: a teleoperation that crashed has left the arms where nobody expects them, and the
    operator who took over does not expect this node to go on by itself."""
    if not seen:
        return None
    if is_there:
        text = f'{describe_rivals(seen)}. Nothing is sent; stop it, then call ~/resume'
    else:
        text = (
            f'another node commanded the arms ({_listed(seen)}) and is gone. Nothing is sent; '
            'look where the arms are, then call ~/resume'
        )
    return Reason(Code.COMMAND_RIVAL, text)


def describe_rivals(rivals: Mapping[str, list[str]]) -> str:
    """Who else commands the robot."""
    return f'another node publishes commands on {_listed(rivals)}; two would fight over the arms'


def _listed(rivals: Mapping[str, list[str]]) -> str:
    return '; '.join(f'{topic} by {", ".join(nodes)}' for topic, nodes in rivals.items())


def _doubled(topic: str, sources: Sequence[str], nodes: Sequence[str]) -> Reason | None:
    if len(nodes) <= len(sources):
        return None  # it left between the two questions
    spare = 'all but one' if len(sources) == 1 else f'all but {len(sources)}'
    return Reason(
        Code.INPUT_DOUBLED,
        f'{" and ".join(sources)}: {topic} has {len(nodes)} publishers '
        f'({", ".join(nodes)}), and nobody can tell whose messages are true; stop '
        f'{spare}, or give them topics of their own',
    )
