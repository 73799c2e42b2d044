"""Camera image -> the pixels pi0.5 was trained on: the whole image, in proportion, on black.

openpi and lerobot shrink differently, and a checkpoint knows only one of them: openpi lets Pillow
average over what becomes one pixel, lerobot samples between four pixels and skips the others.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image

from safe_pruner_ros.policies.pi05.config import Framework

UInt8Image = npt.NDArray[np.uint8]


def to_pixels(
    rgb: UInt8Image, size: int, framework: Framework
) -> Float[torch.Tensor, '3 size size']:
    """uint8 [h, w, 3] -> float32 in [-1, 1]."""
    if framework == 'openpi':
        rgb = resize_with_pad(rgb, size)
    image = torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1).float() / 255
    return sample_with_pad(image, size) * 2 - 1


def resize_with_pad(rgb: UInt8Image, size: int) -> UInt8Image:
    """uint8 [size, size, 3] with Pillow's bilinear filter, which averages when it shrinks
    (openpi-client, `image_tools.py`)."""
    height, width = _fitted(*rgb.shape[:2], size)
    if rgb.shape[:2] == (size, size):
        return rgb
    resized = Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR)
    canvas = np.zeros((size, size, 3), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    canvas[top : top + height, left : left + width] = np.asarray(resized)
    return canvas


def sample_with_pad(
    image: Float[torch.Tensor, '3 h w'], size: int
) -> Float[torch.Tensor, '3 size size']:
    """Values in [0, 1]; bilinear without averaging (lerobot, `resize_with_pad_torch`)."""
    height, width = _fitted(*image.shape[1:], size)
    if image.shape[1:] == (size, size):
        return image
    resized = F.interpolate(image[None], size=(height, width), mode='bilinear')[0].clamp(0, 1)
    top, left = (size - height) // 2, (size - width) // 2
    return F.pad(resized, (left, size - width - left, top, size - height - top))


def _fitted(height: int, width: int, size: int) -> tuple[int, int]:
    ratio = max(height, width) / size
    return max(1, int(height / ratio)), max(1, int(width / ratio))
