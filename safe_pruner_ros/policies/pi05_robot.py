"""What a pi0.5 checkpoint does not say about itself: cameras, joints, prompt, timing.

Neither official layout names joints or cameras of a robot, says whether actions are targets or
differences, or which prompt the weights know. This is said once per fine-tune, in
``safe_pruner_ros.json`` inside the checkpoint folder::

    {"views": {"base_0_rgb": "head", "left_wrist_0_rgb": "left_wrist", "right_wrist_0_rgb": ""},
     "joints": [{"name": "arm_joint_1", "mode": "delta"},
                {"name": "gripper", "gripper": true, "scale": -1, "offset": 1}],
     "prompt": "state", "period_s": 0.02, "execution_horizon": 25}

Joints stand in the checkpoint's order. A slot mapped to "" has no camera and is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from safe_pruner_ros.policies.pi05_prompt import PROMPT_FORMS, PromptForm

FloatArray = npt.NDArray[np.float64]

FILE_NAME = 'safe_pruner_ros.json'
# The slots pi0.5 was trained with, in the order of its input (openpi `models/model.py`).
SLOTS = ('base_0_rgb', 'left_wrist_0_rgb', 'right_wrist_0_rgb')


@dataclass(frozen=True)
class JointMapping:
    """One action value and one robot joint: robot = ``scale`` * checkpoint + ``offset``.

    The robot's unit is rad, or closed fraction for a ``gripper``. ``mode`` 'delta': the checkpoint
    gives the difference to where the joint was when the chunk was computed, the same start for
    all rows (openpi `transforms.py`, AbsoluteActions).
    """

    name: str
    mode: Literal['absolute', 'delta'] = 'absolute'
    scale: float = 1.0
    offset: float = 0.0
    gripper: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ('absolute', 'delta'):
            raise ValueError(
                f"joint {self.name!r}: mode must be 'absolute' or 'delta', got {self.mode!r}"
            )
        if not (math.isfinite(self.scale) and math.isfinite(self.offset) and self.scale):
            raise ValueError(
                f'joint {self.name!r}: scale and offset must be finite and scale not 0, '
                f'got {self.scale} and {self.offset}'
            )


@dataclass(frozen=True)
class Pi05Robot:
    """``views``: slot of the checkpoint -> view name of the robot, or '' for no camera.

    ``statistics``: asset id, where openpi's assets hold several. ``prompt_state_dim``: the state
    form pads the state with zeros to so many values (lerobot did, to 32, in its first releases).
    """

    views: Mapping[str, str]
    joints: tuple[JointMapping, ...]
    prompt: PromptForm
    period_s: float
    execution_horizon: int
    statistics: str = ''
    prompt_state_dim: int = 0
    max_prompt_tokens: int = 200

    def __post_init__(self) -> None:
        if self.prompt not in PROMPT_FORMS:
            raise ValueError(f'prompt must be one of {PROMPT_FORMS}, got {self.prompt!r}')
        unknown = sorted(set(self.views) - set(SLOTS))
        if unknown:
            raise ValueError(f'views {unknown} are no camera slots of pi0.5; it has {SLOTS}')
        used = self.view_names
        if not used or len(set(used)) != len(used):
            raise ValueError(
                f'views must name at least one camera and each only once, got {dict(self.views)}'
            )
        if not self.joints or len(set(self.joint_names)) != len(self.joints):
            raise ValueError(f'joints must have unique names, got {list(self.joint_names)}')
        if not self.period_s > 0 or not math.isfinite(self.period_s):
            raise ValueError(f'period_s must be positive and finite, got {self.period_s}')
        if self.execution_horizon < 1:
            raise ValueError(f'execution_horizon must be at least 1, got {self.execution_horizon}')

    @property
    def view_names(self) -> tuple[str, ...]:
        """Robot views in the order of the slots, empty slots left out."""
        return tuple(self.views[slot] for slot in SLOTS if self.views.get(slot))

    @property
    def joint_names(self) -> tuple[str, ...]:
        return tuple(joint.name for joint in self.joints)

    def to_checkpoint(self, positions: FloatArray) -> FloatArray:
        """Measured joints [n] (rad / closed fraction) in the checkpoint's units."""
        return (positions - self._values('offset')) / self._values('scale')

    def to_targets(self, actions: FloatArray, positions: FloatArray) -> FloatArray:
        """Denormalised actions [A, n] -> absolute joint targets [A, n]; grippers in [0, 1]."""
        is_delta = np.array([joint.mode == 'delta' for joint in self.joints])
        absolute = actions + np.where(is_delta, self.to_checkpoint(positions), 0.0)
        targets: FloatArray = absolute * self._values('scale') + self._values('offset')
        grippers = [joint.gripper for joint in self.joints]
        targets[:, grippers] = targets[:, grippers].clip(0.0, 1.0)
        return targets

    def _values(self, name: str) -> FloatArray:
        return np.array([getattr(joint, name) for joint in self.joints])


def load_robot(folder: Path) -> Pi05Robot:
    """Reads ``safe_pruner_ros.json``; ValueError names unknown or missing entries."""
    path = folder / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f'no {FILE_NAME} in {folder}: a pi0.5 checkpoint does not name cameras and joints. '
            f'Write one with views (slots {SLOTS}), joints, prompt {PROMPT_FORMS}, period_s and '
            'execution_horizon; see policies/pi05_robot.py'
        )
    try:
        values = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f'{path} is not readable JSON: {error}') from error
    required = {'views', 'joints', 'prompt', 'period_s', 'execution_horizon'}
    _check_entries(path, values, Pi05Robot, required)
    joints = []
    for joint in values.pop('joints'):
        _check_entries(path, joint, JointMapping, {'name'})
        joints.append(JointMapping(**joint))
    return Pi05Robot(joints=tuple(joints), **values)


def _check_entries(path: Path, values: Any, cls: type[Any], required: set[str]) -> None:
    known = [field.name for field in fields(cls)]
    if not isinstance(values, dict):
        raise ValueError(f'{path}: expected entries {known}, got {values!r}')
    unknown, missing = sorted(set(values) - set(known)), sorted(required - set(values))
    if unknown or missing:
        raise ValueError(f'{path}: unknown entries {unknown}, missing {missing}; it takes {known}')
