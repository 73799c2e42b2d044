"""Muon for the decoder's matrices, AdamW for everything else.

Muon (Keller Jordan, 2024) orthogonalises the momentum of each weight matrix by a Newton-Schulz
iteration. `torch.optim.Muon` iterates in bfloat16 and one matrix at a time, which takes 2.2 s a
step on a CPU without bfloat16 units; this one stacks equal shapes and stays in float32 (0.15 s).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn

# Quintic coefficients of the reference implementation; they maximise the slope at zero.
_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """[N, rows, cols] -> nearest (semi-)orthogonal matrices, singular values about 0.7 to 1.2."""
    a, b, c = _QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(iterations):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, scaled to AdamW's usual update size (0.2 RMS)."""

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float
    ) -> None:
        defaults = {'lr': lr, 'momentum': momentum, 'weight_decay': weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            stacks: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group['params']:
                if parameter.grad is not None:
                    stacks[parameter.shape].append(parameter)
            for shape, parameters in stacks.items():
                updates = []
                for parameter in parameters:
                    state = self.state[parameter]
                    if 'momentum' not in state:
                        state['momentum'] = torch.zeros_like(parameter)
                    state['momentum'].lerp_(parameter.grad, 1 - group['momentum'])
                    updates.append(parameter.grad.lerp(state['momentum'], group['momentum']))
                scale = 0.2 * max(shape) ** 0.5 * group['lr']
                for parameter, update in zip(
                    parameters, orthogonalise(torch.stack(updates)), strict=True
                ):
                    parameter.mul_(1 - group['lr'] * group['weight_decay'])
                    parameter.add_(update, alpha=-scale)


class Optimizers:
    """Both optimizers behind one ``step``; learning rates follow one multiplier in [0, 1]."""

    def __init__(self, model: nn.Module, matrix_lr: float, other_lr: float) -> None:
        matrices, others = [], []
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            is_matrix = parameter.ndim == 2 and '.layers.' in f'.{name}'
            (matrices if is_matrix else others).append(parameter)
        self.muon = Muon(matrices, matrix_lr, momentum=0.95, weight_decay=0.01)
        self.adam = torch.optim.AdamW(others, other_lr, betas=(0.9, 0.98), weight_decay=0.01)
        self._base = (matrix_lr, other_lr)

    def step(self, multiplier: float) -> None:
        for optimizer, base in zip((self.muon, self.adam), self._base, strict=True):
            for group in optimizer.param_groups:
                group['lr'] = base * multiplier
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, object]:
        return {'muon': self.muon.state_dict(), 'adam': self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, dict[str, object]]) -> None:
        self.muon.load_state_dict(state['muon'])
        self.adam.load_state_dict(state['adam'])
