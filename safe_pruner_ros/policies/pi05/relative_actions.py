"""Which numbers of a lerobot action count from the state, and whether the deployment says so.

A relative number taken for a target drives its joint to about zero; a target taken for a relative
number drives it about twice as far. So every joint has to agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safe_pruner_ros.policies.action_layout import ActionLayout

# What an entry that config.json lacks stands for (lerobot 7427f31, configuration_pi05.py).
_USUALLY_EXCLUDED = ('gripper',)


def relative_mask(values: Mapping[str, Any], n: int) -> list[bool]:
    """Which of ``n`` numbers are relative, by ``values`` of a config.json with
    use_relative_actions (lerobot 7427f31, `processor/relative_action_processor.py`).

    A number stays absolute when its lower-cased feature name contains one of
    relative_exclude_joints. One without a name is relative: without any names all are, grippers
    too.
    """
    excluded = values.get('relative_exclude_joints', _USUALLY_EXCLUDED) or ()
    tokens = [str(token).lower() for token in excluded if token]
    names = [str(name).lower() for name in list(values.get('action_feature_names') or ())[:n]]
    mask = [not any(token in name for token in tokens) for name in names]
    return mask + [True] * (n - len(mask))


def check_relative_actions(path: Path, values: Mapping[str, Any], actions: ActionLayout) -> None:
    """Raise ValueError naming the joints that ``values`` of ``path`` contradict.

    Without use_relative_actions nothing is asked: a data set may hold differences itself, and
    openpi's DeltaActions leave no trace in a checkpoint.
    """
    if not values.get('use_relative_actions', False):
        return
    mask = relative_mask(values, len(actions.dimensions))
    said = [dimension.semantics == 'delta_from_state' for dimension in actions.dimensions]
    each = list(zip(actions.joint_names, mask, said, strict=True))
    relative = [joint for joint, trained, here in each if trained and not here]
    targets = [joint for joint, trained, here in each if here and not trained]
    moves = (
        f"give {relative} the semantics 'delta_from_state'" if relative else '',
        f"give {targets} the semantics 'absolute'" if targets else '',
    )
    if any(moves):
        excluded = values.get('relative_exclude_joints', list(_USUALLY_EXCLUDED))
        raise ValueError(
            f'{path} has use_relative_actions with relative_exclude_joints {excluded} and '
            f'action_feature_names {values.get("action_feature_names")}; the semantics of '
            f'{relative + targets} differ from that. Either the order of the actions is another, '
            f'or {" and ".join(filter(None, moves))}'
        )
