"""Camera image -> the pixels OpenVLA and OpenVLA-OFT were trained on.

Pillow's bicubic resize to a square (upstream's "resize-naive") and two normalisations; before
that, when asked, the chain of upstream's evaluations: squash to the size the data were stored at
(ALOHA), rotate (LIBERO), JPEG, Lanczos, centre crop. No TensorFlow for that: numpy agrees with it
within 1 of 255 per resize.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from PIL import Image

from safe_pruner_ros.policies.checkpoint_files import whole_number

UInt8Image = npt.NDArray[np.uint8]
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class ImageChain:
    """What happens to an image before the resize.

    ``rotate_180``: LIBERO's cameras hang upside down. ``stored_px``: the training data were
    squashed to a square of this side before they were stored (ALOHA: 256); 0 = not.
    ``jpeg_lanczos``: the round trip that the training data took. ``crop_area``: centre crop of
    this share of the area, 0.9 for checkpoints trained with random crops; 1 = none.
    """

    rotate_180: bool = False
    stored_px: int = 0
    jpeg_lanczos: bool = False
    crop_area: float = 1.0

    def __post_init__(self) -> None:
        if self.stored_px < 0:
            raise ValueError(f'stored_px must be at least 0, got {self.stored_px}; 0 is none')
        if not 0 < self.crop_area <= 1:
            raise ValueError(
                f'crop_area must be in (0, 1], got {self.crop_area}; use 1.0 for no crop'
            )


LIBERO_CHAIN = ImageChain(rotate_180=True, jpeg_lanczos=True, crop_area=0.9)
# openvla-oft 213c5ff, experiments/robot: aloha/aloha_utils.py:39 (256 px), openvla_utils.py:520
# (JPEG, Lanczos) and :596 (crop).
ALOHA_CHAIN = ImageChain(stored_px=256, jpeg_lanczos=True, crop_area=0.9)


@dataclass(frozen=True)
class ImageProcessor:
    """``mean``/``std``: RGB of each tower, DINOv2 first. From the checkpoint and never from here:
    the official files hold bfloat16-rounded ImageNet numbers."""

    size: int
    mean: tuple[Triple, Triple]
    std: tuple[Triple, Triple]
    chain: ImageChain = field(default_factory=ImageChain)

    def __call__(self, rgb: UInt8Image) -> Float[torch.Tensor, '6 H W']:
        """uint8 [h, w, 3] -> float32 [6, size, size]."""
        return self.normalise(self.resize(rgb))

    def resize(self, rgb: UInt8Image) -> UInt8Image:
        """[h, w, 3] -> [size, size, 3]."""
        if self.chain.rotate_180:
            rgb = rgb[::-1, ::-1]
        if self.chain.stored_px:
            rgb = _resize_bicubic(rgb, self.chain.stored_px)
        if self.chain.jpeg_lanczos:
            rgb = resize_lanczos3(jpeg_round_trip(rgb), self.size)
        if self.chain.crop_area < 1:
            # Upstream crops what is already of the network's size.
            rgb = centre_crop(_resize_bicubic(rgb, self.size), self.chain.crop_area)
        return _resize_bicubic(rgb, self.size)

    def normalise(self, resized: UInt8Image) -> Float[torch.Tensor, '6 H W']:
        """uint8 [size, size, 3] -> float32, for both towers."""
        pixels = torch.from_numpy(resized).permute(2, 0, 1).float() / 255
        towers = [
            (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
            for mean, std in zip(self.mean, self.std, strict=True)
        ]
        return torch.cat(towers)


def read_image_processor(
    config: Mapping[str, Any], chain: ImageChain, source: Path
) -> ImageProcessor:
    """From preprocessor_config.json. Raises ValueError for what is missing or not supported."""
    missing = [key for key in ('means', 'stds', 'input_sizes') if key not in config]
    if missing:
        raise ValueError(f'{source} misses {missing}; it has {sorted(config)}')
    # Without it upstream letterboxes (openvla c8f03f4, processing_prismatic.py:39).
    strategy = config.get('image_resize_strategy', 'letterbox')
    if strategy != 'resize-naive':
        raise ValueError(
            f'{source} asks for image_resize_strategy {strategy!r:.80} (letterbox where it names '
            "none); only 'resize-naive', that of the official checkpoints, is supported"
        )
    interpolations = config.get('interpolations', ['bicubic'])
    if not isinstance(interpolations, list) or any(kind != 'bicubic' for kind in interpolations):
        raise ValueError(
            f"{source} asks for interpolations {interpolations!r:.80}; only 'bicubic', that of "
            'the official checkpoints, is supported'
        )
    side = _square_side(config['input_sizes'], source)
    mean, std = (_two_triples(config[key], key, source) for key in ('means', 'stds'))
    return ImageProcessor(side, mean, std, chain)


def _square_side(sizes: Any, source: Path) -> int:
    """Of [channels, height, width] by tower."""
    first = sizes[0] if isinstance(sizes, list) and sizes else None
    if (
        not isinstance(first, list | tuple)
        or len(first) != 3
        or first[1] != first[2]
        or any(size != first for size in sizes)
    ):
        raise ValueError(
            f'{source}: both towers must read one square size, [3, side, side] in input_sizes, '
            f'got {sizes!r:.80}'
        )
    return whole_number(source, {'input_sizes': first[1]}, 'input_sizes', 1)


def _two_triples(values: Any, key: str, source: Path) -> tuple[Triple, Triple]:
    try:
        array = np.array(values, np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if (
        array.shape != (2, 3)
        or not np.isfinite(array).all()
        or (key == 'stds' and array.min() <= 0)
    ):
        raise ValueError(f'{source}: {key} must be RGB of two towers, got {values!r:.200}')
    first, second = (tuple(row) for row in array.tolist())
    return first, second


def _resize_bicubic(rgb: UInt8Image, size: int) -> UInt8Image:
    if rgb.shape[:2] == (size, size):
        return np.ascontiguousarray(rgb)
    image = Image.fromarray(np.ascontiguousarray(rgb))
    return np.array(image.resize((size, size), Image.Resampling.BICUBIC))


def jpeg_round_trip(rgb: UInt8Image) -> UInt8Image:
    """JPEG at quality 95 with halved chroma, as TensorFlow's default writes it."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb)).save(file, 'JPEG', quality=95, subsampling=2)
    return np.array(Image.open(file))


