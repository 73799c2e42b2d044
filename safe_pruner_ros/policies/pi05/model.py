"""The pi0.5 network from stock transformers modules: SigLIP, a Gemma prefix, an action expert.

Decoder input of the prefix, every token seeing every other::

    [view 1: 16 x 16] [view 2: 16 x 16] ... [text, starts with BOS]

A camera that is not there and padding never enter. Upstream masks them instead; a masked token
takes no position (position = cumsum(mask) - 1) and no attention, so leaving it out changes
nothing and saves 46 % of the prefix in LIBERO.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import nn
from transformers import DynamicCache, GemmaModel, SiglipVisionModel
from transformers.models.gemma.modeling_gemma import GemmaRotaryEmbedding, apply_rotary_pos_emb

from safe_pruner_ros.core.tokens import Span, TokenLayout, ViewGrid
from safe_pruner_ros.policies.pi05.config import Pi05Config
from safe_pruner_ros.policies.pi05.expert import (
    ActionExpert,
    KeyValue,
    QueryWatcher,
    euler_times,
    time_embedding,
)


class Pi05(nn.Module):
    """See the module docstring. Parameter names are openpi's without its outer prefixes."""

    def __init__(self, config: Pi05Config) -> None:
        super().__init__()
        self.config = config
        self.vision_tower = SiglipVisionModel(config.vision.transformers_config())
        self.projector = nn.Linear(config.vision.width, config.prefix.width)
        prefix_config = config.prefix.transformers_config(config.vocabulary_size)
        self.language_model = GemmaModel(prefix_config)
        self.expert = ActionExpert(config.expert.transformers_config(1))
        width = config.expert.width
        self.action_in_proj = nn.Linear(config.action_dim, width)
        self.action_out_proj = nn.Linear(width, config.action_dim)
        self.time_mlp_in = nn.Linear(width, width)
        self.time_mlp_out = nn.Linear(width, width)

    @property
    def dtype(self) -> torch.dtype:
        """Of all weights but the few that stay float32 (`checkpoint.py`)."""
        return self.projector.weight.dtype

    def rebuild_constants(self, device: torch.device) -> None:
        """Constants that no checkpoint holds (rotary frequencies, position numbers, embedding
        scale), for a network that was laid out on the meta device."""
        vision, language = self.vision_tower.embeddings, self.language_model
        n_positions = vision.num_positions
        vision.position_ids = torch.arange(n_positions, device=device).expand(1, -1)
        scale = torch.tensor(language.embed_tokens.scalar_embed_scale, device=device)
        language.embed_tokens.embed_scale = scale
        language.rotary_emb = GemmaRotaryEmbedding(language.config).to(device)

    # -- prefix ---------------------------------------------------------------------------------

    def prefix_layers(self) -> list[nn.Module]:
        """The layers for `run_pruned`. Of the last one only keys and values are ever read."""
        *layers, last = self.language_model.layers
        return [*layers, KeyValueLayer(last)]

    def embed_images(
        self, pixels: Float[torch.Tensor, 'views 3 H W']
    ) -> Float[torch.Tensor, 'V D']:
        """Images in [-1, 1] -> visual tokens, views in order. Not scaled, unlike text."""
        pixels = pixels.to(self.dtype)
        return self.projector(self.vision_tower(pixels).last_hidden_state).flatten(0, 1)

    def embed_text(self, tokens: Int64[torch.Tensor, ' T']) -> Float[torch.Tensor, 'T D']:
        """transformers' Gemma embedding multiplies by sqrt(width) itself; once is enough."""
        return self.language_model.embed_tokens(tokens)

    def layout(self, views: Sequence[str], n_text: int, query_rows: int = 1) -> TokenLayout:
        """Places of ``views`` (names, in order) and ``n_text`` text tokens.

        The prefix holds no action token. The rows that tell what matters are the last
        ``query_rows`` text tokens: they close the prompt, to which they belong, right before the
        actions.
        """
        grid = self.config.vision.grid
        visual = Span(0, len(views) * grid * grid)
        text = Span(visual.stop, visual.stop + n_text)
        action = Span(text.stop - min(query_rows, n_text), text.stop)
        grids = tuple(ViewGrid(name, grid, grid) for name in views)
        return TokenLayout(grids, visual, text, action, text.stop, Span(0, text.stop))

    # -- actions --------------------------------------------------------------------------------

    def modulations(self) -> Float[torch.Tensor, 'T norms 3 D']:
        """What the flow-matching times do to the expert's norms; the same for every step."""
        times = euler_times(self.config.n_denoising_steps, self.config.framework)
        times = times.to(self.time_mlp_in.weight.device)
        embedded = time_embedding(times, self.config.expert.width)
        hidden = self.time_mlp_in(embedded.to(self.time_mlp_in.weight.dtype))
        return self.expert.modulations(F.silu(self.time_mlp_out(F.silu(hidden))))

    def denoise(
        self,
        noise: Float[torch.Tensor, '1 A N'],
        prefix: Sequence[KeyValue],
        n_prefix: int,
        modulations: Float[torch.Tensor, 'T norms 3 D'],
        watch: QueryWatcher | None = None,
    ) -> Float[torch.Tensor, '1 A N']:
        """Euler steps of the flow from ``noise`` to normalised actions; float32.

        ``n_prefix``: tokens of the prefix BEFORE pruning. Actions come right after them, whatever
        has left since: rotary attention knows distances, and those must not change.
        """
        positions = n_prefix + torch.arange(noise.shape[1], device=noise.device)[None]
        actions = noise.float()
        step = -1.0 / len(modulations)
        for modulation in modulations:
            entered = self.action_in_proj(actions.to(self.action_in_proj.weight.dtype))
            hidden = entered.to(self.dtype)
            rotary = self.language_model.rotary_emb(hidden, positions)
            hidden = self.expert(hidden, rotary, prefix, modulation, watch)
            velocity = self.action_out_proj(hidden.to(self.action_out_proj.weight.dtype))
            actions = actions + step * velocity.float()
        return actions


class KeyValueLayer(nn.Module):
    """A Gemma layer that stores its keys and values and stops there.

    The last layer of the prefix: its output enters nothing. Exact, and one layer of attention and
    MLP less (5 % of the prefix).
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.self_attn, self.input_layernorm = layer.self_attn, layer.input_layernorm
        self.train(layer.training)

    def forward(
        self,
        hidden: Float[torch.Tensor, '1 S D'],
        past_key_values: DynamicCache,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **_: Any,
    ) -> Float[torch.Tensor, '1 S D']:
        attention = self.self_attn
        normed = self.input_layernorm(hidden)
        key, value = (
            project(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for project in (attention.k_proj, attention.v_proj)
        )
        _, key = apply_rotary_pos_emb(key, key, *position_embeddings)
        past_key_values.update(key, value, attention.layer_idx)
        return hidden


def cached_keys_values(cache: DynamicCache) -> list[KeyValue]:
    """Keys and values by layer; lengths differ after pruning."""
    return [(layer.keys, layer.values) for layer in cache.layers]
