"""The embedded policy's vision tower: an image becomes an 8 x 8 grid of tokens, 32 px each.

Convolutions with a stride of 32 in all and mixing blocks in between, so that a token knows the
object it shows part of. The first convolution's patches overlap: objects are 12 to 25 px wide, and
a stem of separate 4 x 4 patches told their colours but not their shapes (docs/experiments.md).
Frozen while the decoder is trained, like the towers of the big policies.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import nn

STRIDE = 32


class GridMixer(nn.Module):
    """Depthwise convolution and a channel MLP (ConvNeXt block, arXiv 2201.03545, with batch
    normalisation, which costs nothing at inference)."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.Conv2d(width, 2 * width, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(2 * width, width, 1),
        )

    def forward(self, grid: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = grid + self.block(grid)
        return mixed


class VisionTower(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()

        def down(cin: int, cout: int, kernel: int = 3, stride: int = 2) -> list[nn.Module]:
            conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False)
            return [conv, nn.BatchNorm2d(cout), nn.ReLU(inplace=True)]

        self.grid = nn.Sequential(
            *down(3, 48, kernel=7, stride=4),
            *down(48, 64),
            GridMixer(64, 5),
            *down(64, 96),
            GridMixer(96, 5),
            *down(96, width),
            GridMixer(width, 7),
            GridMixer(width, 7),
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Float[torch.Tensor, 'B 3 H W']) -> Float[torch.Tensor, 'B N C']:
        """RGB in [0, 1], H and W multiples of 32 -> tokens in row-major order."""
        grid = self.grid(images * 2 - 1)
        return self.norm(grid.flatten(2).transpose(1, 2))
