"""The share of pictures that the node received, from two counts that do not arrive together."""

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
