"""What the data types of all packages promise."""

from __future__ import annotations

import numpy as np
import pytest

from safe_pruner_ros.types import ArmState


def test_measured_joints_come_in_the_order_asked_for() -> None:
    state = ArmState(np.array([0.1, 0.2, 0.3]), ('a', 'b', 'c'), 7)
    assert state.ordered(('c', 'a')).tolist() == [0.3, 0.1]
    assert state.ordered(['a', 'b', 'c']).tolist() == [0.1, 0.2, 0.3]
    with pytest.raises(ValueError, match=r"no measured position of \['d'\]; measured: \['a', 'b'"):
        state.ordered(('a', 'd'))


def test_measured_joints_are_finite_and_named() -> None:
    with pytest.raises(ValueError, match=r"must be \[2\] for \['a', 'b'\], got \[3\]"):
        ArmState(np.zeros(3), ('a', 'b'), 7)
    with pytest.raises(ValueError, match='non-finite'):
        ArmState(np.array([0.0, np.nan]), ('a', 'b'), 7)
