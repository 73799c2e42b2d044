"""Parameters of the node and the settings that follow from them, without topics."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.ros


@pytest.fixture
def load():
    """Parameters given at the start -> (NodeParameters, the node)."""
    import rclpy
    from rclpy.node import Node
    from rclpy.parameter import Parameter

    from safe_pruner_ros.ros.parameters import NodeParameters

    context = rclpy.Context()
    rclpy.init(context=context)
    nodes: list[Node] = []

    def load(**given: Any) -> tuple[Any, Node]:
        values = {name.replace('__', '.'): value for name, value in given.items()}
        overrides = [Parameter(name, value=value) for name, value in values.items()]
        nodes.append(Node('parameters', context=context, parameter_overrides=overrides))
        return NodeParameters(nodes[-1], lambda: False, lambda *_: None), nodes[-1]

    yield load
    for node in nodes:
        node.destroy_node()
    rclpy.try_shutdown(context=context)


def test_another_method_starts_at_its_own_settings(load) -> None:
    from rclpy.parameter import Parameter

    parameters, node = load(pruner__method='divprune', pruner__quota_scope='joint')
    pruner = parameters.load().pruner
    assert (pruner.method, pruner.retention_ratio) == ('divprune', 0.25)
    # Shown as it is: the policy file's 3 is another method's, joint was asked for.
    assert parameters.value('pruner.pruning_layer') == pruner.pruning_layer == -1
    assert parameters.value('pruner.quota_scope') == pruner.quota_scope == 'joint'

    node.set_parameters([Parameter('pruner.method', value='diverse_forecast')])
    pruner = parameters.load().pruner
    assert pruner.method == 'diverse_forecast' and pruner.pruning_layer == 3
    (answer,) = node.set_parameters([Parameter('pruner.method', value='magic')])
    assert not answer.successful and "unknown pruning method 'magic'" in answer.reason


def test_the_policy_file_counts_for_its_own_method(load) -> None:
    parameters, _ = load(policy_file='openvla', pruner__similarity_threshold=0.9)
    pruner = parameters.load().pruner
    assert (pruner.norm, pruner.max_keyframe_age, pruner.similarity_threshold) == ('l1', 16, 0.9)
