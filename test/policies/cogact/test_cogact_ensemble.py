"""CogACT's ensemble: where chunks meet, when it forgets, and with which chunks it is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.tiny_cogact import JOINTS, PERIOD_NS, QUICK, observation, policy

from safe_pruner_ros.policies.action_layout import ActionDimension, ActionLayout
from safe_pruner_ros.policies.cogact.diffusion import DiffusionSettings
from safe_pruner_ros.policies.cogact.ensemble import AdaptiveEnsemble
from safe_pruner_ros.policies.deployment import read_deployment
from safe_pruner_ros.runtime.config_yaml import load_config

CONFIG = Path(__file__).parents[3] / 'config'


def test_chunks_are_averaged_where_they_meet_in_time(cogact_tiny: SimpleNamespace) -> None:
    """The second query comes three periods after the first: its row j meets row j + 3."""
    ensemble = replace(QUICK, ensemble_horizon=2, ensemble_alpha=0.7)
    alone = policy(cogact_tiny)
    tested = policy(cogact_tiny, diffusion=ensemble)
    stamps = [0, 3 * PERIOD_NS + PERIOD_NS // 3, 40 * PERIOD_NS]
    plain = [alone.predict(observation(k, stamp_ns=t)) for k, t in enumerate(stamps)]
    first, second, third = (
        tested.predict(observation(k, stamp_ns=t)) for k, t in enumerate(stamps)
    )
    old, new = plain[0].chunk.positions, plain[1].chunk.positions
    assert np.array_equal(first.chunk.positions, old)
    for row in range(16):
        if row + 3 >= 16:
            expected = new[row]
        else:
            a, b = new[row], old[row + 3]
            cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-7)
            itself = a @ a / (a @ a + 1e-7)
            weight = np.exp(0.7 * cosine) / (np.exp(0.7 * cosine) + np.exp(0.7 * itself))
            expected = (1 - weight) * a + weight * b
        np.testing.assert_allclose(second.chunk.positions[row, :6], expected[:6], atol=1e-12)
    assert set(second.chunk.positions[:, 6]) <= {0.0, 1.0}
    assert np.array_equal(third.chunk.positions, plain[2].chunk.positions)


def test_the_ensemble_forgets(cogact_tiny: SimpleNamespace) -> None:
    """A new episode, another instruction, a clock that goes back, plans that became void."""
    ensemble = replace(QUICK, ensemble_horizon=7)
    blue = 'pick up the blue block'
    changes = {
        'instruction': observation(1, blue, PERIOD_NS),
        'reset': observation(1, stamp_ns=PERIOD_NS),
        'void': observation(1, stamp_ns=PERIOD_NS),
        'clock': observation(1, stamp_ns=-PERIOD_NS),
    }
    for what, seen in changes.items():
        tested, alone = policy(cogact_tiny, diffusion=ensemble), policy(cogact_tiny)
        for each in (tested, alone):
            each.predict(observation())
            if what == 'reset':
                each.reset()
        if what == 'void':
            tested.forget_plans()
            alone = policy(cogact_tiny)  # a second step that joins nothing: noise goes on
            alone.predict(observation())
        got, expected = tested.predict(seen), alone.predict(seen)
        assert np.array_equal(got.chunk.positions, expected.chunk.positions), what
    blended = policy(cogact_tiny, diffusion=ensemble)
    blended.predict(observation())
    got = blended.predict(observation(1, stamp_ns=PERIOD_NS)).chunk.positions
    plain = policy(cogact_tiny)
    plain.predict(observation())
    single = plain.predict(observation(1, stamp_ns=PERIOD_NS)).chunk.positions
    assert np.abs(got - single).max() > 1e-2


def test_chunks_that_count_from_their_own_query_are_not_averaged(
    cogact_tiny: SimpleNamespace,
) -> None:
    layout = ActionLayout(tuple(ActionDimension(name, 'delta_from_state') for name in JOINTS))
    joined = replace(QUICK, ensemble_horizon=2)
    with pytest.raises(ValueError, match=r"'a', .*cannot be averaged; set diffusion.ensemble_h"):
        policy(cogact_tiny, actions=layout, diffusion=joined)
    policy(cogact_tiny, actions=layout, diffusion=QUICK)


@pytest.mark.parametrize('horizon', [2, None])
def test_an_ensemble_takes_a_query_at_every_action(
    cogact_tiny: SimpleNamespace, horizon: int | None
) -> None:
    joined = replace(QUICK, ensemble_horizon=2)
    n, age_s = (2, 0.4) if horizon else (16, 3.2)
    complaint = (
        f'ensemble_horizon 2 with execution_horizon {n} would mix plans {age_s} s old .* '
        'set diffusion.ensemble_horizon to 1, or execution_horizon to 1'
    )
    with pytest.raises(ValueError, match=complaint):
        policy(cogact_tiny, diffusion=joined, execution_horizon=horizon)
    policy(cogact_tiny, diffusion=QUICK, execution_horizon=horizon)


def lag_s(ensemble: DiffusionSettings, execution_horizon: int) -> float:
    """From the query whose chunks all say 1 where those before said 0, until 0.9 is sent."""
    tested = AdaptiveEnsemble(ensemble.ensemble_horizon, ensemble.ensemble_alpha, PERIOD_NS)
    sent = []
    for query in range(-10, 20):
        stamp_ns = query * execution_horizon * PERIOD_NS
        chunk = np.full((16, 7), float(query >= 0))
        sent.append(tested.average(chunk, stamp_ns)[:execution_horizon, 0])
        tested.remember(chunk, stamp_ns)
    after = np.concatenate(sent[10:])
    return int(np.flatnonzero(after >= 0.9)[0]) * PERIOD_NS / 1e9


def test_the_shipped_policy_file_does_not_lag() -> None:
    for horizon, executed, expected_s in [(2, 5, 1.0), (7, 5, 2.2), (2, 1, 0.2), (1, 5, 0.0)]:
        ensemble = DiffusionSettings(ensemble_horizon=horizon)
        assert lag_s(ensemble, executed) == pytest.approx(expected_s), (horizon, executed)
    shipped = load_config(CONFIG / 'robots/sim.yaml', CONFIG / 'policies/cogact.yaml')
    deployment = read_deployment(shipped.policy.deployment_values())
    assert deployment.execution_horizon == 5
    assert lag_s(deployment.diffusion, deployment.execution_horizon) == 0
    assert lag_s(DiffusionSettings(), 16) == 0
