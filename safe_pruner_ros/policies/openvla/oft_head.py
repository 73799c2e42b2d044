"""What OpenVLA-OFT adds to OpenVLA's network: an L1 action head and a proprioception token.

Names of the parameters are those of the official .pt files (openvla-oft 213c5ff,
prismatic/models/action_heads.py and projectors.py).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import nn


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        added: torch.Tensor = x + self.ffn(x)
        return added


class ActionMLP(nn.Module):
    """The hidden states of one action, side by side, become its numbers."""

    def __init__(self, width: int, n_actions: int, n_blocks: int = 2) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width * n_actions)
        self.fc1 = nn.Linear(width * n_actions, width)
        self.relu = nn.ReLU()
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(n_blocks))
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, n_actions)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        actions: torch.Tensor = self.fc2(self.layer_norm2(x))
        return actions


class ActionHead(nn.Module):
    """Hidden states [chunk * n_actions, D], one per action number -> actions [chunk, n_actions],
    normalised."""

    def __init__(self, width: int, n_actions: int) -> None:
        super().__init__()
        self.n_actions = n_actions
        self.model = ActionMLP(width, n_actions)

    def forward(self, hidden: Float[torch.Tensor, 'chunk_n D']) -> Float[torch.Tensor, 'chunk n']:
        actions: torch.Tensor = self.model(hidden.unflatten(0, (-1, self.n_actions)).flatten(1))
        return actions


class ProprioProjector(nn.Module):
    """Normalised proprioception [1, P] -> one token [1, D]."""

    def __init__(self, n_proprio: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(n_proprio, width)
        self.fc2 = nn.Linear(width, width)
        self.gelu = nn.GELU()

    @property
    def n_proprio(self) -> int:
        return self.fc1.in_features

    def forward(self, proprio: Float[torch.Tensor, '1 P']) -> Float[torch.Tensor, '1 D']:
        token: torch.Tensor = self.fc2(self.gelu(self.fc1(proprio)))
        return token
