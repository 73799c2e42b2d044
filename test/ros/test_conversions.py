"""Image and joint messages from anywhere: converted exactly, or refused with a reason and cheaply.

Messages are stand-ins with the fields of the real ones: no ROS is needed here.
"""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from array import array
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_pruner_ros.ros.conversions import (
    CHANNELS,
    DEFAULT_ENCODINGS,
    InputError,
    compressed_to_camera_image,
    image_to_camera_image,
    joint_state_to_positions,
    stamp_to_ns,
)

ALL = tuple(CHANNELS)


def header(sec: int = 1, nanosec: int = 5) -> SimpleNamespace:
    return SimpleNamespace(stamp=SimpleNamespace(sec=sec, nanosec=nanosec), frame_id='')


def raw(encoding='rgb8', height=2, width=3, step=None, data=None, **more) -> SimpleNamespace:
    step = width * CHANNELS.get(encoding, 3) if step is None else step
    data = bytes(i % 256 for i in range(step * height)) if data is None else data
    return SimpleNamespace(
        header=header(), encoding=encoding, height=height, width=width, step=step,
        data=array('B', data), is_bigendian=0, **more,
    )  # fmt: skip


def compressed(data: bytes, fmt: str = 'jpeg') -> SimpleNamespace:
    return SimpleNamespace(header=header(), format=fmt, data=array('B', data))


def picture(height=48, width=64) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 3, y * 4, (x + y)], axis=2).astype(np.uint8)


def coded(extension: str, rgb: np.ndarray | None = None) -> bytes:
    rgb = picture() if rgb is None else rgb
    done, data = cv2.imencode(extension, rgb[:, :, ::-1] if rgb.ndim == 3 else rgb)
    assert done
    return data.tobytes()


def refused(code: str, function, *args) -> str:
    with pytest.raises(InputError) as caught:
        function(*args)
    assert caught.value.code == code
    return str(caught.value)


@pytest.mark.parametrize('encoding', ALL)
@pytest.mark.parametrize('padding', [0, 5])
def test_raw_pixels_arrive_unchanged(encoding: str, padding: int) -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    if encoding == 'mono8':
        rgb[:] = rgb[:, :, :1]
    alpha = np.full((4, 5, 1), 7, np.uint8)
    layout = {
        'rgb8': rgb, 'bgr8': rgb[:, :, ::-1], 'mono8': rgb[:, :, :1],
        'rgba8': np.concatenate([rgb, alpha], 2),
        'bgra8': np.concatenate([rgb[:, :, ::-1], alpha], 2),
    }[encoding]  # fmt: skip
    rows = layout.reshape(4, -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=99)
    msg = raw(encoding, 4, 5, rows.shape[1], rows.tobytes())
    image = image_to_camera_image(msg, 'head', ALL)
    np.testing.assert_array_equal(image.rgb, rgb)
    assert image.rgb.flags.c_contiguous
    assert image.stamp_ns == 1_000_000_005


@pytest.mark.parametrize('encoding', ['mono8', '16UC1', 'bayer_bggr8', 'yuv422', '', 'x' * 5000])
def test_other_encodings_are_refused_by_name(encoding: str) -> None:
    text = refused('ENCODING', image_to_camera_image, raw(encoding), 'head', DEFAULT_ENCODINGS)
    assert "'head'" in text and encoding[:50] in text and 'robot file' in text
    assert len(text) < 400


def test_a_bridged_encoding_without_cv_bridge_says_what_to_install() -> None:
    try:
        import cv_bridge  # noqa: F401
    except ImportError:
        msg = raw('bayer_rggb8', 2, 4, 4)
        text = refused('ENCODING', image_to_camera_image, msg, 'head', ('bayer_rggb8',))
        assert 'cv-bridge' in text


