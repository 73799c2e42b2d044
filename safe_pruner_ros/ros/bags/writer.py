"""Raw messages -> a rosbag2 folder (mcap) that `ros2 bag`, Foxglove and replay read. No rclpy.

Written in chunks of at most a megabyte or a second, so that a killed recorder loses no more than
that; `repair` finishes what it left behind.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rosbags.interfaces import Connection, Qos
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.rosbag2.errors import WriterError

from safe_pruner_ros.ros.bags.message_definitions import MessageDefinitions

CHUNK_PERIOD_NS = 1_000_000_000
MAX_BACKLOG_BYTES = 512 * 1024 * 1024


class BagWriter:
    """Context manager; not thread safe. ``compression``: none or zstd, of chunks.

    Raises ValueError when ``path`` exists already.
    """

    def __init__(self, path: Path, compression: str = 'none') -> None:
        self.path = path
        self.counts: dict[str, int] = {}
        self._definitions = MessageDefinitions()
        self._connections: dict[str, Connection] = {}
        self._chunk_ns = 0
        try:
            self._writer = Writer(path, version=9, storage_plugin=StoragePlugin.MCAP)
        except WriterError as error:
            raise ValueError(f'{path}: {error}; choose another folder') from error
        if compression == 'zstd':
            self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)

    def __enter__(self) -> BagWriter:
        self._writer.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Whatever happened, what was written becomes a complete bag."""
        self._writer.close()

    def add_topic(self, topic: str, kind: str, qos: Sequence[Qos] = ()) -> None:
        """Before its first message. Raises UnknownMessage where ``kind`` has no definition."""
        self._definitions.add(kind)
        self._connections[topic] = self._writer.add_connection(
            topic, kind, typestore=self._definitions.store, offered_qos_profiles=qos
        )
        self.counts[topic] = 0

    def write(self, topic: str, log_ns: int, data: bytes) -> None:
        """``data``: the message as CDR. Raises OSError when the disk is full."""
        self._writer.write(self._connections[topic], log_ns, data)
        self.counts[topic] += 1
        storage: Any = self._writer.storage
        if not storage.chunk.msgs:  # it has just closed a full chunk
            storage.bio.flush()
            self._chunk_ns = log_ns
        elif not 0 <= log_ns - self._chunk_ns < CHUNK_PERIOD_NS:
            self.flush(log_ns)

    def flush(self, now_ns: int) -> None:
        """Hand what was written so far to the operating system."""
        storage: Any = self._writer.storage
        if storage.chunk.msgs:
            storage.close_chunk()
        storage.bio.flush()
        self._chunk_ns = now_ns


class WriterThread:
    """Context manager: writes what was `put`, in order. ``failure``: why it ended early.

    Leaving it writes all that is queued and closes the bag.
    """

    def __init__(self, writer: BagWriter) -> None:
        self.failure = ''
        self.dropped = 0  # messages: the disk was slower than the robot
        self._writer = writer
        self._queue: queue.SimpleQueue[Callable[[], int] | None] = queue.SimpleQueue()
        self._backlog_bytes = 0
        self._count_lock = threading.Lock()
        self._lock = threading.Lock()  # of the writer; held while it writes
        self._thread = threading.Thread(target=self._run, name='bag', daemon=True)

    def __enter__(self) -> WriterThread:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._queue.put(None)
        self._thread.join()

    def announce(self, topic: str, kind: str, qos: Sequence[Qos]) -> None:
        """Raises UnknownMessage, and then nothing of ``topic`` may be `put`."""
        with self._lock:  # not queued: the caller wants to know
            self._writer.add_topic(topic, kind, qos)

    def put(self, topic: str, log_ns: int, data: bytes) -> None:
        if self._backlog_bytes + len(data) > MAX_BACKLOG_BYTES or self.failure:
            self.dropped += 1
            return
        self._count_backlog(len(data))

        def write() -> int:
            with self._lock:
                self._writer.write(topic, log_ns, data)
            return len(data)

        self._queue.put(write)

    def _run(self) -> None:
        while True:
            try:
                write = self._queue.get(timeout=1.0)
            except queue.Empty:
                write = self._flush
            if write is None:
                return
            try:
                self._count_backlog(-write())
            except OSError as error:
                self.failure = self.failure or f'{self._writer.path}: {error}'

    def _count_backlog(self, size_bytes: int) -> None:
        with self._count_lock:
            self._backlog_bytes += size_bytes

    def _flush(self) -> int:
        """Nothing came for a second: what is there shall not wait in memory."""
        with self._lock:
            self._writer.flush(time.time_ns())
        return 0
