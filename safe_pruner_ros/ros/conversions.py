"""Messages <-> types. Pure functions; every size and encoding is checked before memory is touched.

Nothing here knows topics, nodes or clocks. A message that cannot be used raises ``InputError``
whose text names the source, what arrived and what to do; the caller counts it and goes on.
Big-endian flags are ignored: all accepted encodings have one byte per channel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from safe_pruner_ros.ros.image_codec import CodedImage, inspect
from safe_pruner_ros.types import CameraImage, UInt8Array

if TYPE_CHECKING:
    from builtin_interfaces.msg import Time
    from sensor_msgs.msg import CompressedImage, Image, JointState

NS_PER_S = 1_000_000_000
# A 4096 x 4096 picture; the largest camera of the supported robots is 1280 x 720.
MAX_IMAGE_PIXELS = 4096 * 4096
MAX_IMAGE_SIDE_PX = 8192
MAX_COMPRESSED_BYTES = 64 * 1024 * 1024
MAX_JOINTS_IN_MESSAGE = 1024
CHANNELS = {'rgb8': 3, 'bgr8': 3, 'rgba8': 4, 'bgra8': 4, 'mono8': 1}
# Converted by cv_bridge where that is installed, and only if the robot file allows them.
BRIDGED_CHANNELS = {
    'yuv422': 2,
    'yuv422_yuy2': 2,
    'bayer_rggb8': 1,
    'bayer_bggr8': 1,
    'bayer_gbrg8': 1,
    'bayer_grbg8': 1,
}
DEFAULT_ENCODINGS: tuple[str, ...] = ('rgb8', 'bgr8', 'rgba8', 'bgra8')


class InputError(ValueError):
    """A message that must not be used. ``code`` is stable and is what diagnostics count."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def stamp_to_ns(stamp: Time, source: str = 'message') -> int:
    """builtin_interfaces/Time -> ns. 0 means that the sender set no stamp."""
    if stamp.nanosec >= NS_PER_S or stamp.sec < 0:
        raise InputError(
            'STAMP_INVALID',
            f'{source}: stamp {stamp.sec} s {stamp.nanosec} ns is no time; '
            'the driver must fill header.stamp from the ROS clock',
        )
    return int(stamp.sec) * NS_PER_S + int(stamp.nanosec)


