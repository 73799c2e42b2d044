"""CogACT on two arms as the shipped policy file describes it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from safe_pruner_ros.cli import main
from safe_pruner_ros.core.catalog import accepted_settings
from safe_pruner_ros.policies.catalog import build_policy
from safe_pruner_ros.runtime.config import check_policy_fits
from safe_pruner_ros.runtime.config_yaml import load_config
from safe_pruner_ros.runtime.preflight import refuse_misfits
from safe_pruner_ros.types import ArmState, CameraImage, Observation

SIM = Path(__file__).parents[3] / 'config' / 'robots' / 'sim.yaml'


def test_preflight_passes_and_names_what_does_not_fit(
    two_arms: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ['preflight', '--topics', 'off', '--policy-file', str(two_arms.policy_file)]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert 'PROBLEM' not in out and '5 of 16 actions every 1 s' in out
    text = two_arms.policy_file.read_text()
    two_arms.policy_file.write_text(text.replace('n_steps: 10', 'n_steps: 21'))
    assert main(arguments) == 1
    assert 'n_steps must be one of [1, 2, 3' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('own', 'deployed', 'executed'),
    [(None, 5, 5), (5, 1, 5), (None, 1, 1), (1, 5, 1)],
    ids=['deployment', 'policy', 'neither', 'policy takes it back'],
)
def test_an_ensemble_of_chunks_is_refused_wherever_their_length_is_set(
    two_arms: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
    own: int | None,
    deployed: int,
    executed: int,
) -> None:
    """By preflight and at configure, for what is executed in the end."""
    text = two_arms.policy_file.read_text()
    text = text.replace('ensemble_horizon: 1,', 'ensemble_horizon: 2,')
    text = text.replace('    execution_horizon: 5', f'    execution_horizon: {deployed}')
    if own:
        text = text.replace('  name: cogact\n', f'  name: cogact\n  execution_horizon: {own}\n')
    two_arms.policy_file.write_text(text)
    config = load_config(SIM, two_arms.policy_file)
    words = f'diffusion.ensemble_horizon 2 with execution_horizon {executed} would mix plans'
    code = main(['preflight', '--topics', 'off', '--policy-file', str(two_arms.policy_file)])
    out = capsys.readouterr().out
    if executed == 1:
        assert code == 0 and '1 of 16 actions every 0.2 s' in out
        refuse_misfits(config)
    else:
        assert code == 1 and f'PROBLEM  deployment: {words}' in out
        with pytest.raises(ValueError, match=words):
            refuse_misfits(config)


def test_two_arms_move_and_their_grippers_open_with_one(two_arms: SimpleNamespace) -> None:
    config = load_config(SIM, two_arms.policy_file)
    policy, pruner = config.policy, config.pruner
    settings = pruner.settings(accepted_settings(pruner.method))
    deployment = policy.deployment.values()
    tested = build_policy(
        policy.name, pruner.method, settings, policy.checkpoint, 'cpu', deployment
    )
    check_policy_fits(tested.spec, config.robot)
    rgb = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    state = ArmState(np.zeros(16), config.robot.layout.names, 0)
    seen = Observation({'head': CameraImage(rgb, 'head', 0)}, state, 'pick up the red block', 0)
    got = tested.predict(seen).chunk.positions
    assert got.shape == (16, 16) and tested.spec.execution_horizon == 5
    assert set(got[:, two_arms.is_gripper].ravel()) <= {0.0, 1.0}
    arms = got[:, ~np.array(two_arms.is_gripper)]
    assert np.abs(arms - 0.1).max() < 1.1 + 1e-9 and arms.std() > 0.1
    for action in deployment['actions']:
        if action['gripper']:
            action |= {'scale': 1.0, 'offset': 0.0}
    raw = build_policy(policy.name, pruner.method, settings, policy.checkpoint, 'cpu', deployment)
    other = raw.predict(seen).chunk.positions
    np.testing.assert_array_equal(got[:, two_arms.is_gripper], 1 - other[:, two_arms.is_gripper])
