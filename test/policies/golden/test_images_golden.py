"""Image chains against numbers of upstream's own code, on seeded pictures.

LIBERO's chain: github.com/openvla/openvla c8f03f4, `experiments/robot/libero/libero_utils.py` and
`openvla_utils.py`, run with TensorFlow 2.21.0; openvla-oft 213c5ff gave the same bytes. pi0.5:
github.com/Physical-Intelligence/openpi 15a9616, `openpi_client.image_tools`, and
github.com/huggingface/lerobot 7427f31, `PI05Policy._preprocess_images`.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from safe_pruner_ros.policies.openvla.images import (
    centre_crop,
    jpeg_round_trip,
    resize_lanczos3,
)
from safe_pruner_ros.policies.pi05.images import resize_with_pad, to_pixels

PICTURES = {'libero': (256, 256), 'aloha': (480, 640)}


def stored_and_ours(
    golden: SimpleNamespace, name: str, image: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    numbers = golden.Numbers('images')
    return numbers[name].astype(int), numbers.at_places(name, image).astype(int)


@pytest.mark.parametrize('name', PICTURES)
def test_lanczos_and_crop_are_those_of_tensorflow(golden: SimpleNamespace, name: str) -> None:
    """Off by 1 of 255 on 0.005 % of the values, where a sum falls beside .5."""
    rgb = golden.picture(name, *PICTURES[name])
    native = golden.picture(f'{name} native', 224, 224)
    for stage, image in (
        ('lanczos', resize_lanczos3(rgb, 224)),
        ('crop', centre_crop(native, 0.9)),
    ):
        theirs, ours = stored_and_ours(golden, f'{name}/{stage}', image)
        off = np.abs(theirs - ours)
        assert off.max() <= 1 and (off > 0).mean() < 0.002, (stage, off.max(), (off > 0).mean())


@pytest.mark.parametrize('name', PICTURES)
def test_liberos_chain_differs_by_the_jpeg_decoder_only(
    golden: SimpleNamespace, name: str
) -> None:
    """Pillow's JPEG is TensorFlow's INTEGER_ACCURATE to the byte. TensorFlow's default decodes
    with a fast approximate transform that Pillow lacks: off by 1 of 255 on average, 5 at most."""
    rgb = golden.picture(name, *PICTURES[name])
    theirs, ours = stored_and_ours(golden, f'{name}/accurate', jpeg_round_trip(rgb))
    assert np.array_equal(theirs, ours)
    chain = resize_lanczos3(jpeg_round_trip(rgb[::-1, ::-1]), 224)
    for stage, image in (('chain', chain), ('cropped', centre_crop(chain, 0.9))):
        theirs, ours = stored_and_ours(golden, f'{name}/{stage}', image)
        off = np.abs(theirs - ours)
        assert off.max() <= 6 and off.mean() < 1.2, (stage, off.max(), off.mean())


@pytest.mark.parametrize('size', [(240, 320), (480, 640), (300, 200), (100, 100), (223, 500)])
def test_resize_with_pad_is_openpis_to_the_byte(
    golden: SimpleNamespace, size: tuple[int, int]
) -> None:
    image = resize_with_pad(golden.picture('openpi', *size), 224)
    theirs, ours = stored_and_ours(golden, f'openpi/{size[0]}x{size[1]}', image)
    assert np.array_equal(theirs, ours)


def test_resize_of_lerobot_does_not_average(golden: SimpleNamespace) -> None:
    """And openpi's, which does, is another picture."""
    numbers, rgb = golden.Numbers('pi05_lerobot'), golden.picture('pi05 view 0', 240, 320)
    name = 'two of three/camera/pixels'
    assert numbers.difference(name, to_pixels(rgb, 224, 'lerobot')) < 1e-6
    assert numbers.difference(name, to_pixels(rgb, 224, 'openpi')) > 1e-2
