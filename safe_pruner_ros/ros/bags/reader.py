"""Any bag -> messages in order of time: rosbag2 (mcap, sqlite3) and ROS 1, without ROS.

What is wrong with a bag is a `BagError` that names the file, what was found and the next move.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection
from rosbags.typesys import Stores, get_typestore

from safe_pruner_ros.ros.bags.repair import is_unfinished

SHOWN_TOPICS = 12


class BagError(ValueError):
    """A bag that cannot be replayed; the text says why and what to do."""


@dataclass(frozen=True)
class BagMessage:
    """``log_ns``: when it was recorded. ``data``: the message, with the fields of its ROS type;
    None when its bytes are no such message, and then ``error`` says why."""

    topic: str
    log_ns: int
    data: Any
    error: str = ''


class Bag:
    """Context manager. ``types``: topic -> message type ('sensor_msgs/msg/Image'); ``counts``:
    topic -> number of messages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = _make_reader(path)
        self.types: dict[str, str] = {}
        self.counts: dict[str, int] = {}

    def __enter__(self) -> Bag:
        try:
            self._reader.open()
        except Exception as error:  # readers raise what the damaged byte happens to cause
            raise BagError(
                f'{self.path}: is not a readable bag ({type(error).__name__}: {error}); try '
                f'"ros2 bag reindex" or record it again'
            ) from error
        for topic, info in self._reader.topics.items():
            self.types[_absolute(topic)] = info.msgtype or 'several types'
            self.counts[_absolute(topic)] = info.msgcount
        if not sum(self.counts.values()):
            self._reader.close()
            raise BagError(
                f'{self.path}: holds no messages ({len(self.types)} topics are declared); check '
                'that the topics were published while it was recorded'
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._reader.close()

    def messages(self, topics: Collection[str]) -> Iterator[BagMessage]:
        """Messages of ``topics`` by record time. Raises BagError where the file breaks off."""
        for connection, log_ns, raw in self._raw(topics):
            topic = _absolute(connection.topic)
            try:
                data = self._reader.deserialize(raw, connection.msgtype)
            except Exception as error:  # a message of random bytes raises anything
                text = f'{len(raw)} bytes are no {connection.msgtype} ({error})'
                yield BagMessage(topic, log_ns, None, text)
                continue
            yield BagMessage(topic, log_ns, data)

    def serialized(self, topics: Collection[str]) -> Iterator[tuple[str, int, bytes]]:
        """(topic, record time, CDR bytes) of ``topics``, also from ROS 1 bags.

        Raises BagError where the file breaks off, or a ROS 1 message cannot be converted.
        """
        for connection, log_ns, raw in self._raw(topics):
            topic = _absolute(connection.topic)
            if self._reader.is2:
                yield topic, log_ns, bytes(raw)
                continue
            try:
                data = self._reader.typestore.ros1_to_cdr(raw, connection.msgtype)
            except Exception as error:  # a message of random bytes raises anything
                raise BagError(
                    f'{self.path}: a message on {topic} is no {connection.msgtype} ({error})'
                ) from error
            yield topic, log_ns, bytes(data)

    @property
    def start_ns(self) -> int:
        """Record time of the first message."""
        return int(self._reader.start_time)

    @property
    def duration_s(self) -> float:
        return max(0.0, (self._reader.end_time - self._reader.start_time) * 1e-9)

    def _raw(self, topics: Collection[str]) -> Iterator[tuple[Connection, int, bytes]]:
        chosen = [c for c in self._reader.connections if _absolute(c.topic) in topics]
        if not chosen:  # an empty choice would mean every topic
            return
        try:
            yield from self._reader.messages(connections=chosen)
        except Exception as error:  # readers raise what the damaged byte happens to cause
            raise BagError(
                f'{self.path}: breaks off while reading ({error}); record it again, or repair it '
                'with "ros2 bag convert"'
            ) from error

    def describe(self, part_of_type: str = '') -> str:
        """Topics whose type contains ``part_of_type``, for error messages."""
        found = [
            f'{topic} ({kind}, {self.counts[topic]} messages)'
            for topic, kind in sorted(self.types.items())
            if part_of_type in kind
        ]
        more = len(found) - SHOWN_TOPICS
        return ', '.join(found[:SHOWN_TOPICS]) + (f' and {more} more' if more > 0 else '')


def _make_reader(path: Path) -> AnyReader:
    if not path.exists():
        raise BagError(
            f'{path}: does not exist; give a rosbag2 folder, an .mcap, .db3 or ROS 1 .bag file'
        )
    if is_unfinished(path):
        raise BagError(
            f'{path}: was not closed by its recorder (killed, or the power went); run '
            f'"safe-pruner repair {path}", then try again'
        )
    if path.is_dir() and not (path / 'metadata.yaml').exists():
        raise BagError(
            f'{path}: is a folder without metadata.yaml, so no rosbag2; it has '
            f'{sorted(item.name for item in path.iterdir())[:SHOWN_TOPICS]}; give the folder that '
            '"ros2 bag record" made, or run "ros2 bag reindex" on it'
        )
    if path.is_file() and path.stat().st_size == 0:
        raise BagError(f'{path}: is empty (0 bytes); record it again')
    try:
        return AnyReader([path], default_typestore=get_typestore(Stores.ROS2_JAZZY))
    except Exception as error:
        raise BagError(
            f'{path}: is neither a rosbag2 folder nor a ROS 1 bag ({error}); give the folder that '
            '"ros2 bag record" made, or a .bag file'
        ) from error


def _absolute(topic: str) -> str:
    """ROS 1 recordings may leave out the first slash."""
    return topic if topic.startswith('/') else f'/{topic}'
