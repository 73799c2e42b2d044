"""How many of the images that a camera sent arrived. Pure; times are passed in.

Two witnesses, because neither sees everything: the middleware's message-lost events, and gaps
between capture stamps that are longer than the usual one.
"""

from __future__ import annotations

import threading
from collections import deque

import numpy as np

WINDOW = 150  # images: five seconds at 30 Hz
MIN_IMAGES = 20  # fewer say nothing about a rate


class ReceiveMeter:
    """Counts one camera. Fed by callbacks, read by the diagnostics timer; thread safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stamps_ns: deque[int] = deque(maxlen=WINDOW)
        self._lost: deque[tuple[int, int]] = deque(maxlen=WINDOW)  # (stamp before, how many)
        self.received = 0
        self.lost_events = 0
        self.largest_bytes = 0

    def image(self, stamp_ns: int, n_bytes: int) -> None:
        with self._lock:
            if self._stamps_ns and stamp_ns <= self._stamps_ns[-1]:
                self._stamps_ns.clear()  # the clock went back, or stamps repeat
                self._lost.clear()
            self._stamps_ns.append(stamp_ns)
            self.received += 1
            self.largest_bytes = max(self.largest_bytes, n_bytes)

    def lost(self, count: int) -> None:
        with self._lock:
            self.lost_events += count
            self._lost.append((self._stamps_ns[-1] if self._stamps_ns else 0, count))

    def receive_ratio(self) -> float:
        """Received / sent over the last images, in (0, 1]; NaN while there are too few."""
        with self._lock:
            stamps = np.array(self._stamps_ns, dtype=np.int64)
            lost = list(self._lost)
        if len(stamps) < 2 or len(stamps) + sum(count for _, count in lost) < MIN_IMAGES:
            return float('nan')
        gaps = np.diff(stamps)
        usual = float(np.median(gaps))
        # Half a period of jitter is no loss.
        missing = int(np.sum(np.maximum(np.rint(gaps / usual) - 1, 0)[gaps > 1.6 * usual]))
        reported = sum(count for stamp_ns, count in lost if stamp_ns >= stamps[0])
        return len(stamps) / (len(stamps) + max(missing, reported))
