"""The control timer: one thread that ticks the loop at a steady rate and sends what it answers.

Its own thread, so that no callback of the executor can delay a command. It sleeps on the
monotonic clock: a watchdog that stops with /clock would be none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from safe_pruner_ros.runtime.command_guard import GuardVerdict
from safe_pruner_ros.types import JointCommand


class ControlThread:
    """Calls ``tick(now_ns)`` every ``period_ns`` and ``send`` with its command.

    Both run in this thread; what they raise goes to ``on_error`` and nothing is sent in that tick.
    At most one thread lives at a time.
    """

    def __init__(
        self,
        period_ns: int,
        clock: Callable[[], int],
        tick: Callable[[int], GuardVerdict],
        send: Callable[[JointCommand], None],
        on_error: Callable[[BaseException], None],
    ) -> None:
        self._period_ns = period_ns
        self._clock, self._tick, self._send, self._on_error = clock, tick, send, on_error
        self._stopping = threading.Event()  # of this thread alone: nothing takes it back
        self._thread: threading.Thread | None = None
        self._completed_ns = 0  # steady; the start counts as one
        self.late_ticks = 0

    def start(self) -> None:
        """Raises RuntimeError while the thread of the last start lives, stopped or not."""
        if self._thread is not None and self._thread.is_alive():
            if not self._stopping.is_set():
                raise RuntimeError('the control thread runs already; stop it first')
            raise RuntimeError(
                'the control thread was stopped but still hangs in a tick or in sending a '
                'command; check what blocks the command publishers, then try again, or restart '
                'the node'
            )
        self._stopping = threading.Event()
        self._completed_ns = time.monotonic_ns()
        self._thread = threading.Thread(
            target=self._run, args=(self._stopping,), name='control', daemon=True
        )
        self._thread.start()

    def silent_s(self) -> float:
        """Steady time, in s, since a tick came to its end, its command sent if it had one; 0
        before the first `start`. A tick that hangs or raises does not count."""
        return (time.monotonic_ns() - self._completed_ns) * 1e-9 if self._completed_ns else 0.0

    def stop(self, timeout_s: float = 1.0) -> bool:
        """No further command is sent. False if the thread still hangs in a tick, or in the send
        that had begun, after ``timeout_s``."""
        self._stopping.set()
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self, stopping: threading.Event) -> None:
        due_ns = time.monotonic_ns()
        while not stopping.is_set():
            try:
                verdict = self._tick(self._clock())
                if verdict.command is not None and not stopping.is_set():
                    self._send(verdict.command)
                self._completed_ns = time.monotonic_ns()
            except Exception as error:
                self._on_error(error)
            due_ns += self._period_ns
            behind_ns = time.monotonic_ns() - due_ns
            if behind_ns < 0:
                time.sleep(-behind_ns * 1e-9)
            elif behind_ns > self._period_ns:
                # Stopped or starved: skip what is over, never send a burst.
                self.late_ticks += behind_ns // self._period_ns
                due_ns = time.monotonic_ns()
