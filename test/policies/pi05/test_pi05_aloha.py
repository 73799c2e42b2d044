"""config/policies/pi05_aloha.yaml against what openpi's ALOHA transforms do, written out plainly.

Source: openpi 15a9616, `policies/aloha_policy.py` (AlohaInputs, AlohaOutputs with adapt_to_pi) and
`transforms.py` (AbsoluteActions, on the arms only). There a gripper is 1 when open; here, closed.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from safe_pruner_ros.policies.action_layout import ActionDimension
from safe_pruner_ros.policies.aloha_gripper import aloha_gripper_state
from safe_pruner_ros.policies.deployment import Deployment, read_deployment
from safe_pruner_ros.runtime.config import check_names_fit
from safe_pruner_ros.runtime.config_yaml import load_config

CONFIG = Path(__file__).parents[3] / 'config'
TOLERANCE = 1e-5  # the file rounds scale and offset to six digits
ONE_ARM = (1, -1, -1, 1, 1, 1)


@pytest.fixture(scope='module')
def shipped() -> Deployment:
    config = load_config(CONFIG / 'robots' / 'aloha.yaml', CONFIG / 'policies' / 'pi05_aloha.yaml')
    deployment = read_deployment(config.policy.deployment.values())
    joints, views = deployment.actions.joint_names, deployment.views
    check_names_fit('pi05', joints, views, config.robot)
    assert joints == config.robot.layout.names  # left arm, gripper, right arm, gripper: openpi's
    return deployment


def openpi_gripper_state(is_open: float) -> float:
    finger_m = 0.01844 + is_open * (0.05800 - 0.01844)
    sine = (0.022**2 + finger_m**2 - 0.036**2) / (2 * 0.022 * finger_m)
    return (math.asin(min(1.0, max(-1.0, sine))) - 0.5476) / (1.6296 - 0.5476)


def openpi_state(aloha: list[float]) -> list[float]:
    """AlohaInputs: ALOHA's 14 numbers -> what the checkpoint is given."""
    state = []
    for arm in (aloha[:7], aloha[7:]):
        state += [sign * value for sign, value in zip(ONE_ARM, arm[:6], strict=True)]
        state.append(openpi_gripper_state(arm[6]))
    return state


def openpi_actions(row: list[float], aloha: list[float]) -> list[float]:
    """AbsoluteActions, then AlohaOutputs: a row of the checkpoint -> ALOHA's 14 targets."""
    state, targets = openpi_state(aloha), []
    for i in (0, 7):
        arm = [row[i + j] + state[i + j] for j in range(6)]
        targets += [sign * value for sign, value in zip(ONE_ARM, arm, strict=True)]
        targets.append((row[i + 6] + 0.5476 + 0.6213) / (1.4910 + 0.6213))
    return targets


def ours(aloha: list[float]) -> np.ndarray:
    """Grippers as closed fraction."""
    values = np.array(aloha, float)
    values[[6, 13]] = 1 - values[[6, 13]]
    return values


def random_pose(rng: np.random.Generator) -> list[float]:
    pose = rng.uniform(-1.5, 1.5, 14)
    pose[[6, 13]] = rng.uniform(0, 1, 2)
    return pose.tolist()


def test_targets_are_those_of_openpi(shipped):
    rng = np.random.default_rng(0)
    for _ in range(20):
        pose = random_pose(rng)
        rows = rng.uniform(-0.3, 0.3, (5, 14))
        rows[:, [6, 13]] = rng.uniform(-1.168, 0.943, (5, 2))  # open fraction 0 to 1
        expected = [ours(openpi_actions(row, pose)) for row in rows.tolist()]
        targets = shipped.actions.targets(rows, ours(pose))
        np.testing.assert_allclose(targets, expected, atol=TOLERANCE)


def test_the_state_is_that_of_openpi(shipped):
    rng = np.random.default_rng(1)
    for _ in range(20):
        pose = random_pose(rng)
        pose[6] = rng.choice([-0.2, 0.0, 1.0, 1.2])  # a reading just beyond the ends, too
        state = shipped.actions.to_checkpoint(ours(pose))
        np.testing.assert_allclose(state, openpi_state(pose), atol=1e-9)


def test_gripper_state_at_its_ends():
    np.testing.assert_allclose(
        aloha_gripper_state(np.array([0.0, 1.0])), [0.9457, -1.0799], atol=1e-4
    )
    assert np.isfinite(aloha_gripper_state(np.linspace(-50, 50, 1001))).all()
    closing = aloha_gripper_state(np.linspace(0, 1, 101))
    assert (np.diff(closing) < 0).all()


def test_how_far_off_linear_numbers_would_be(shipped):
    """The sizes that `aloha_gripper.py` and docs/policies.md give."""
    gripper, closed = shipped.actions.dimensions[6], np.linspace(0, 1, 1001)
    exact = aloha_gripper_state(closed)
    off = np.abs((closed - gripper.offset) / gripper.scale - exact)
    assert round(float(off.max()), 2) == 0.23 and round(float(np.ptp(exact)), 2) == 2.03
    # A target is an angle's fraction for openpi, the finger's here; both agree at the ends.
    angle = np.linspace(-0.6213, 1.4910, 1001)
    finger_m = 0.022 * np.sin(angle) + np.sqrt(0.036**2 - (0.022 * np.cos(angle)) ** 2)
    narrower_m = finger_m - np.linspace(0.01844, 0.05800, 1001)
    assert round(float(narrower_m.max()), 4) == 0.0037
    assert round(float(narrower_m.min()), 4) == -0.0019
    assert np.abs(narrower_m[[0, -1]]).max() < 2e-4


def test_a_state_unit_is_for_absolute_grippers():
    assert ActionDimension('a', gripper=True, state='aloha_gripper').state == 'aloha_gripper'
    for change, complaint in (
        (
            {'state': 'aloha'},
            r"'a': state must be one of \['linear', 'aloha_gripper'\], got 'aloha'",
        ),
        ({'state': 'aloha_gripper'}, 'for grippers with absolute .* got gripper False'),
        (
            {'state': 'aloha_gripper', 'gripper': True, 'semantics': 'delta'},
            "got gripper True and 'delta'; leave 'linear'",
        ),
    ):
        with pytest.raises(ValueError, match=complaint):
            ActionDimension('a', **change)
