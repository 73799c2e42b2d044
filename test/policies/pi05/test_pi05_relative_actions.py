"""lerobot's relative actions: every joint has the semantics of its training, or is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safe_pruner_ros.policies.action_layout import ActionDimension, ActionLayout
from safe_pruner_ros.policies.deployment import Deployment
from safe_pruner_ros.policies.pi05.files import Pi05Files
from safe_pruner_ros.policies.pi05.relative_actions import relative_mask

NAMES = ['Waist.pos', 'Gripper.pos', 'elbow.pos']
JOINTS = ('waist', 'grip', 'elbow')
EXCLUDE = {'action_feature_names': NAMES, 'relative_exclude_joints': ['gripper']}


def check(folder: Path, relative: tuple[str, ...], config: dict[str, Any]) -> str:
    """The deployment check of a lerobot folder, ``relative`` counting from the state."""
    values = {'type': 'pi05', 'chunk_size': 3, 'use_relative_actions': True, **config}
    (folder / 'config.json').write_text(json.dumps(values))
    dimensions = tuple(
        ActionDimension(joint, 'delta_from_state' if joint in relative else 'absolute')
        for joint in JOINTS
    )
    robot = Deployment(('head',), ActionLayout(dimensions), '', 0.05, 2, prompt='state')
    return Pi05Files(folder, robot).check_deployment()


def test_the_exact_joints_are_accepted(tmp_path):
    check(tmp_path, ('waist', 'elbow'), EXCLUDE)
    check(tmp_path, JOINTS, {**EXCLUDE, 'relative_exclude_joints': []})
    check(tmp_path, ('waist', 'elbow'), {'action_feature_names': NAMES})  # lerobot's own default


def test_a_relative_joint_left_absolute_is_refused_by_name(tmp_path):
    """One relative joint among two used to be enough; the other drove to its zero."""
    with pytest.raises(ValueError, match=r"\['elbow'\] differ.*give \['elbow'\].*'delta_from_st"):
        check(tmp_path, ('waist',), EXCLUDE)
    with pytest.raises(ValueError, match=r"config\.json has use_rel.*\['waist', 'elbow'\] differ"):
        check(tmp_path, (), EXCLUDE)


def test_an_excluded_joint_taken_as_relative_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"\['grip'\] differ.*give \['grip'\].*'absolute'"):
        check(tmp_path, JOINTS, EXCLUDE)
    with pytest.raises(ValueError, match=r"give \['elbow'\] .* and give \['grip'\] the"):
        check(tmp_path, ('waist', 'grip'), EXCLUDE)


def test_without_names_the_gripper_is_relative_too(tmp_path):
    nameless = {'action_feature_names': None, 'relative_exclude_joints': ['gripper']}
    check(tmp_path, JOINTS, nameless)
    with pytest.raises(ValueError, match=r"give \['grip'\] the semantics 'delta_from_state'"):
        check(tmp_path, ('waist', 'elbow'), nameless)


def test_names_of_another_number(tmp_path):
    """As lerobot: what has no name is relative, names too many are cut."""
    group = {'action_feature_names': ['motors']}  # a data set that names its group of motors only
    check(tmp_path, JOINTS, group)
    with pytest.raises(ValueError, match=r"\['motors'\]; the semantics of \['grip'\]"):
        check(tmp_path, ('waist', 'elbow'), group)
    check(tmp_path, ('waist', 'elbow'), {'action_feature_names': [*NAMES, 'gripper']})


def test_the_mask_by_hand():
    names = ['a', 'GRIPPER', 'b_gripper_c', 'gripp']
    mask = relative_mask({'action_feature_names': names}, 5)
    assert mask == [True, False, False, True, True]
    tokens = {'action_feature_names': names, 'relative_exclude_joints': ['', 'A']}
    assert relative_mask(tokens, 4) == [False, True, True, True]
    assert relative_mask({**tokens, 'relative_exclude_joints': ['']}, 4) == [True] * 4
    assert relative_mask({**tokens, 'relative_exclude_joints': None}, 4) == [True] * 4


def test_other_checkpoints_are_not_asked(tmp_path):
    for relative in ((), ('waist',), JOINTS):
        check(tmp_path, relative, {**EXCLUDE, 'use_relative_actions': False})
