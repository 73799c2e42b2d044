"""CogACT's action head: a plain transformer that predicts the noise in an action chunk.

Despite its name it has no adaptive norms: one condition token, the sum of the embedded timestep
and the embedded cognition feature, stands before the noisy actions. Names of the parameters are
those of the official checkpoints (CogACT b174a1b, action_model/models.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import nn
from torch.nn import functional as F

N_FREQUENCIES = 128


@dataclass(frozen=True)
class DiTSize:
    width: int
    depth: int
    n_heads: int


# No file of a checkpoint names its size; the widths tell them apart.
DIT_SIZES: Mapping[str, DiTSize] = {
    'DiT-S': DiTSize(384, 6, 4),
    'DiT-B': DiTSize(768, 12, 12),
    'DiT-L': DiTSize(1024, 24, 16),
}


class Attention(nn.Module):
    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(x).unflatten(2, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        projected: torch.Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return projected


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mapped: torch.Tensor = self.fc2(F.gelu(self.fc1(x), approximate='tanh'))
        return mapped


class Block(nn.Module):
    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(width), _norm(width)
        self.attn = Attention(width, n_heads)
        self.mlp = MLP(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        added: torch.Tensor = x + self.mlp(self.norm2(x))
        return added


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)


class ActionEmbedder(nn.Module):
    def __init__(self, n_actions: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_actions, width)


class TimeEmbedder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(2 * N_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )


class ConditionEmbedder(nn.Module):
    def __init__(self, feature_width: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(feature_width, width)
        self.uncondition = nn.Parameter(torch.zeros(1, feature_width))


class FinalLayer(nn.Module):
    def __init__(self, width: int, n_actions: int) -> None:
        super().__init__()
        self.norm_final = _norm(width)
        self.linear = nn.Linear(width, n_actions)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        predicted: torch.Tensor = self.linear(self.norm_final(x))
        return predicted


class DiT(nn.Module):
    """``feature_width`` D: of the decoder. A chunk holds ``chunk_size`` H actions of
    ``n_actions`` numbers."""

    def __init__(self, size: DiTSize, feature_width: int, chunk_size: int, n_actions: int) -> None:
        super().__init__()
        self.chunk_size, self.n_actions = chunk_size, n_actions
        self.x_embedder = ActionEmbedder(n_actions, size.width)
        self.t_embedder = TimeEmbedder(size.width)
        self.z_embedder = ConditionEmbedder(feature_width, size.width)
        self.positional_embedding = nn.Parameter(torch.zeros(1 + chunk_size, size.width))
        self.blocks = nn.ModuleList(Block(size.width, size.n_heads) for _ in range(size.depth))
        self.final_layer = FinalLayer(size.width, n_actions)

    @property
    def uncondition(self) -> Float[torch.Tensor, '1 D']:
        """What stands for "no cognition feature" in classifier-free guidance."""
        return self.z_embedder.uncondition

    def embed_time(self, timesteps: Int64[torch.Tensor, ' B']) -> Float[torch.Tensor, 'B w']:
        index = torch.arange(N_FREQUENCIES, dtype=torch.float32, device=timesteps.device)
        angles = timesteps[:, None] * torch.exp(-math.log(10000) * index / N_FREQUENCIES)
        waves = torch.cat([angles.cos(), angles.sin()], dim=1)
        embedded: torch.Tensor = self.t_embedder.mlp(waves.to(self.positional_embedding.dtype))
        return embedded

    def embed_condition(
        self, features: Float[torch.Tensor, 'B 1 D']
    ) -> Float[torch.Tensor, 'B 1 w']:
        embedded: torch.Tensor = self.z_embedder.linear(features)
        return embedded

    def forward(
        self, actions: Float[torch.Tensor, 'B H n'], condition: Float[torch.Tensor, 'B 1 w']
    ) -> Float[torch.Tensor, 'B H n']:
        """Noise in ``actions``. ``condition``: embedded timestep plus embedded feature."""
        x = torch.cat([condition, self.x_embedder.linear(actions)], dim=1)
        x = x + self.positional_embedding
        for block in self.blocks:
            x = block(x)
        predicted: torch.Tensor = self.final_layer(x)
        return predicted[:, 1:]
