"""Sizes of a pi0.5 network. What a robot makes of it is in `deployment.py`.

Source of the sizes: Physical-Intelligence/openpi, `models/gemma.py` (variants) and
`models/siglip.py` (So400m/14).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from transformers import GemmaConfig, SiglipVisionConfig

Framework = Literal['openpi', 'lerobot']


@dataclass(frozen=True)
class GemmaSize:
    """One Gemma stack; attention has ``n_kv_heads`` key heads of ``head_dim`` channels."""

    width: int
    depth: int
    mlp_width: int
    n_heads: int = 8
    n_kv_heads: int = 1
    head_dim: int = 256

    def transformers_config(self, vocabulary_size: int) -> GemmaConfig:
        """SDPA attention; tanh GELU; rotary base 1e4 and eps 1e-6 are Gemma's own defaults."""
        return GemmaConfig(
            vocab_size=vocabulary_size,
            hidden_size=self.width,
            intermediate_size=self.mlp_width,
            num_hidden_layers=self.depth,
            num_attention_heads=self.n_heads,
            num_key_value_heads=self.n_kv_heads,
            head_dim=self.head_dim,
            hidden_act='gelu_pytorch_tanh',
            bos_token_id=None,  # for generate(), which is not used; the expert has no such words
            eos_token_id=None,
            attn_implementation='sdpa',
        )


VARIANTS = {
    'gemma_2b': GemmaSize(2048, 18, 16384),
    'gemma_300m': GemmaSize(1024, 18, 4096),
    'dummy': GemmaSize(64, 4, 128, head_dim=16),
}


@dataclass(frozen=True)
class VisionSize:
    """SigLIP tower; images are ``image_size`` px square. The FFN is 4304 wide, not the 4096 that
    transformers' PaliGemma assumes."""

    width: int = 1152
    depth: int = 27
    mlp_width: int = 4304
    n_heads: int = 16
    image_size: int = 224
    patch_size: int = 14

    @property
    def grid(self) -> int:
        """Rows (and columns) of visual tokens in one image."""
        return self.image_size // self.patch_size

    def transformers_config(self) -> SiglipVisionConfig:
        return SiglipVisionConfig(
            hidden_size=self.width,
            intermediate_size=self.mlp_width,
            num_hidden_layers=self.depth,
            num_attention_heads=self.n_heads,
            image_size=self.image_size,
            patch_size=self.patch_size,
            vision_use_head=False,
            attn_implementation='sdpa',
        )


@dataclass(frozen=True)
class Pi05Config:
    """``action_horizon`` rows of ``action_dim`` values come out; a robot uses the first few.

    ``framework``: whose code trained the checkpoint. They shrink images differently
    (`images.py`) and round the flow-matching times differently (`expert.euler_times`).
    """

    prefix: GemmaSize = VARIANTS['gemma_2b']
    expert: GemmaSize = VARIANTS['gemma_300m']
    vision: VisionSize = field(default_factory=VisionSize)
    vocabulary_size: int = 257152
    action_dim: int = 32
    action_horizon: int = 50
    n_denoising_steps: int = 10
    framework: Framework = 'openpi'

    def __post_init__(self) -> None:
        shared = ('depth', 'n_kv_heads', 'head_dim')
        differs = [n for n in shared if getattr(self.prefix, n) != getattr(self.expert, n)]
        if differs:
            raise ValueError(
                'the action expert reads the keys and values of the prefix layer of the same '
                f'index, so both stacks must agree in {shared}; they differ in {differs}'
            )
        if self.n_denoising_steps < 1:
            raise ValueError(f'n_denoising_steps must be at least 1, got {self.n_denoising_steps}')