@pytest.mark.parametrize(
    ('change', 'code'),
    [
        ({'data': b''}, 'IMAGE_DATA'),
        ({'data': bytes(17)}, 'IMAGE_DATA'),
        ({'data': bytes(19)}, 'IMAGE_DATA'),
        ({'step': 8, 'data': bytes(16)}, 'IMAGE_STEP'),
        ({'step': 0, 'data': b''}, 'IMAGE_STEP'),
        ({'height': 0, 'data': b''}, 'IMAGE_SIZE'),
        ({'width': 0, 'step': 9, 'data': bytes(18)}, 'IMAGE_SIZE'),
        ({'height': 2**31, 'data': bytes(18)}, 'IMAGE_SIZE'),
        ({'width': 2**32 - 1, 'step': 9, 'data': bytes(18)}, 'IMAGE_SIZE'),
        ({'height': 8000, 'width': 8000, 'data': bytes(18)}, 'IMAGE_SIZE'),
    ],
)
def test_raw_sizes_are_checked_before_memory_is_touched(change: dict, code: str) -> None:
    assert "'head'" in refused(code, image_to_camera_image, raw(**change), 'head')


@given(
    encoding=st.sampled_from([*ALL, 'yuv422', 'garbage']),
    height=st.one_of(st.integers(0, 9), st.integers(0, 2**32 - 1)),
    width=st.one_of(st.integers(0, 9), st.integers(0, 2**32 - 1)),
    step=st.one_of(st.integers(0, 40), st.integers(0, 2**32 - 1)),
    data=st.binary(max_size=400),
    bigendian=st.integers(0, 255),
)
@settings(max_examples=300, deadline=None)
def test_any_raw_message_converts_or_is_refused(
    encoding, height, width, step, data, bigendian
) -> None:
    msg = raw(encoding, height, width, step, data)
    msg.is_bigendian = bigendian
    tracemalloc.start()
    try:
        image = image_to_camera_image(msg, 'head', (*ALL, 'yuv422'))
    except InputError as error:
        assert error.code and str(error)
    else:
        assert image.rgb.shape == (height, width, 3)
        assert len(data) == step * height
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 200_000


@pytest.mark.parametrize(('extension', 'tolerance'), [('.jpg', 12), ('.png', 0)])
@pytest.mark.parametrize(
    ('fmt', 'swapped'),
    [('jpeg', False), ('bgr8; jpeg compressed bgr8', False), ('rgb8; png compressed rgb8', True)],
)
def test_compressed_pixels_arrive_in_rgb(extension, tolerance, fmt, swapped) -> None:
    rgb = picture()
    stored = rgb[:, :, ::-1] if swapped else rgb
    image = compressed_to_camera_image(compressed(coded(extension, stored), fmt), 'head')
    assert image.rgb.flags.c_contiguous
    assert np.abs(image.rgb.astype(int) - rgb).max() <= tolerance


@pytest.mark.parametrize('extension', ['.jpg', '.png'])
@pytest.mark.parametrize('share', [0.99, 0.9, 0.5, 0.1])
def test_truncation_is_refused_whatever_opencv_does(extension: str, share: float) -> None:
    data = coded(extension)
    cut = data[: int(len(data) * share)]
    text = refused('IMAGE_DATA', compressed_to_camera_image, compressed(cut), 'head')
    assert "'head'" in text


def test_a_jpeg_padded_with_zeros_by_the_driver_is_accepted() -> None:
    data = coded('.jpg') + bytes(100)
    assert compressed_to_camera_image(compressed(data), 'head').rgb.shape == (48, 64, 3)


@pytest.mark.parametrize(
    'data',
    [b'', b'\xff', b'\xff\xd8', b'\xff\xd8\xff\xd9', b'\xff\xd8\xff\xda\x00\x02\xff\xd9',
     b'\x89PNG\r\n\x1a\n', b'GIF89a' + bytes(50), bytes(1000)],
)  # fmt: skip
def test_headers_without_a_picture_are_refused(data: bytes) -> None:
    refused('IMAGE_DATA', compressed_to_camera_image, compressed(data), 'head')


def png_bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
        )

    rows = zlib.compress(bytes(min(width * 3 + 1, 10_000) * 100), 9)
    head = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')


