"""Finishes an mcap recording whose writer was killed: cuts the torn end, closes the file.

An mcap file is a row of records (opcode, length, content) between two magic numbers. A writer that
is killed leaves out the end; at most the last record is torn. The index stays away: readers may do
without (MCAP specification, "Footer": summary_start 0), and scan.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rosbags.rosbag2.storage_mcap import McapReader
from ruamel.yaml import YAML

MAGIC = b'\x89MCAP0\r\n'
FOOTER, DATA_END = 0x02, 0x0F
METADATA = 'metadata.yaml'
MIN_BYTES = 2 * len(MAGIC) + 9 + 20  # with a footer


class RepairError(ValueError):
    """Nothing can be saved; the text says why."""


@dataclass(frozen=True)
class Repaired:
    """``cut_bytes``: of a torn record at the end; ``was_complete``: nothing had to be done."""

    path: Path
    messages: int
    cut_bytes: int
    was_complete: bool


def is_unfinished(path: Path) -> bool:
    """Whether ``path`` (an mcap file, or the folder around one) was not closed by its writer."""
    file = mcap_file(path)
    if file is None or file.stat().st_size < len(MAGIC):
        return False
    with file.open('rb') as data:
        if data.read(len(MAGIC)) != MAGIC:
            return False
        data.seek(-len(MAGIC), 2)
        torn = data.read() != MAGIC or file.stat().st_size < MIN_BYTES
        return torn or (path.is_dir() and not (path / METADATA).exists())


def mcap_file(path: Path) -> Path | None:
    """The one mcap file that ``path`` is or holds; None if there is none, or several."""
    if path.is_dir():
        found = sorted(path.glob('*.mcap'))
        return found[0] if len(found) == 1 else None
    return path if path.suffix == '.mcap' and path.is_file() else None


def repair(path: Path) -> Repaired:
    """Close the file in place and write its metadata.yaml. Raises RepairError."""
    file = mcap_file(path)
    if file is None:
        raise RepairError(f'{path}: is neither an .mcap file nor a folder with exactly one')
    with file.open('rb') as data:
        start = data.read(len(MAGIC))
    if start != MAGIC:
        raise RepairError(f'{path}: is not an mcap file; it starts with {start!r}')
    if not is_unfinished(path):
        return Repaired(path, _count(file), 0, True)
    with file.open('r+b') as data:
        size = data.seek(0, 2)
        data.seek(-len(MAGIC), 2)
        cut = 0
        if data.read() != MAGIC or size < MIN_BYTES:
            end = _end_of_data(data, size)
            if end == len(MAGIC):
                raise RepairError(f'{path}: has no complete record; nothing can be read from it')
            cut = size - end
            data.truncate(end)
            data.seek(end)
            data.write(struct.pack('<BQI', DATA_END, 4, 0))
            data.write(struct.pack('<BQQQI', FOOTER, 20, 0, 0, 0))
            data.write(MAGIC)
    messages = _write_metadata(file) if path.is_dir() else _count(file)
    return Repaired(path, messages, cut, False)


def _end_of_data(data: IO[bytes], size: int) -> int:
    """Offset after the last complete record of the data section."""
    end = len(MAGIC)
    while end + 9 <= size:
        data.seek(end)
        opcode, length = struct.unpack('<BQ', data.read(9))
        if opcode in (DATA_END, FOOTER) or end + 9 + length > size:
            break
        end += 9 + length
    return end


def _count(file: Path) -> int:
    reader = _open(file)
    try:
        return reader.metadata.message_count
    finally:
        reader.close()


def _open(file: Path) -> McapReader:
    reader = McapReader(file)
    try:
        reader.open()
    except Exception as error:  # a damaged record raises anything
        raise RepairError(f'{file}: is still not readable ({error}); record it again') from error
    return reader


def _write_metadata(file: Path) -> int:
    from rosbags.rosbag2.metadata import dump_qos_v9

    reader = _open(file)
    try:
        facts = reader.metadata
        count, start = facts.message_count, facts.start_time if facts.message_count else 0
        span = {
            'duration': {'nanoseconds': max(0, facts.duration - 1)},
            'starting_time': {'nanoseconds_since_epoch': start},
            'message_count': count,
        }
        topics = [
            {
                'topic_metadata': {
                    'name': connection.topic,
                    'type': connection.msgtype,
                    'serialization_format': connection.ext.serialization_format,
                    'offered_qos_profiles': dump_qos_v9(connection.ext.offered_qos_profiles),
                    'type_description_hash': '',
                },
                'message_count': connection.msgcount,
            }
            for connection in reader.connections
        ]
    finally:
        reader.close()
    content = {
        'rosbag2_bagfile_information': {
            'version': 9,
            'storage_identifier': 'mcap',
            'relative_file_paths': [file.name],
            **span,
            'topics_with_message_count': topics,
            'compression_format': '',
            'compression_mode': '',
            'files': [{'path': file.name, **span}],
            'custom_data': None,
            'ros_distro': 'rosbags',
        }
    }
    yaml = YAML(typ='safe')
    yaml.default_flow_style = False
    part = file.with_name(METADATA + '.part')
    with part.open('w') as out:
        yaml.dump(content, out)
    part.replace(file.with_name(METADATA))
    return count
