"""The network of the embedded policy: a small VLA with the seams of OpenVLA-OFT.

Decoder input (one row per token, bidirectional attention over all of them)::

    [bos] [visual: views x grid x grid] [proprioception] [words] [action slots] [end]

The stack is transformers' own Llama layers, so the pruned decoder drives it as it drives the big
policies. The chunk is read from the action slots in one pass and regressed with an L1 loss
(OpenVLA-OFT, arXiv 2502.19645, section 4). Weights are produced by `training/`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from safe_pruner_ros.core.tokens import Span, TokenLayout, ViewGrid
from safe_pruner_ros.policies.vision_tower import VisionTower

PAD_WORD = '<pad>'


@dataclass(frozen=True)
class TrainedTask:
    """A task that a policy was trained on: its sentences contain '{object}', and which objects
    they may name."""

    name: str
    templates: tuple[str, ...]
    object_names: tuple[str, ...]


@dataclass(frozen=True)
class EmbeddedConfig:
    """Shape, vocabulary and tasks of an embedded policy; stored in the checkpoint's metadata.

    Without ``tasks`` any sentence of known words is accepted.
    """

    views: tuple[str, ...]
    joint_names: tuple[str, ...]
    gripper_names: tuple[str, ...]
    vocabulary: tuple[str, ...]
    tasks: tuple[TrainedTask, ...] = ()
    width: int = 128
    mlp_width: int = 352
    n_layers: int = 12
    n_heads: int = 4
    vision_width: int = 128
    image_size: int = 256
    grid: int = 8
    max_words: int = 12
    chunk_size: int = 8
    period_s: float = 0.1
    execution_horizon: int = 4

    def __post_init__(self) -> None:
        if self.vocabulary[:1] != (PAD_WORD,):
            raise ValueError(f'vocabulary must start with {PAD_WORD!r}, got {self.vocabulary[:1]}')
        unknown = set(self.gripper_names) - set(self.joint_names)
        if unknown:
            raise ValueError(f'gripper_names {sorted(unknown)} are not among joint_names')

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> EmbeddedConfig:
        """Inverse of `as_dict`; ValueError names unknown or missing entries."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        missing = sorted({'views', 'joint_names', 'gripper_names', 'vocabulary'} - set(values))
        if unknown or missing:
            raise ValueError(
                f'not an embedded-policy config: unknown entries {unknown}, missing {missing}'
            )
        lists = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        lists['tasks'] = tuple(_trained_task(task) for task in lists.get('tasks', ()))
        return cls(**lists)  # type: ignore[arg-type]

    @cached_property
    def sentences(self) -> frozenset[str]:
        """Every sentence that the policy was trained on."""
        return frozenset(
            template.format(object=name)
            for task in self.tasks
            for template in task.templates
            for name in task.object_names
        )

    @property
    def n_visual(self) -> int:
        return len(self.views) * self.grid**2

    def layout(self, n_words: int | None = None) -> TokenLayout:
        """Of an instruction of ``n_words``, None: as long as it may be. The padding behind a
        shorter one is in the sequence, but says nothing: whoever asks the text does not ask it."""
        visual = Span(1, 1 + self.n_visual)
        slots = visual.stop + 1 + self.max_words
        n_words = self.max_words if n_words is None else n_words
        text = Span(visual.stop + 1, visual.stop + 1 + n_words)
        action = Span(slots, slots + self.chunk_size)
        grids = tuple(ViewGrid(name, self.grid, self.grid) for name in self.views)
        return TokenLayout(grids, visual, text, action, action.stop + 1)


def _trained_task(values: dict[str, Any]) -> TrainedTask:
    try:
        name, templates = values['name'], values['templates']
        return TrainedTask(name, tuple(templates), tuple(values['object_names']))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f'not the entry of a task in an embedded-policy config: {error}'
        ) from error


class EmbeddedVLA(nn.Module):
    """See the module docstring. ``n_layers`` may differ from the config's while depth grows."""

    def __init__(self, config: EmbeddedConfig, n_layers: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.layout = config.layout()
        width, n_joints = config.width, len(config.joint_names)
        self.vision = VisionTower(config.vision_width)
        self.projector = nn.Sequential(
            nn.Linear(config.vision_width, width), nn.GELU(), nn.Linear(width, width)
        )
        self.visual_position = nn.Parameter(torch.randn(config.n_visual, width) * 0.02)
        self.proprioception = nn.Sequential(
            nn.Linear(n_joints, width), nn.GELU(), nn.Linear(width, width)
        )
        self.words = nn.Embedding(len(config.vocabulary), width)
        self.slots = nn.Parameter(torch.randn(config.chunk_size, width) * 0.02)
        self.bos = nn.Parameter(torch.randn(1, width) * 0.02)
        self.end = nn.Parameter(torch.randn(1, width) * 0.02)
        nn.init.normal_(self.words.weight, std=0.5)

        depth = config.n_layers if n_layers is None else n_layers
        llama = LlamaConfig(
            hidden_size=width,
            intermediate_size=config.mlp_width,
            num_hidden_layers=depth,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_heads,
            attn_implementation='sdpa',
            max_position_embeddings=1024,
        )
        self.layers = nn.ModuleList(LlamaDecoderLayer(llama, index) for index in range(depth))
        for layer in self.layers:
            # transformers takes causality from this attribute when no mask is given; OFT-style
            # decoding is bidirectional for every token.
            layer.self_attn.is_causal = False
        self.norm = LlamaRMSNorm(width)
        self.rotary = LlamaRotaryEmbedding(llama)
        self.head = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, n_joints)
        )
        self.register_buffer('proprioception_mean', torch.zeros(n_joints))
        self.register_buffer('proprioception_std', torch.ones(n_joints))
        self.register_buffer('delta_scale', torch.ones(config.chunk_size, n_joints))
        is_gripper = [name in config.gripper_names for name in config.joint_names]
        self.register_buffer('is_gripper', torch.tensor(is_gripper))

    def embed(
        self,
        visual: Float[torch.Tensor, 'B V C'],
        proprioception: Float[torch.Tensor, 'B J'],
        words: Int64[torch.Tensor, 'B W'],
    ) -> Float[torch.Tensor, 'B S D']:
        """Vision-tower tokens, measured joints (rad / closed fraction) and word ids -> decoder
        input."""
        batch = len(visual)
        scaled = (proprioception - self.proprioception_mean) / self.proprioception_std
        parts = [
            self.bos.expand(batch, 1, -1),
            self.projector(visual) + self.visual_position,
            self.proprioception(scaled)[:, None],
            self.words(words),
            self.slots.expand(batch, -1, -1),
            self.end.expand(batch, 1, -1),
        ]
        return torch.cat(parts, dim=1)

    def decode_full(
        self, embeddings: Float[torch.Tensor, 'B S D']
    ) -> Float[torch.Tensor, 'B S D']:
        """All layers on all tokens, final norm applied. The plain path that training uses."""
        position_ids = torch.arange(embeddings.shape[1], device=embeddings.device)[None]
        rotary = self.rotary(embeddings, position_ids)
        hidden = embeddings
        for layer in self.layers:
            hidden = layer(hidden, position_embeddings=rotary)
        return self.norm(hidden)

    def actions(
        self, slots: Float[torch.Tensor, 'B N D'], proprioception: Float[torch.Tensor, 'B J']
    ) -> Float[torch.Tensor, 'B N J']:
        """Hidden states of the action slots -> absolute joint targets (rad / closed fraction)."""
        raw = self.head(slots)
        absolute = proprioception[:, None] + raw * self.delta_scale
        return torch.where(self.is_gripper, raw, absolute)