def resize_lanczos3(rgb: UInt8Image, size: int) -> UInt8Image:
    """Separable Lanczos with radius 3 and antialiasing, in float and rounded once, as
    tf.image.resize does it. Pillow rounds between its two passes and differs more."""
    rows, cols = (_lanczos_weights(n, size) for n in rgb.shape[:2])
    resized = np.einsum('yh,hwc->ywc', rows, rgb.astype(np.float32))
    resized = np.einsum('xw,ywc->yxc', cols, resized)
    return resized.round().clip(0, 255).astype(np.uint8)


def _lanczos_weights(n_in: int, n_out: int) -> npt.NDArray[np.float32]:
    scale = n_in / n_out
    widened = max(scale, 1.0)  # antialiasing: the kernel covers the input pixels of one output
    centre = (np.arange(n_out) + 0.5) * scale
    x = np.abs(np.arange(n_in)[None, :] + 0.5 - centre[:, None]) / widened
    weights = np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def centre_crop(rgb: UInt8Image, area: float) -> UInt8Image:
    """Centre crop of this share of the area, back to full size bilinearly: corner-aligned, as
    tf.image.crop_and_resize samples, and truncated as its conversion to uint8 does."""
    image = rgb.astype(np.float32) / np.float32(255)
    for axis in (0, 1):
        n = rgb.shape[axis]
        side = np.sqrt(np.float32(area))
        at = ((1 - side) / 2 + np.arange(n, dtype=np.float32) / (n - 1) * side) * (n - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, n - 1)
        part = (at - low).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        image = image.take(low, axis) * (1 - part) + image.take(high, axis) * part
    return (image.clip(0, 1) * np.float32(255.5)).astype(np.uint8)
