"""Networks laid out on the meta device -> random weights in memory, once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from safe_pruner_ros.evaluation.flops import shapes
from safe_pruner_ros.policies.device import check_memory, needed_bytes
from safe_pruner_ros.policies.policy import Policy

JOINTS = tuple(f'joint_{number}' for number in range(1, 8))


@dataclass(frozen=True)
class RandomModel:
    """``make_policy(method, settings)``: policies on one and the same network. ``counted``: the
    same shapes for `evaluation/flops`. ``parameters`` of all networks."""

    counted: shapes.Model
    parameters: int
    make_policy: Callable[[str, Mapping[str, Any]], Policy]


@torch.no_grad()
def materialise(
    module: nn.Module, device: torch.device, dtype: torch.dtype, seed: int
) -> nn.Module:
    """Meta device -> memory, every matrix scaled so that activations keep their size. ``device``
    may be the meta device itself, for a look at the shapes."""
    module.to(dtype)
    if device.type != 'meta':
        needed = needed_bytes([module], device, dtype)
        check_memory(needed, device, dtype, 'the model with random weights')
    module.to_empty(device=device)
    generator = None if device.type == 'meta' else torch.Generator(device).manual_seed(seed)
    for name, value in module.named_parameters():
        if value.ndim > 1:
            is_table = 'embed' in name and 'patch' not in name
            fan_in = 1 if is_table else value[0].numel()
            value.normal_(0.0, fan_in**-0.5, generator=generator)
        else:
            value.fill_(0.0 if name.endswith('bias') else 1.0)
    return module.eval().requires_grad_(False)


def count_parameters(*modules: nn.Module | None) -> int:
    return sum(p.numel() for m in modules if m is not None for p in m.parameters())
