"""The embedded policy's vision tower: an image becomes an 8 x 8 grid of tokens, 32 px each.

Convolutions with a stride of 32 in all, then mixing over the whole grid, so that a token knows the
object it shows part of. Frozen while the decoder is trained, like the towers of the big policies.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import nn

STRIDE = 32


class GridMixer(nn.Module):
    """Depthwise 7 x 7 convolution and a channel MLP (ConvNeXt block, arXiv 2201.03545)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.GroupNorm(1, width)
        self.mlp = nn.Sequential(
            nn.Conv2d(width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, width, 1)
        )

    def forward(self, grid: torch.Tensor) -> torch.Tensor:
        return grid + self.mlp(self.norm(self.spatial(grid)))


class VisionTower(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()

        def block(cin: int, cout: int, kernel: int, stride: int) -> list[nn.Module]:
            padding = 0 if kernel == stride else kernel // 2
            conv = nn.Conv2d(cin, cout, kernel, stride, padding)
            return [conv, nn.GroupNorm(1, cout), nn.GELU()]

        self.stem = nn.Sequential(
            *block(3, 32, 4, 4),
            *block(32, 48, 3, 2),
            *block(48, 96, 3, 2),
            *block(96, width, 3, 2),
        )
        self.mixers = nn.Sequential(GridMixer(width), GridMixer(width))
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Float[torch.Tensor, 'B 3 H W']) -> Float[torch.Tensor, 'B N C']:
        """RGB in [0, 1], H and W multiples of 32 -> tokens in row-major order."""
        grid = self.mixers(self.stem(images * 2 - 1))
        return self.norm(grid.flatten(2).transpose(1, 2))
