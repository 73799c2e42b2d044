"""The vision half of OpenVLA and OpenVLA-OFT: DINOv2 and SigLIP side by side, and the projector.

Built from transformers' own layers. The checkpoints hold timm's parameter names
(`keys.py` renames them). Both towers are read after their last block but one, without the
final norm and without class and register tokens, so the last block, the final norm and SigLIP's
pooling head are neither built nor loaded: upstream runs them and drops the result
(openvla c8f03f4, modeling_prismatic.py:78-123).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import nn
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)


@dataclass(frozen=True)
class TowerSize:
    """A vision transformer. ``n_blocks`` as in the checkpoint; one fewer is run."""

    width: int
    n_blocks: int
    n_heads: int
    mlp_width: int
    patch: int = 14
    n_registers: int = 0


@dataclass(frozen=True)
class VisionSize:
    """Both towers; images are ``image_size`` px square."""

    dino: TowerSize
    siglip: TowerSize
    image_size: int = 224

    @property
    def grid(self) -> int:
        return self.image_size // self.dino.patch

    @property
    def width(self) -> int:
        return self.dino.width + self.siglip.width


# vision_backbone_id of config.json -> sizes, which no file of a checkpoint states (timm's
# vit_large_patch14_reg4_dinov2.lvd142m and vit_so400m_patch14_siglip_224).
VISION_SIZES: Mapping[str, VisionSize] = {
    'dinosiglip-vit-so-224px': VisionSize(
        TowerSize(1024, 24, 16, 4096, n_registers=4), TowerSize(1152, 27, 16, 4304)
    )
}


class DinoTower(nn.Module):
    """DINOv2 with registers; pixels [B, 3, H, W] -> patch tokens [B, N, C], row-major."""

    def __init__(self, size: TowerSize, image_size: int) -> None:
        super().__init__()
        if size.mlp_width % size.width:
            raise ValueError(f'DINOv2 MLP width must be a multiple of its width, got {size}')
        config = Dinov2WithRegistersConfig(
            hidden_size=size.width,
            num_hidden_layers=size.n_blocks - 1,
            num_attention_heads=size.n_heads,
            mlp_ratio=size.mlp_width // size.width,
            image_size=image_size,
            patch_size=size.patch,
            num_register_tokens=size.n_registers,
            attn_implementation='sdpa',
        )
        self.model = Dinov2WithRegistersModel(config)
        self.model.layernorm = nn.Identity()
        self.model.embeddings.mask_token = None  # for pre-training only
        self._n_prefix = 1 + size.n_registers

    def forward(self, pixels: Float[torch.Tensor, 'B 3 H W']) -> Float[torch.Tensor, 'B N C']:
        hidden = self.model.encoder(self.model.embeddings(pixels)).last_hidden_state
        return hidden[:, self._n_prefix :]


class SiglipTower(nn.Module):
    """SigLIP; pixels [B, 3, H, W] -> patch tokens [B, N, C], row-major. Exact GELU: timm's model
    has it where Google's own has the tanh form."""

    def __init__(self, size: TowerSize, image_size: int) -> None:
        super().__init__()
        config = SiglipVisionConfig(
            hidden_size=size.width,
            intermediate_size=size.mlp_width,
            num_hidden_layers=size.n_blocks - 1,
            num_attention_heads=size.n_heads,
            image_size=image_size,
            patch_size=size.patch,
            hidden_act='gelu',
            vision_use_head=False,
            attn_implementation='sdpa',
        )
        self.model = SiglipVisionModel(config)
        self.model.post_layernorm = nn.Identity()

    def fill_buffers(self, device: torch.device) -> None:
        """Buffers no checkpoint holds, after a construction on the meta device."""
        embeddings = self.model.embeddings
        embeddings.position_ids = torch.arange(embeddings.num_positions, device=device)[None]

    def forward(self, pixels: Float[torch.Tensor, 'B 3 H W']) -> Float[torch.Tensor, 'B N C']:
        hidden: torch.Tensor = self.model.encoder(self.model.embeddings(pixels)).last_hidden_state
        return hidden


class VisionEncoder(nn.Module):
    """Images -> visual tokens as they enter the decoder (openvla modeling_prismatic.py:78-156)."""

    def __init__(self, size: VisionSize, decoder_width: int) -> None:
        super().__init__()
        self.size = size
        self.dino = DinoTower(size.dino, size.image_size)
        self.siglip = SiglipTower(size.siglip, size.image_size)
        self.projector = Projector(size.width, decoder_width)

    def forward(self, pixels: Float[torch.Tensor, 'B 6 H W']) -> Float[torch.Tensor, 'B N D']:
        """``pixels``: channels 0-2 normalised for DINOv2, 3-5 for SigLIP."""
        dino, siglip = pixels.split(3, dim=1)
        features = torch.cat([self.dino(dino), self.siglip(siglip)], dim=2)
        tokens: torch.Tensor = self.projector(features)
        return tokens


class Projector(nn.Module):
    def __init__(self, vision_width: int, decoder_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_width, 4 * vision_width)
        self.fc2 = nn.Linear(4 * vision_width, decoder_width)
        self.fc3 = nn.Linear(decoder_width, decoder_width)
        self.gelu = nn.GELU()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.fc3(self.gelu(self.fc2(self.gelu(self.fc1(features)))))
        return projected
