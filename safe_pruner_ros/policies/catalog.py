"""Policy name -> policy, imported only when asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from safe_pruner_ros.policies.policy import Policy

POLICIES = ('embedded', 'openvla', 'openvla_oft', 'pi05')


def build_policy(
    name: str,
    method: str,
    pruner_settings: Mapping[str, Any],
    checkpoint: str = '',
    device: str = 'cpu',
    deployment: Mapping[str, Any] | None = None,
) -> Policy:
    """A fresh policy under a fresh pruner. ``checkpoint`` '' takes the weights that ship with
    'embedded'; 'pi05' has none and needs a folder.

    ``deployment``: how a big policy meets the robot (`policies/deployment.py`); 'embedded' takes
    none.

    Raises ValueError for an unknown name, method, setting or a checkpoint that does not fit;
    FileNotFoundError for a checkpoint that is not there.
    """
    if name not in POLICIES:
        raise ValueError(f'unknown policy {name!r}; choose from {POLICIES}')
    if name == 'pi05':
        module = import_module('safe_pruner_ros.policies.pi05')
        pi05: Policy = module.load_policy(Path(checkpoint), method, pruner_settings, device)
        return pi05
    if name != 'embedded':
        return _build_big(name, method, pruner_settings, checkpoint, device, deployment)
    module = import_module('safe_pruner_ros.policies.embedded')
    model = module.load_weights(Path(checkpoint) if checkpoint else None)
    policy: Policy = module.EmbeddedPolicy(model, method, pruner_settings, device)
    return policy


def _build_big(
    name: str,
    method: str,
    pruner_settings: Mapping[str, Any],
    checkpoint: str,
    device: str,
    deployment: Mapping[str, Any] | None,
) -> Policy:
    if not checkpoint:
        raise ValueError(f'policy {name!r} ships no weights; give the folder of a checkpoint')
    if deployment is None:
        raise ValueError(
            f'policy {name!r} needs a deployment: views, actions, statistics_key and period_s'
        )
    read = import_module('safe_pruner_ros.policies.deployment').read_deployment
    module = import_module(f'safe_pruner_ros.policies.{name}')
    policy: Policy = module.build(
        Path(checkpoint), read(deployment), method, pruner_settings, device
    )
    return policy