def test_an_image_bomb_is_refused_from_its_header(monkeypatch) -> None:
    monkeypatch.setattr(cv2, 'imdecode', lambda *_: pytest.fail('decoded a bomb'))
    refused(
        'IMAGE_SIZE', compressed_to_camera_image, compressed(png_bomb(30000, 30000), 'png'), 'head'
    )


@pytest.mark.parametrize('outcome', ['none', 'error', 'smaller'])
def test_what_a_decoder_may_do_with_broken_data(monkeypatch, outcome: str) -> None:
    def imdecode(*_):
        if outcome == 'error':
            raise cv2.error('broken')
        return None if outcome == 'none' else np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr(cv2, 'imdecode', imdecode)
    refused('IMAGE_DATA', compressed_to_camera_image, compressed(coded('.jpg')), 'head')


@pytest.mark.parametrize('fmt', ['16UC1; compressedDepth png', 'raw'])
def test_depth_is_no_camera_image(fmt: str) -> None:
    text = refused('ENCODING', compressed_to_camera_image, compressed(coded('.png'), fmt), 'head')
    assert 'colour' in text


def test_a_grey_jpeg_needs_permission() -> None:
    msg = compressed(coded('.jpg', picture()[:, :, 0]))
    refused('ENCODING', compressed_to_camera_image, msg, 'head')
    rgb = compressed_to_camera_image(msg, 'head', ('rgb8', 'mono8')).rgb
    np.testing.assert_array_equal(rgb[:, :, 0], rgb[:, :, 2])


JPEG, PNG = coded('.jpg', picture(16, 24)), coded('.png', picture(16, 24))


@given(
    data=st.sampled_from([JPEG, PNG]),
    flips=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=20),
    keep=st.integers(0, 4000),
    tail=st.binary(max_size=20),
)
@settings(max_examples=300, deadline=None)
def test_mutated_images_never_crash(data, flips, keep, tail) -> None:
    mutated = bytearray(data[:keep])
    for place, value in flips:
        if place < len(mutated):
            mutated[place] = value
    try:
        image = compressed_to_camera_image(compressed(bytes(mutated) + tail), 'head')
    except InputError:
        return
    assert image.rgb.dtype == np.uint8


def joints(names, positions) -> SimpleNamespace:
    return SimpleNamespace(header=header(), name=names, position=positions)


def test_joints_map_by_name() -> None:
    msg = joints(['b', 'a'], array('d', [1.0, 5e-324]))
    assert joint_state_to_positions(msg, 'left') == {'a': 5e-324, 'b': 1.0}


@pytest.mark.parametrize(
    ('names', 'positions', 'code', 'word'),
    [
        (['a', 'b'], [1.0], 'JOINT_LENGTH', '2 names but 1 positions'),
        (['a'], [], 'JOINT_LENGTH', '0 positions'),
        (['a', 'a'], [1.0, 2.0], 'JOINT_DUPLICATE', "['a']"),
        (['a', 'b'], [1.0, float('nan')], 'JOINT_NONFINITE', "['b']"),
        (['a', 'b'], [float('inf'), 1.0], 'JOINT_NONFINITE', "['a']"),
        ([f'j{i}' for i in range(2000)], [0.0] * 2000, 'JOINT_LENGTH', '2000'),
    ],
)
def test_unusable_joint_states_are_refused(names, positions, code, word) -> None:
    text = refused(code, joint_state_to_positions, joints(names, positions), 'left')
    assert word in text and "'left'" in text


@given(
    st.lists(st.text(max_size=8), max_size=12),
    st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=12),
)
@settings(max_examples=200, deadline=None)
def test_any_joint_state_is_finite_or_refused(names, positions) -> None:
    try:
        result = joint_state_to_positions(joints(names, positions), 'left')
    except InputError:
        return
    assert len(result) == len(names) == len(positions)
    assert np.isfinite(list(result.values())).all()


@pytest.mark.parametrize(('sec', 'nanosec'), [(-1, 0), (0, 10**9), (5, 2**32 - 1)])
def test_impossible_stamps_are_refused(sec: int, nanosec: int) -> None:
    stamp = SimpleNamespace(sec=sec, nanosec=nanosec)
    refused('STAMP_INVALID', stamp_to_ns, stamp)
