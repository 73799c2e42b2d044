"""A callback that raises must not end the node, as rclpy would have it. Count and report."""

from __future__ import annotations

import functools
import threading
import time
import traceback
from collections.abc import Callable
from typing import ParamSpec

from rclpy.impl.rcutils_logger import RcutilsLogger

P = ParamSpec('P')
LOG_PERIOD_S = 5.0


class CallbackGuard:
    """Wraps callbacks; keeps how often each failed and what was said last. Thread safe."""

    def __init__(self, logger: RcutilsLogger) -> None:
        self._logger = logger
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._last: dict[str, str] = {}
        self._logged_s: dict[str, float] = {}

    def wrap(self, name: str, callback: Callable[P, object]) -> Callable[P, None]:
        """``callback`` whose exceptions end here."""

        @functools.wraps(callback)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                callback(*args, **kwargs)
            except Exception as error:
                self.report(name, error)

        return guarded

    def report(self, name: str, error: BaseException) -> None:
        """Count a failure; log it with its traceback, at most every five seconds per name."""
        now_s = time.monotonic()
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + 1
            self._last[name] = f'{type(error).__name__}: {error}'
            due = now_s - self._logged_s.get(name, float('-inf')) >= LOG_PERIOD_S
            if due:
                self._logged_s[name] = now_s
            count = self._counts[name]
        if due:
            trace = ''.join(traceback.format_exception(error))
            self._logger.error(f'{name} failed ({count} times so far): {trace}')

    def failures(self) -> dict[str, tuple[int, str]]:
        """Name -> (how often, last text)."""
        with self._lock:
            return {name: (count, self._last[name]) for name, count in self._counts.items()}

    def clear(self) -> None:
        with self._lock:
            self._counts.clear()
            self._last.clear()
