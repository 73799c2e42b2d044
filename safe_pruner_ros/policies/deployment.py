"""How a checkpoint meets a robot: which cameras, which joints, which statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from safe_pruner_ros.policies.action_layout import ActionDimension, ActionLayout
from safe_pruner_ros.policies.action_statistics import Bounds
from safe_pruner_ros.policies.openvla_images import ImageChain

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}


def choose_device(name: str) -> torch.device:
    """'auto' takes a GPU where there is one. Raises ValueError for a GPU that is not there."""
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    device = torch.device(name)
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} asks for a GPU and torch finds none; use 'auto'")
    return device


@dataclass(frozen=True)
class Deployment:
    """Settings of a big policy that its checkpoint does not hold.

    Parameters
    ----------
    views : the robot's cameras in the order of the checkpoint's training (main view first).
    actions : one joint for each number of the action.
    statistics_key : the data set whose statistics give actions their unit.
    period_s : seconds between two actions of a chunk.
    execution_horizon : actions executed before the next chunk replaces them; None = all.
    bounds : what -1 and 1 mean: quantiles 1 and 99 ('q99') or extremes ('min_max', ALOHA).
    image_chain : what happens to an image before it is resized.
    dtype : of all weights: 'float32', 'bfloat16' or 'float16'.
    chunk_size : actions per query. No OpenVLA-OFT file states it: 8 for LIBERO, 25 for ALOHA, 5
        for BridgeData checkpoints. OpenVLA has 1 and ignores it.
    proprioception : joints that OpenVLA-OFT reads, in the order of its training; () for a
        checkpoint trained without.
    """

    views: tuple[str, ...]
    actions: ActionLayout
    statistics_key: str
    period_s: float
    execution_horizon: int | None = None
    bounds: Bounds = 'q99'
    image_chain: ImageChain = field(default_factory=ImageChain)
    dtype: str = 'bfloat16'
    chunk_size: int = 8
    proprioception: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.views or len(set(self.views)) != len(self.views):
            raise ValueError(f'views must be unique and at least one, got {list(self.views)}')
        if not self.period_s > 0:
            raise ValueError(f'period_s must be positive, got {self.period_s}')
        if self.dtype not in DTYPES:
            raise ValueError(f'dtype must be one of {list(DTYPES)}, got {self.dtype!r}')
        if self.chunk_size < 1:
            raise ValueError(f'chunk_size must be at least 1, got {self.chunk_size}')
        if not 1 <= (self.execution_horizon or 1) <= self.chunk_size:
            raise ValueError(
                f'execution_horizon must be in [1, {self.chunk_size}], '
                f'got {self.execution_horizon}'
            )
        unknown = sorted(set(self.proprioception) - set(self.actions.joint_names))
        if unknown:
            raise ValueError(
                f'proprioception names {unknown}, which no action drives; the policy sees only '
                f'its own joints {list(self.actions.joint_names)}'
            )


def read_deployment(values: Mapping[str, Any]) -> Deployment:
    """From plain values, as YAML gives them. ``actions`` is a list of joint names or of mappings
    with the fields of `ActionDimension`. Raises ValueError naming what is unknown or missing."""
    known = [item.name for item in fields(Deployment)]
    unknown = sorted(set(values) - set(known))
    needed = ('views', 'actions', 'statistics_key', 'period_s')
    missing = [name for name in needed if name not in values]
    if unknown or missing:
        raise ValueError(f'deployment: missing {missing}, unknown {unknown}; it takes {known}')
    given = dict(values)
    try:
        given['actions'] = ActionLayout(
            tuple(
                ActionDimension(a) if isinstance(a, str) else ActionDimension(**a)
                for a in values['actions']
            )
        )
        if isinstance(values.get('image_chain'), Mapping):
            given['image_chain'] = ImageChain(**values['image_chain'])
    except TypeError as error:
        raise ValueError(f'deployment: {error}') from error
    for name in ('views', 'proprioception'):
        if name in given:
            given[name] = tuple(given[name])
    return Deployment(**given)
