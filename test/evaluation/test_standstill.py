"""The deadlock of a pruned policy that stands still.

What the policy needs next was not needed at its keyframe, so the forecast does not retain it; the
policy cannot see it and stands still; then nothing changes, the attention similarity stays high,
and no keyframe is ever taken. A maximum keyframe age breaks this, and so does an attention that
shifts where the need changes. Here in the closed loop of an evaluation, with the real pruner and a
policy that acts only on what it sees.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from safe_pruner_ros.core.catalog import accepted_settings, build_pruner
from safe_pruner_ros.core.pruner import SaliencyRequest, StepAttention, StepContext, StepPlan
from safe_pruner_ros.core.tokens import Span, TokenLayout, ViewGrid
from safe_pruner_ros.evaluation.rollout import EpisodeResult, RolloutSettings, run_episode
from safe_pruner_ros.policies.policy import PolicyOutput, PolicySpec, PruningTrace, ViewSpec
from safe_pruner_ros.runtime.config_yaml import load_config
from safe_pruner_ros.types import ActionChunk, Observation

N_LAYERS, V = 6, 10
HAND, OBJECT, TRAY = 0, 4, 8  # visual tokens
LAYOUT = TokenLayout((ViewGrid('head', 2, 5),), Span(1, 11), Span(11, 13), Span(13, 15), 16)
HALFWAY, GOAL = 1.5, 2.5  # from 0.5: to the object, then with it to the tray
MAX_STEPS = 40
CONFIG = Path(__file__).parents[2] / 'config'


class Blinkered:
    """Moves towards what it needs now while that token is retained, else repeats its position.

    Deep attention (known on full steps) is on what is needed now. Early attention is on the hand;
    with ``early_shifts`` it also tells the two halves of the task apart.
    """

    def __init__(self, early_shifts: bool, method: str = 'safe_pruner', **settings: Any) -> None:
        self.spec = PolicySpec('blinkered', (ViewSpec('head', 4, 4, 2, 5),), ('a', 'g'), 8, 0.1, 4)
        self.pruner = build_pruner(method, N_LAYERS, retention_ratio=0.3, **settings)
        self.early_shifts = early_shifts
        self.features = torch.randn(V, 8, generator=torch.Generator().manual_seed(0))
        self.step = 0

    def reset(self) -> None:
        self.step = 0
        self.pruner.reset()

    def predict(self, observation: Observation) -> PolicyOutput:
        position = float(observation.state.ordered(['a'])[0])
        needed = OBJECT if position < HALFWAY else TRAY
        measured = {request: self.attention(request, needed) for request in self.requests()}
        shallow = {request: measured[request] for request in self.pruner.shallow_requests}
        context = StepContext(self.features, LAYOUT, shallow, 'task', self.step)
        plan = self.pruner.plan(context)
        full = plan.retained is None
        kept = np.arange(V) if plan.retained is None else plan.retained.visual_index.numpy()
        if not full:  # what was dropped is not seen
            seen = torch.zeros(V).index_fill(0, torch.from_numpy(kept), 1.0)
            measured = {
                request: saliency if request in shallow else saliency * seen
                for request, saliency in measured.items()
                if request in shallow or request.on_pruned_steps
            }
        self.pruner.observe(context, plan, StepAttention(measured))
        stride = 0.05 if needed in kept else 0.0
        rows = np.stack([position + stride * np.arange(1, 9), np.zeros(8)], axis=1)
        chunk = ActionChunk(rows, ('a', 'g'), observation.stamp_ns, round(1e8))
        self.step += 1
        return PolicyOutput(chunk, self.trace(kept, plan), {'total': 1.0})

    def trace(self, kept: npt.NDArray[np.int64], plan: StepPlan) -> PruningTrace:
        return PruningTrace(
            method=self.pruner.method,
            retention_ratio=0.3,
            n_visual=V,
            retained_index=kept,
            is_key_timestep=plan.keyframe is not None,
            keyframe_reason='' if plan.keyframe is None else plan.keyframe.value,
            attention_similarity=plan.attention_similarity,
            similarity_threshold=self.pruner.similarity_threshold,
            steps_since_keyframe=plan.steps_since_keyframe,
        )

    def requests(self) -> tuple[SaliencyRequest, ...]:
        return (*self.pruner.shallow_requests, *self.pruner.deep_requests)

    def attention(self, request: SaliencyRequest, needed: int) -> torch.Tensor:
        saliency = torch.full((V,), 0.01)
        if request in self.pruner.shallow_requests:
            saliency[HAND] = 0.5
            if self.early_shifts:
                saliency[1 if needed == OBJECT else 2] = 2.0
        else:
            saliency[needed] = 0.8
        return saliency


@pytest.fixture
def run(make_env: Any) -> Callable[..., EpisodeResult]:
    def episode(early_shifts: bool, **settings: Any) -> EpisodeResult:
        policy: Any = Blinkered(early_shifts, **settings)
        return run_episode(policy, make_env(goal=GOAL), 0, settings=RolloutSettings(MAX_STEPS))

    return episode


def test_without_a_limit_it_stands_still_for_ever(run: Callable[..., EpisodeResult]) -> None:
    result = run(early_shifts=False)
    assert not result.success and result.policy_steps == MAX_STEPS and not result.error
    assert result.keyframe_steps == (0,)


@pytest.mark.parametrize(
    ('early_shifts', 'settings', 'reason'),
    [
        (False, {'max_keyframe_age': 5}, 'stale'),
        (False, {'keyframe_interval': 4}, 'fixed interval'),
        (True, {}, 'subtask boundary'),
    ],
)
def test_it_comes_free(
    run: Callable[..., EpisodeResult], early_shifts: bool, settings: dict[str, int], reason: str
) -> None:
    result = run(early_shifts, **settings)
    assert result.success
    assert set(result.keyframe_reasons) == {'first step', reason}


def test_the_shipped_settings_come_free(run: Callable[..., EpisodeResult]) -> None:
    """Those of config/policies, in the hardest case: early attention that never shifts."""
    config = load_config(CONFIG / 'robots' / 'sim.yaml', CONFIG / 'policies' / 'embedded.yaml')
    settings = config.pruner.settings(accepted_settings(config.pruner.method))
    settings |= {'method': config.pruner.method}
    settings.pop('retention_ratio')
    assert run(early_shifts=False, **settings).success
    blind = run(early_shifts=False, **{**settings, 'max_keyframe_age': 0})
    assert not blind.success and set(blind.keyframe_steps) <= {0}


def test_diversity_alone_loses_what_it_needs_again_after_each_key_timestep(
    run: Callable[..., EpisodeResult],
) -> None:
    """A key timestep tells where to look, but the picture decides, and it stays the same."""
    settings = {'method': 'diverse_forecast', 'max_keyframe_age': 16}
    assert not run(early_shifts=False, **settings, certain=0.0).success
    assert run(early_shifts=False, **settings, certain=0.25).success
