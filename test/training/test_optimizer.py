"""Muon and AdamW beside each other, against formulas written out one matrix at a time."""

from __future__ import annotations

import torch
from torch import nn

from safe_pruner_ros.training.optimizer import Muon, Optimizers


def plain_newton_schulz(update: torch.Tensor) -> torch.Tensor:
    x = update.T if update.shape[0] > update.shape[1] else update
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x.T if update.shape[0] > update.shape[1] else x


def test_muon_is_the_plain_formula_for_each_matrix() -> None:
    torch.manual_seed(0)
    shapes = [(6, 4), (6, 4), (4, 6), (5, 5)]  # two of one shape are stacked
    weights = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    idle = nn.Parameter(torch.randn(6, 4))
    plain, before = [w.detach().clone() for w in weights], idle.detach().clone()
    moments = [torch.zeros(shape) for shape in shapes]
    optimizer = Muon([*weights, idle], lr=0.02, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        for index, weight in enumerate(weights):
            gradient = torch.randn(weight.shape)
            weight.grad = gradient.clone()
            moments[index] = 0.9 * moments[index] + 0.1 * gradient
            update = 0.9 * moments[index] + 0.1 * gradient  # Nesterov
            step = 0.2 * max(weight.shape) ** 0.5 * plain_newton_schulz(update)
            plain[index] = plain[index] * (1 - 0.02 * 0.1) - 0.02 * step
        optimizer.step()
    for weight, expected in zip(weights, plain, strict=True):
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(idle, before), 'no gradient, no decay'


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4)])
        self.head = nn.Linear(4, 2)
        self.frozen = nn.Linear(4, 2).requires_grad_(False)


def test_matrices_of_the_layers_go_to_muon_and_the_rest_to_adamw() -> None:
    torch.manual_seed(0)
    model = Decoder()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizers = Optimizers(model, matrix_lr=0.02, other_lr=0.01)
    gradients = {n: torch.randn_like(p) for n, p in model.named_parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name].clone() if name in gradients else None
    optimizers.step(0.5)
    for name, parameter in model.named_parameters():
        assert parameter.grad is None
        if name == 'layers.0.weight':
            nesterov = (0.95 * 0.05 + 0.05) * gradients[name]
            update = 0.2 * 2.0 * plain_newton_schulz(nesterov)
            expected = before[name] * (1 - 0.01 * 0.01) - 0.01 * update
        elif name in gradients:  # AdamW's first step goes by the sign
            expected = before[name] * (1 - 0.005 * 0.01) - 0.005 * gradients[name].sign()
        else:
            expected = before[name]
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-5, msg=name)