def ns_to_stamp(stamp_ns: int) -> Time:
    from builtin_interfaces.msg import Time

    if not 0 <= stamp_ns < 2**31 * NS_PER_S:
        raise ValueError(f'stamp must be in [0, 2**31) s, got {stamp_ns} ns')
    return Time(sec=stamp_ns // NS_PER_S, nanosec=stamp_ns % NS_PER_S)


def image_to_camera_image(
    msg: Image, view: str, allowed_encodings: Sequence[str] = DEFAULT_ENCODINGS
) -> CameraImage:
    """sensor_msgs/Image -> RGB. ``rgb8`` shares memory with the message."""
    encoding = msg.encoding
    channels = CHANNELS.get(encoding) or BRIDGED_CHANNELS.get(encoding)
    if channels is None or encoding not in allowed_encodings:
        raise InputError(
            'ENCODING',
            f'camera {view!r}: encoding {_short(encoding)!r} is not accepted, expected one of '
            f'{sorted(allowed_encodings)}; change the driver or the encodings of this camera in '
            'the robot file',
        )
    height, width, step = int(msg.height), int(msg.width), int(msg.step)
    _check_size(view, height, width)
    if step < width * channels:
        raise InputError(
            'IMAGE_STEP',
            f'camera {view!r}: step {step} is less than a row of {width} {encoding} pixels '
            f'({width * channels} bytes); the driver fills the message wrongly',
        )
    if len(msg.data) != step * height:
        raise InputError(
            'IMAGE_DATA',
            f'camera {view!r}: {len(msg.data)} data bytes, but {height} rows of {step} bytes are '
            f'{step * height}; the image is truncated or the header is wrong',
        )
    stamp_ns = stamp_to_ns(msg.header.stamp, f'camera {view!r}')
    if encoding in BRIDGED_CHANNELS:
        return CameraImage(_bridge_to_rgb(msg, view), view, stamp_ns)
    data: UInt8Array = np.frombuffer(msg.data, np.uint8)
    rows = data.reshape(height, step)[:, : width * channels]
    pixels = rows.reshape(height, width, channels)
    return CameraImage(_to_rgb(pixels, encoding), view, stamp_ns)


def compressed_to_camera_image(
    msg: CompressedImage, view: str, allowed_encodings: Sequence[str] = DEFAULT_ENCODINGS
) -> CameraImage:
    """sensor_msgs/CompressedImage (JPEG or PNG) -> RGB; the header is believed before decoding."""
    if 'compressedDepth' in msg.format or msg.format.strip().lower() == 'raw':
        raise InputError(
            'ENCODING',
            f'camera {view!r}: format {_short(msg.format)!r} is a depth image; '
            'point the topic of this camera at its colour stream',
        )
    if len(msg.data) > MAX_COMPRESSED_BYTES:
        raise InputError(
            'IMAGE_SIZE',
            f'camera {view!r}: {len(msg.data)} compressed bytes are more than '
            f'{MAX_COMPRESSED_BYTES}',
        )
    data = memoryview(msg.data)
    try:
        header = inspect(data)
    except ValueError as error:
        raise InputError(
            'IMAGE_DATA',
            f'camera {view!r}: {error}; check the network and the format of the topic '
            f'({_short(msg.format)!r})',
        ) from error
    codecs = [name for name in allowed_encodings if name in ('jpeg', 'png')]
    if codecs and header.codec not in codecs:
        raise InputError(
            'ENCODING',
            f'camera {view!r}: the data is {header.codec}, the robot file accepts {codecs}; '
            'change the driver or the encodings of this camera',
        )
    _check_size(view, header.height, header.width)
    if header.channels < 3 and 'mono8' not in allowed_encodings:
        raise InputError(
            'ENCODING',
            f'camera {view!r}: the compressed image is grey; add mono8 to the encodings of this '
            'camera in the robot file if that is meant',
        )
    rgb = _decode(data, header, view, swapped='compressed rgb' in msg.format)
    return CameraImage(rgb, view, stamp_to_ns(msg.header.stamp, f'camera {view!r}'))


def camera_image_to_message(image: CameraImage, frame_id: str = '') -> Image:
    """RGB -> sensor_msgs/Image rgb8."""
    from sensor_msgs.msg import Image

    msg = Image()
    msg.header.stamp = ns_to_stamp(image.stamp_ns)
    msg.header.frame_id = frame_id
    msg.height, msg.width = image.rgb.shape[:2]
    msg.encoding = 'rgb8'
    msg.step = 3 * msg.width
    msg.data = np.ascontiguousarray(image.rgb).tobytes()
    return msg


def camera_image_to_compressed(
    image: CameraImage, quality: int = 90, frame_id: str = ''
) -> CompressedImage:
    """RGB -> sensor_msgs/CompressedImage JPEG, ``quality`` in [1, 100]."""
    from sensor_msgs.msg import CompressedImage

    done, data = cv2.imencode(
        '.jpg', np.ascontiguousarray(image.rgb[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    if not done:
        raise ValueError(f'view {image.view!r}: {list(image.rgb.shape)} cannot become a JPEG')
    msg = CompressedImage()
    msg.header.stamp = ns_to_stamp(image.stamp_ns)
    msg.header.frame_id = frame_id
    msg.format = 'rgb8; jpeg compressed bgr8'
    msg.data = data.tobytes()
    return msg


def joint_state_to_positions(msg: JointState, source: str) -> dict[str, float]:
    """Names -> positions as they arrived, every one of them finite.

    Serves all messages with ``name`` and ``position`` (JointState, astribot RobotJointState).
    """
    names = list(msg.name)
    if len(names) != len(msg.position):
        raise InputError(
            'JOINT_LENGTH',
            f'joint states from {source!r}: {len(names)} names but {len(msg.position)} positions; '
            'the driver must send both with the same length',
        )
    if len(names) > MAX_JOINTS_IN_MESSAGE:
        raise InputError(
            'JOINT_LENGTH',
            f'joint states from {source!r}: {len(names)} joints are more than '
            f'{MAX_JOINTS_IN_MESSAGE}',
        )
    positions = {str(name): float(value) for name, value in zip(names, msg.position, strict=True)}
    if len(positions) != len(names):
        repeated = sorted({_short(name) for name in names if names.count(name) > 1})
        raise InputError(
            'JOINT_DUPLICATE', f'joint states from {source!r}: names repeat: {repeated}'
        )
    bad = [_short(name) for name, value in positions.items() if not math.isfinite(value)]
    if bad:
        raise InputError(
            'JOINT_NONFINITE',
            f'joint states from {source!r}: not finite: {bad}; an encoder or its driver failed',
        )
    return positions


def _check_size(view: str, height: int, width: int) -> None:
    within = 0 < height <= MAX_IMAGE_SIDE_PX and 0 < width <= MAX_IMAGE_SIDE_PX
    if not within or height * width > MAX_IMAGE_PIXELS:
        raise InputError(
            'IMAGE_SIZE',
            f'camera {view!r}: size {width} x {height} px is not usable, expected 1 to '
            f'{MAX_IMAGE_SIDE_PX} px a side and at most {MAX_IMAGE_PIXELS} px in all',
        )


def _decode(data: memoryview, header: CodedImage, view: str, swapped: bool) -> UInt8Array:
    try:
        decoded = cv2.imdecode(
            np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        )
    except cv2.error as error:
        raise InputError(
            'IMAGE_DATA', f'camera {view!r}: the {header.codec} does not decode ({error.err})'
        ) from error
    expected = (header.height, header.width, 3)
    if decoded is None or decoded.shape != expected or decoded.dtype != np.uint8:
        got = 'nothing' if decoded is None else f'{decoded.dtype} {list(decoded.shape)}'
        raise InputError(
            'IMAGE_DATA',
            f'camera {view!r}: the {header.codec} is broken: its header says '
            f'{header.width} x {header.height} px, decoding gave {got}',
        )
    # compressed_image_transport names the channel order it encoded; OpenCV decodes to BGR.
    return np.asarray(decoded if swapped else np.ascontiguousarray(decoded[:, :, ::-1]), np.uint8)


def _to_rgb(pixels: UInt8Array, encoding: str) -> UInt8Array:
    """[H, W, channels of ``encoding``] -> contiguous RGB [H, W, 3]; what cv_bridge gives, too."""
    if encoding == 'mono8':
        return np.repeat(pixels, 3, axis=2)
    if encoding in ('bgr8', 'bgra8'):
        return np.ascontiguousarray(pixels[:, :, 2::-1])
    return np.ascontiguousarray(pixels[:, :, :3])


def _bridge_to_rgb(msg: Image, view: str) -> UInt8Array:
    try:
        from cv_bridge import CvBridge

        rgb: UInt8Array = CvBridge().imgmsg_to_cv2(msg, 'rgb8')
    except Exception as error:
        raise InputError(
            'ENCODING',
            f'camera {view!r}: {msg.encoding} needs a working cv_bridge ({error}); install '
            'ros-$ROS_DISTRO-cv-bridge or let the driver send rgb8',
        ) from error
    return rgb


def _short(text: str, limit: int = 60) -> str:
    """For texts from outside: printable and bounded, they end up in logs."""
    clean = ''.join(c if c.isprintable() else '?' for c in text[: limit + 1])
    return clean if len(clean) <= limit else clean[:limit] + '...'
