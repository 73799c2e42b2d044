"""The action expert of pi0.5: a Gemma stack whose norms are set by the flow-matching time.

adaRMS: a norm gives ``norm(x) * (1 + scale) + shift`` and the residual is ``x + gate * y``, with
(scale, shift, gate) a linear map of the time embedding (openpi, `transformers_replace` of gemma).
They depend on the time alone, and the times of the Euler steps are fixed: `modulations` computes
them once, and then neither the time MLP nor the norms' linear maps are read again.

The actions attend to themselves and to the prefix keys and values of the same layer, all to all.
The prefix may have a different length in every layer, as it was pruned on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import nn
from transformers import GemmaConfig
from transformers.models.gemma.modeling_gemma import (
    GemmaAttention,
    GemmaMLP,
    apply_rotary_pos_emb,
)

from safe_pruner_ros.policies.pi05.config import Framework

KeyValue = tuple[torch.Tensor, torch.Tensor]
QueryWatcher = Callable[[int, torch.Tensor, torch.Tensor], None]


class AdaptiveRMSNorm(nn.Module):
    """RMS norm without weight of its own; ``dense`` turns the time embedding into modulation."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.dense = nn.Linear(width, 3 * width)

    def forward(
        self, hidden: Float[torch.Tensor, '1 A D'], modulation: Float[torch.Tensor, '3 D']
    ) -> Float[torch.Tensor, '1 A D']:
        """Normalised and modulated in float32; ``modulation`` is (scale, shift, gate)."""
        scale, shift, _ = modulation.float()
        x = hidden.float()
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return (normed * (1 + scale) + shift).to(hidden.dtype)


class ExpertLayer(nn.Module):
    """A Gemma layer with adaptive norms and gated residuals."""

    def __init__(self, config: GemmaConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.self_attn = GemmaAttention(config, index)
        self.mlp = GemmaMLP(config)
        self.input_layernorm = AdaptiveRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = AdaptiveRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        hidden: Float[torch.Tensor, '1 A D'],
        rotary: tuple[torch.Tensor, torch.Tensor],
        prefix: KeyValue,
        modulation: Float[torch.Tensor, '2 3 D'],
        watch: QueryWatcher | None = None,
    ) -> Float[torch.Tensor, '1 A D']:
        """``prefix``: keys and values [1, H_kv, S_l, d] of prefix layer ``index``, rotated.
        ``watch(index, query [H, A, d], key [H_kv, S_l + A, d])`` sees what attends to what."""
        gates = modulation[:, 2].to(hidden.dtype)
        attended = self._attend(self.input_layernorm(hidden, modulation[0]), rotary, prefix, watch)
        hidden = hidden + gates[0] * attended
        normed = self.post_attention_layernorm(hidden, modulation[1])
        return hidden + gates[1] * self.mlp(normed)

    def _attend(
        self,
        hidden: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        prefix: KeyValue,
        watch: QueryWatcher | None,
    ) -> torch.Tensor:
        # GemmaAttention.forward would append to a cache at every denoising step; only its
        # projections are used.
        attention = self.self_attn
        query, key, value = (
            project(hidden).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *rotary)
        key = torch.cat([prefix[0], key], dim=2)
        value = torch.cat([prefix[1], value], dim=2)
        if watch is not None:
            watch(self.index, query[0], key[0])
        out = F.scaled_dot_product_attention(
            query, key, value, scale=attention.scaling, enable_gqa=True
        )
        return attention.o_proj(out.transpose(1, 2).flatten(2))


class ActionExpert(nn.Module):
    """The stack; `Pi05` holds the projections into and out of it."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        depth = config.num_hidden_layers
        self.layers = nn.ModuleList(ExpertLayer(config, index) for index in range(depth))
        self.norm = AdaptiveRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        hidden: Float[torch.Tensor, '1 A D'],
        rotary: tuple[torch.Tensor, torch.Tensor],
        prefix: Sequence[KeyValue],
        modulation: Float[torch.Tensor, 'norms 3 D'],
        watch: QueryWatcher | None = None,
    ) -> Float[torch.Tensor, '1 A D']:
        for index, layer in enumerate(self.layers):
            pair = modulation[2 * index : 2 * index + 2]
            hidden = layer(hidden, rotary, prefix[index], pair, watch)
        return self.norm(hidden, modulation[-1])

    def modulations(
        self, condition: Float[torch.Tensor, 'T D']
    ) -> Float[torch.Tensor, 'T norms 3 D']:
        """(scale, shift, gate) of all 2 L + 1 norms, in order, for T time embeddings; float32."""
        norms: list[AdaptiveRMSNorm] = []
        for layer in self.layers:
            norms += [layer.input_layernorm, layer.post_attention_layernorm]
        norms.append(self.norm)
        maps = [
            F.linear(condition.float(), norm.dense.weight.float(), norm.dense.bias.float())
            for norm in norms
        ]
        return torch.stack([each.unflatten(-1, (3, -1)) for each in maps], dim=1)


def euler_times(n_steps: int, framework: Framework = 'openpi') -> Float[torch.Tensor, ' T']:
    """1 (noise), 1 - 1/n, ..., 1/n: where the velocity is read. openpi adds up in float32, lerobot
    multiplies in float64; the fastest sine of the embedding turns 1e-7 into 2e-4."""
    if framework == 'lerobot':
        return torch.tensor([1.0 + index * (-1.0 / n_steps) for index in range(n_steps)])
    time, step = torch.tensor(1.0), torch.tensor(-1.0 / n_steps)
    times = []
    for _ in range(n_steps):
        times.append(time)
        time = time + step
    return torch.stack(times)


def time_embedding(times: Float[torch.Tensor, ' T'], width: int) -> Float[torch.Tensor, 'T D']:
    """Sines, then cosines, with periods spread geometrically from 4e-3 to 4 (openpi,
    `create_sinusoidal_pos_embedding`). float64 inside: the fastest turns 250 times in [0, 1]."""
    fraction = torch.linspace(0, 1, width // 2, dtype=torch.float64, device=times.device)
    period = 4e-3 * (4.0 / 4e-3) ** fraction
    angle = times.double()[:, None] * (2 * math.pi / period)
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()
