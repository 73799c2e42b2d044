"""How a checkpoint meets a robot: which cameras, which joints, which statistics."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from safe_pruner_ros.policies.action_layout import ActionDimension, ActionLayout
from safe_pruner_ros.policies.action_statistics import Bounds
from safe_pruner_ros.policies.cogact.diffusion import DiffusionSettings
from safe_pruner_ros.policies.device import DTYPES, choose_device
from safe_pruner_ros.policies.openvla.images import ImageChain

__all__ = ['DTYPES', 'Deployment', 'choose_device', 'read_deployment']

# Every backend reads these; what else one reads it says to `Deployment.check_read`.
COMMON = ('views', 'actions', 'statistics_key', 'period_s', 'execution_horizon', 'dtype')


@dataclass(frozen=True)
class Deployment:
    """Settings of a big policy that its checkpoint does not hold.

    Parameters
    ----------
    views : the robot's cameras in the order of the checkpoint's training (main view first; for
        pi0.5 base, left wrist, right wrist, or as lerobot's config.json names them, leaving out
        what the robot lacks).
    actions : one joint for each number of the action.
    statistics_key : the data set whose statistics give actions their unit; '' takes the only one.
    period_s : seconds between two actions of a chunk.
    execution_horizon : actions executed before the next chunk replaces them; None = all.
    bounds : what -1 and 1 mean: quantiles 1 and 99 ('q99') or extremes ('min_max', ALOHA).
    image_chain : what happens to an image before it is resized.
    dtype : of all weights: 'float32', 'bfloat16', 'float16', or 'auto' (`choose_dtype`).
    chunk_size : actions per query, where no file of the checkpoint states it. OpenVLA-OFT: 8 for
        LIBERO, 25 for ALOHA, 5 for BridgeData checkpoints.
    proprioception : joints that OpenVLA-OFT reads, in the order of its training; () for a
        checkpoint trained without.
    prompt : pi0.5: 'text' or 'state' (`pi05/prompt.py`).
    prompt_state_dim : pi0.5: the prompt's state is padded with zeros to so many values.
    max_prompt_tokens : pi0.5: the longest prompt of the training.
    diffusion : how CogACT samples its actions.
    """

    views: tuple[str, ...]
    actions: ActionLayout
    statistics_key: str
    period_s: float
    execution_horizon: int | None = None
    bounds: Bounds = 'q99'
    image_chain: ImageChain = field(default_factory=ImageChain)
    dtype: str = 'auto'
    chunk_size: int | None = None
    proprioception: tuple[str, ...] = ()
    prompt: str = ''
    prompt_state_dim: int = 0
    max_prompt_tokens: int = 200
    diffusion: DiffusionSettings = field(default_factory=DiffusionSettings)

    def __post_init__(self) -> None:
        if not self.views or len(set(self.views)) != len(self.views):
            raise ValueError(f'views must be unique and at least one, got {list(self.views)}')
        if not (self.period_s > 0 and math.isfinite(self.period_s)):
            raise ValueError(f'period_s must be positive and finite, got {self.period_s}')
        if self.dtype not in ('auto', *DTYPES):
            raise ValueError(f"dtype must be 'auto' or one of {list(DTYPES)}, got {self.dtype!r}")
        for name in ('chunk_size', 'execution_horizon', 'max_prompt_tokens'):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f'{name} must be at least 1, got {value}')
        if self.prompt_state_dim < 0:
            raise ValueError(f'prompt_state_dim must be at least 0, got {self.prompt_state_dim}')
        unknown = sorted(set(self.proprioception) - set(self.actions.joint_names))
        if unknown:
            raise ValueError(
                f'proprioception names {unknown}, which no action drives; the policy sees only '
                f'its own joints {list(self.actions.joint_names)}'
            )

    def check_read(self, policy: str, also: Collection[str] = ()) -> None:
        """Raise ValueError for a setting beside `COMMON` and ``also`` that was changed: ``policy``
        does not read it, and whoever wrote it believes otherwise."""
        for item in fields(self):
            if item.name in COMMON or item.name in also:
                continue
            factory = item.default_factory
            default = item.default if factory is MISSING else factory()
            if getattr(self, item.name) != default:
                raise ValueError(
                    f'policy {policy!r} reads no {item.name}, got {getattr(self, item.name)!r}; '
                    f'remove it. It reads {[*COMMON, *also]}'
                )

    def check_views(self, policy: str, lowest: int, highest: int) -> None:
        """Raise ValueError unless the number of views is one that ``policy`` can take."""
        if not lowest <= len(self.views) <= highest:
            count = f'{lowest}' if lowest == highest else f'{lowest} to {highest}'
            raise ValueError(
                f'{policy} reads {count} image{"s" if highest > 1 else ""}, the configuration has '
                f'the views {list(self.views)}; name those of its training, in that order'
            )

    def horizon(self, chunk_size: int) -> int:
        """Actions to execute of ``chunk_size``. Raises ValueError when there are not so many."""
        horizon = self.execution_horizon or chunk_size
        if horizon > chunk_size:
            raise ValueError(
                f'execution_horizon must be in [1, {chunk_size}], the actions in a chunk of this '
                f'checkpoint, got {horizon}'
            )
        return horizon


def read_deployment(values: Mapping[str, Any]) -> Deployment:
    """From plain values, as YAML gives them. ``actions`` is a list of joint names or of mappings
    with the fields of `ActionDimension`. Raises ValueError naming what is unknown or missing."""
    known = [item.name for item in fields(Deployment)]
    unknown = sorted(set(values) - set(known))
    needed = ('views', 'actions', 'period_s')
    missing = [name for name in needed if name not in values]
    if unknown or missing:
        raise ValueError(f'deployment: missing {missing}, unknown {unknown}; it takes {known}')
    given = {'statistics_key': '', **values}
    try:
        given['actions'] = ActionLayout(
            tuple(
                ActionDimension(a) if isinstance(a, str) else ActionDimension(**a)
                for a in values['actions']
            )
        )
        if isinstance(values.get('image_chain'), Mapping):
            given['image_chain'] = ImageChain(**values['image_chain'])
        if isinstance(values.get('diffusion'), Mapping):
            given['diffusion'] = DiffusionSettings(**values['diffusion'])
    except TypeError as error:
        raise ValueError(f'deployment: {error}') from error
    for name in ('views', 'proprioception'):
        if name in given:
            given[name] = tuple(given[name])
    return Deployment(**given)
