"""Policies on captured segments answer as they do eagerly.

Without a GPU a stand-in keeps what matters of a graph: inputs and outputs stay at their addresses
and are overwritten by the next replay, and only tensors go in and out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from safe_pruner_ros.evaluation.model_benchmark.random_models import (
    RandomModel,
    build_random_model,
    random_observations,
)
from safe_pruner_ros.policies.cuda_graphs import Captured, Function, GraphedFunction, Tensors
from safe_pruner_ros.policies.graphed_decoder import use_graphs
from safe_pruner_ros.types import Observation

CPU = torch.device('cpu')
METHODS: dict[str, dict[str, float]] = {
    'unpruned': {},
    'safe_pruner': {'retention_ratio': 0.3, 'similarity_threshold': 0.0},
    'divprune': {'retention_ratio': 0.3},  # no shallow layer at all
    'vla_pruner': {'retention_ratio': 0.3},  # deep attention on pruned steps
    'specprune_vla': {'retention_ratio': 0.3},  # remembers features
}


class FixedAddresses:
    def __init__(self) -> None:
        self.captures = 0

    def __call__(self, function: Function, inputs: Tensors) -> Captured:
        self.captures += 1
        outputs = tuple(value.clone() for value in function(*inputs))

        def replay() -> None:
            for output, new in zip(outputs, function(*inputs), strict=True):
                output.copy_(new)

        return Captured(inputs, replay, outputs)


@pytest.fixture(scope='module', params=['openvla', 'openvla_oft', 'pi05'])
def model(request: pytest.FixtureRequest) -> RandomModel:
    torch.set_num_threads(1)
    return build_random_model(request.param, 'tiny', CPU, torch.float32)


def episode(policy: Any, observations: Sequence[Observation]) -> list[Any]:
    """Two episodes, with a key timestep asked for in the middle of the first."""
    outputs = []
    for number, observation in enumerate([*observations, *observations[:2]]):
        if number == len(observations):
            policy.reset()
        if number == 2:
            policy.force_keyframe()
        outputs.append(policy.predict(observation))
    return outputs


@pytest.mark.parametrize('method', METHODS)
def test_graphs_answer_as_eager(model: RandomModel, method: str) -> None:
    eager = model.make_policy(method, METHODS[method])
    graphed: Any = model.make_policy(method, METHODS[method])
    capture = FixedAddresses()
    use_graphs(graphed, capture)
    observations = random_observations(eager, 5)
    pairs = list(zip(episode(eager, observations), episode(graphed, observations), strict=True))
    for expected, found in pairs:
        np.testing.assert_allclose(found.chunk.positions, expected.chunk.positions, atol=1e-5)
        np.testing.assert_array_equal(found.trace.retained_index, expected.trace.retained_index)
        assert found.trace.keyframe_reason == expected.trace.keyframe_reason
        assert found.latency_ms.keys() == expected.latency_ms.keys()
    modes = {expected.trace.n_retained for expected, _ in pairs}
    # Images, shallow layers, deep layers a mode, and for pi0.5 denoising a mode.
    denoising = len(modes) if graphed.spec.name == 'pi05' else 0
    assert capture.captures == 2 + len(modes) + denoising


@pytest.mark.parametrize('method', ['vla_pruner', 'diverse_forecast'])
def test_pruners_observe_what_they_do_eagerly(model: RandomModel, method: str) -> None:
    """Also on pruned steps, where the actions of pi0.5 and OpenVLA read a shortened prefix."""
    observed: dict[bool, list[Any]] = {False: [], True: []}
    for is_graphed, steps in observed.items():
        policy: Any = model.make_policy(method, {'retention_ratio': 0.3})
        if is_graphed:
            use_graphs(policy, FixedAddresses())
        observe = policy._pruner.observe

        def note(*step: Any, steps: list[Any] = steps, observe: Any = observe) -> None:
            steps.append(step[2].saliency)
            observe(*step)

        policy._pruner.observe = note
        for observation in random_observations(policy, 5):
            policy.predict(observation)
    for eager, graphed in zip(*observed.values(), strict=True):
        assert eager.keys() == graphed.keys()
        for request, saliency in eager.items():
            torch.testing.assert_close(graphed[request], saliency, atol=1e-6, rtol=1e-4)


def test_no_capture_after_the_warm_up(model: RandomModel) -> None:
    policy = model.make_policy('safe_pruner', METHODS['safe_pruner'])
    capture = FixedAddresses()
    use_graphs(policy, capture)
    observations = random_observations(policy, 3)
    policy.predict(observations[0])  # key timestep
    policy.predict(observations[1])  # pruned
    warm = capture.captures
    policy.predict(observations[2])
    policy.force_keyframe()
    policy.predict(observations[0])
    assert capture.captures == warm


def test_new_shape_new_graph_and_inputs_are_copied() -> None:
    capture = FixedAddresses()
    double = GraphedFunction(lambda x: (2 * x,), capture)
    first = torch.arange(3.0)
    (answer,) = double(first)
    assert torch.equal(answer, 2 * first) and capture.captures == 1
    (again,) = double(first + 1)
    assert again.data_ptr() == answer.data_ptr()  # overwritten, as documented
    assert torch.equal(again, 2 * first + 2) and capture.captures == 1
    assert torch.equal(first, torch.arange(3.0))
    double(torch.arange(4.0))
    assert capture.captures == 2 == len(double)


def test_a_replay_that_differs_is_refused() -> None:
    def forgets_a_kernel(function: Function, inputs: Tensors) -> Captured:
        outputs = tuple(value.clone() for value in function(*inputs))
        return Captured(inputs, lambda: None, outputs)

    with pytest.raises(RuntimeError, match='output 0 of a CUDA graph differs from eager'):
        GraphedFunction(lambda x: (2 * x,), forgets_a_kernel)(torch.arange(3.0))

    def freezes_its_input(function: Function, inputs: Tensors) -> Captured:
        frozen = tuple(value.clone() + 1 for value in inputs)
        return FixedAddresses()(lambda *_: function(*frozen), inputs)

    with pytest.raises(RuntimeError, match='run without graphs'):
        GraphedFunction(lambda x: (2 * x,), freezes_its_input)(torch.arange(3.0))


def test_policies_without_seams_are_refused() -> None:
    embedded = build_random_model('embedded', 'tiny', CPU, torch.float32)
    with pytest.raises(ValueError, match='EmbeddedPolicy cannot run as graphs'):
        use_graphs(embedded.make_policy('unpruned', {}), FixedAddresses())


@pytest.mark.gpu
@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('name', ['openvla', 'openvla_oft', 'pi05'])
def test_real_graphs_answer_as_eager(name: str, method: str) -> None:
    model = build_random_model(name, 'tiny', torch.device('cuda'), torch.bfloat16)
    eager = model.make_policy(method, METHODS[method])
    graphed: Any = model.make_policy(method, METHODS[method])
    use_graphs(graphed)
    observations = random_observations(eager, 5)
    for expected, found in zip(
        episode(eager, observations), episode(graphed, observations), strict=True
    ):
        np.testing.assert_allclose(found.chunk.positions, expected.chunk.positions, atol=2e-2)
        np.testing.assert_array_equal(found.trace.retained_index, expected.trace.retained_index)
