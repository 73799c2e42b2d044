"""What the first bytes of a compressed image say, without decoding it. Standard library only.

A decoder is asked only after this file has agreed: the size in the header bounds the memory that
decoding takes (an image bomb is a small file with a huge header), and the end of the data is
checked because OpenCV 4.x decodes a truncated JPEG into a full-size picture without complaint.
Not detectable here: a JPEG cut in half with an end marker glued on, flipped bits in the middle.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

JPEG_START = b'\xff\xd8'
JPEG_END = b'\xff\xd9'
PNG_START = b'\x89PNG\r\n\x1a\n'
# Frame headers that carry the picture size: all SOFn but DHT (C4), JPG (C8) and DAC (CC).
_SOF_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN = 0xDA
# Some camera drivers pad a JPEG to a block size; more than this is not padding.
_MAX_TRAILING_ZEROS = 4096


@dataclass(frozen=True)
class CodedImage:
    """Claims of a header: size in pixels and number of colour channels."""

    codec: Literal['jpeg', 'png']
    height: int
    width: int
    channels: int


def inspect(data: bytes | memoryview) -> CodedImage:
    """Read the header and check that the data is complete. Raises ValueError with the reason."""
    view = memoryview(data).cast('B')
    if len(view) == 0:
        raise ValueError('the image data is empty')
    if bytes(view[:2]) == JPEG_START:
        return _inspect_jpeg(view)
    if bytes(view[:8]) == PNG_START:
        return _inspect_png(view)
    raise ValueError(
        f'the data is neither JPEG nor PNG: {len(view)} bytes starting with '
        f'{bytes(view[:8]).hex(" ")}'
    )


def _inspect_jpeg(view: memoryview) -> CodedImage:
    tail = bytes(view[-_MAX_TRAILING_ZEROS - 2 :]).rstrip(b'\x00')
    if not tail.endswith(JPEG_END):
        raise ValueError(f'truncated JPEG: {len(view)} bytes without an end marker (FF D9)')
    size: CodedImage | None = None
    offset = 2
    while offset + 4 <= len(view):
        if view[offset] != 0xFF:
            raise ValueError(f'broken JPEG: byte {offset} is not a marker')
        marker = view[offset + 1]
        if marker == 0xFF:  # fill byte
            offset += 1
            continue
        length = (view[offset + 2] << 8) | view[offset + 3]
        if length < 2 or offset + 2 + length > len(view):
            raise ValueError(f'truncated JPEG: segment {marker:02X} is longer than the data')
        if marker == _START_OF_SCAN:
            break
        if marker in _SOF_MARKERS:
            if length < 8:
                raise ValueError(f'broken JPEG: frame header of {length} bytes')
            size = CodedImage(
                codec='jpeg',
                height=(view[offset + 5] << 8) | view[offset + 6],
                width=(view[offset + 7] << 8) | view[offset + 8],
                channels=view[offset + 9],
            )
        offset += 2 + length
    else:
        raise ValueError('truncated JPEG: no picture data follows the header')
    if size is None:
        raise ValueError('broken JPEG: no frame header before the picture data')
    return size


def _inspect_png(view: memoryview) -> CodedImage:
    """Walks every chunk: complete, checksums right, IHDR first and IEND last."""
    size: CodedImage | None = None
    offset, kind = len(PNG_START), b''
    while kind != b'IEND':
        if offset + 12 > len(view):
            raise ValueError(f'truncated PNG: {len(view)} bytes without an IEND chunk')
        length = int.from_bytes(view[offset : offset + 4], 'big')
        end = offset + 12 + length
        if end > len(view):
            raise ValueError(f'truncated PNG: a chunk of {length} bytes is longer than the data')
        kind = bytes(view[offset + 4 : offset + 8])
        body = view[offset + 8 : offset + 8 + length]
        if size is None:
            if kind != b'IHDR' or length != 13:
                raise ValueError(f'broken PNG: the first chunk is {kind!r} of {length} bytes')
            size = CodedImage(
                codec='png',
                height=int.from_bytes(body[4:8], 'big'),
                width=int.from_bytes(body[0:4], 'big'),
                channels={0: 1, 2: 3, 3: 3, 4: 2, 6: 4}.get(body[9], 0),
            )
            if body[8] != 8:
                raise ValueError(f'PNG has {body[8]} bits per channel; 8 are needed')
        if zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(view[end - 4 : end], 'big'):
            raise ValueError(f'broken PNG: checksum of chunk {kind!r} is wrong')
        offset = end
    assert size is not None
    return size
