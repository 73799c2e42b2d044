"""Rows 21 to 25: joint messages by name, or refused with the names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safe_pruner_ros.runtime.codes import Code
from safe_pruner_ros.runtime.joint_mapping import (
    StateError,
    recipients,
    sink_values,
    state_values,
)
from safe_pruner_ros.types import JointCommand

GOOD = {'left_1': 0.1, 'left_2': -0.2, 'left_grip': 40.0}


def refused(source, names, positions):
    with pytest.raises(StateError) as error:
        state_values(source, names, positions)
    return error.value.reason


@given(order=st.permutations(list(GOOD)), extra=st.lists(st.sampled_from(['torso', 'wheel'])))
def test_order_and_extra_names_do_not_matter(kit, order, extra):
    source = kit.robot().state_sources[0]
    names = extra + order
    positions = [9.0] * len(extra) + [GOOD[name] for name in order]
    values = state_values(source, names, positions)
    assert values == pytest.approx({'left_1': 0.1, 'left_2': -0.2, 'left_grip': 0.4})


def test_missing_renamed_repeated(kit):
    source = kit.robot().state_sources[0]
    reason = refused(source, ['left_1', 'left_two', 'left_grip'], [0.1, 0.2, 4.0])
    assert reason.code is Code.STATE_NAMES
    assert "['left_2'] are missing" in reason.text and 'left_two' in reason.text
    reason = refused(source, ['left_1', 'left_1', 'left_2', 'left_grip'], [0.1, 0.3, 0.2, 4.0])
    assert reason.code is Code.STATE_NAMES and "['left_1'] appear more than once" in reason.text


def test_sizes(kit):
    source = kit.robot().state_sources[0]
    assert refused(source, list(GOOD), [0.1, 0.2]).code is Code.STATE_SIZE
    assert 'positional' in refused(source, [], [0.1, 0.2, 0.3]).text
    assert refused(source, [], []).code is Code.STATE_NAMES
    by_place = replace(source, positional=True)
    assert state_values(by_place, [], [0.1, -0.2, 40.0])['left_grip'] == pytest.approx(0.4)
    assert refused(by_place, [], [0.1, 0.2]).code is Code.STATE_SIZE


def test_names_are_not_ignored_where_values_are_taken_by_place(kit):
    by_place = replace(kit.robot().state_sources[0], positional=True)
    values = [0.1, -0.2, 40.0]
    by_name = state_values(by_place, list(GOOD), values)
    assert (
        by_name == state_values(by_place, [], values) == state_values(by_place, [''] * 3, values)
    )
    for others in (list(GOOD)[::-1], ['j1', 'j2', 'j3'], ['left_1', '', ''], list(GOOD)[:2]):
        reason = refused(by_place, others, values)
        assert reason.code is Code.STATE_NAMES and 'take positional out' in reason.text


def test_who_a_message_on_a_shared_topic_is_for(kit):
    left, right = sources = kit.robot().state_sources
    assert recipients(sources, ['torso', 'left_2', 'left_1', 'left_grip']) == [left]
    assert recipients(sources, [m.robot_name for m in right.joints]) == [right]
    assert recipients(sources, ['right_1', *GOOD]) == [left, right], 'one driver of both arms'
    assert recipients(sources, ['left_1']) == [left], 'which refuses it: some of its joints'
    for nobodys in (['left_one', 'left_two'], []):
        assert recipients(sources, nobodys) == sources, 'somebody must say that a name is wrong'
    assert recipients([left], ['right_1']) == [left]
    by_place = replace(right, positional=True)
    assert recipients([left, by_place], list(GOOD)) == [left, by_place]


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
def test_not_finite(kit, bad):
    source = kit.robot().state_sources[0]
    reason = refused(source, list(GOOD), [0.1, bad, 40.0])
    assert reason.code is Code.STATE_NONFINITE and 'left_2' in reason.text


def test_denormal_is_fine_and_overflow_is_not(kit):
    source = kit.robot().state_sources[0]
    assert state_values(source, list(GOOD), [5e-324, 0.0, 5e-324])['left_1'] == 5e-324
    tiny = replace(source, joints=(replace(source.joints[0], scale=1e-10), *source.joints[1:]))
    assert refused(tiny, list(GOOD), [1e300, 0.0, 0.0]).code is Code.STATE_NONFINITE


def test_sink_values_in_robot_units_and_order(kit):
    robot = kit.robot()
    command = JointCommand(np.arange(6) / 10, kit.JOINTS, 0)
    shuffled = JointCommand(command.positions[::-1], kit.JOINTS[::-1], 0)
    for given_command in (command, shuffled):
        names, values = sink_values(robot.sinks[1], given_command)
        assert names == kit.RIGHT
        assert values.tolist() == pytest.approx([0.3, 0.4, 50.0])
