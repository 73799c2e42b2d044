"""Policy name -> policy, imported only when asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from safe_pruner_ros.policies.checkpoint_check import Backend, CheckpointFiles
from safe_pruner_ros.policies.deployment import Deployment, read_deployment
from safe_pruner_ros.policies.policy import Policy

# Where the ``backend`` of a big policy is.
BACKENDS = {
    'openvla': 'safe_pruner_ros.policies.openvla.policy',
    'openvla_oft': 'safe_pruner_ros.policies.openvla.oft_policy',
    'cogact': 'safe_pruner_ros.policies.cogact.policy',
    'pi05': 'safe_pruner_ros.policies.pi05.policy',
}
POLICIES = ('embedded', *BACKENDS)
# Those whose decoder lets a token see itself and earlier ones only (`PrunedPolicy.causal`).
CAUSAL = frozenset({'openvla', 'cogact'})


def build_policy(
    name: str,
    method: str,
    pruner_settings: Mapping[str, Any],
    checkpoint: str = '',
    device: str = 'cpu',
    deployment: Mapping[str, Any] | None = None,
) -> Policy:
    """A fresh policy under a fresh pruner. ``checkpoint`` '' takes the weights that ship with
    'embedded'; the others have none and need the folder of a checkpoint.

    ``deployment``: how a big policy meets the robot (`policies/deployment.py`); 'embedded' takes
    none.

    Raises ValueError for an unknown name, method, setting, a checkpoint that does not fit, or too
    little memory on the device; FileNotFoundError for a checkpoint that is not there.
    """
    if name == 'embedded':
        module = import_module('safe_pruner_ros.policies.embedded')
        if deployment:
            raise ValueError(
                "policy 'embedded' was trained on its own robot and takes no deployment; remove it"
            )
        model = module.load_weights(Path(checkpoint) if checkpoint else None)
        embedded: Policy = module.EmbeddedPolicy(model, method, pruner_settings, device)
        return embedded
    backend, folder, settings = _big(name, checkpoint, deployment)
    memory_errors_told = import_module('safe_pruner_ros.policies.device').memory_errors_told
    with memory_errors_told(str(folder)):
        policy: Policy = backend.build(folder, settings, method, pruner_settings, device)
    return policy


def open_checkpoint(
    name: str, checkpoint: str, device: str, deployment: Mapping[str, Any] | None
) -> CheckpointFiles:
    """The files of a big policy, not read yet. Raises ValueError or FileNotFoundError when not
    even that can be done; 'embedded' has no such files."""
    backend, folder, settings = _big(name, checkpoint, deployment)
    files: CheckpointFiles = backend.files(folder, settings, device)
    return files


def _big(
    name: str, checkpoint: str, deployment: Mapping[str, Any] | None
) -> tuple[Backend[Any, Any], Path, Deployment]:
    if name not in POLICIES:
        raise ValueError(f'unknown policy {name!r}; choose from {POLICIES}')
    if not checkpoint:
        raise ValueError(f'policy {name!r} ships no weights; give the folder of a checkpoint')
    folder = Path(checkpoint).expanduser()
    if not folder.exists():
        raise FileNotFoundError(f'{folder} does not exist; give the folder of a {name} checkpoint')
    if folder.is_dir() and not any(folder.iterdir()):
        raise FileNotFoundError(
            f'{folder} is empty; give the folder that the {name} checkpoint was copied to'
        )
    if not deployment:
        raise ValueError(
            f'policy {name!r} needs a deployment: views, actions, statistics_key and period_s'
        )
    return import_module(BACKENDS[name]).backend, folder, read_deployment(deployment)
