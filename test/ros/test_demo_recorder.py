"""What the demo makes of counts that arrive one by one and from several sides."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.ros


def test_only_what_both_have_counted_is_compared() -> None:
    from safe_pruner_ros.ros.demo.recorder import ReceiveCount

    count = ReceiveCount()
    count.node_has(480)  # before the first picture: how many were sent is not known yet
    count.sent = 500
    count.node_has(490)
    count.sent = 600
    count.node_has(589)
    assert count.total == 100 and count.ratio() == 0.99


def test_ticks_of_the_guard_are_read_from_its_line() -> None:
    from safe_pruner_ros.ros import diagnostics
    from safe_pruner_ros.ros.demo.recorder import DemoRecorder

    recorder = object.__new__(DemoRecorder)  # without a node: this method needs none
    line = diagnostics.Check(
        'guard', diagnostics.OK, '', {'pass': 30, 'clamp': 2, 'SOFT_START': 2}
    )
    recorder._on_diagnostics(diagnostics.to_message([line], 'sim', 1))
    assert recorder._guard == {'pass': 30, 'clamp': 2, 'SOFT_START': 2}
