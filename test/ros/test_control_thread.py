"""The control timer: one thread at a time, whatever blocks it."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from safe_pruner_ros.ros.control_thread import ControlThread
from safe_pruner_ros.runtime.command_guard import GuardVerdict
from safe_pruner_ros.types import JointCommand

PERIOD_NS = 5_000_000


class Bench:
    """A control thread whose ``send`` can be made to hang."""

    def __init__(self) -> None:
        self.senders: list[int] = []
        self.errors: list[BaseException] = []
        self.free = threading.Event()
        self.free.set()
        self.control = ControlThread(
            PERIOD_NS, time.time_ns, self.tick, self.send, self.errors.append
        )

    def tick(self, now_ns: int) -> GuardVerdict:
        return GuardVerdict('pass', (), JointCommand(np.zeros(1), ('a',), now_ns))

    def send(self, command: JointCommand) -> None:
        self.senders.append(threading.get_ident())
        self.free.wait(10.0)


@pytest.fixture
def bench():
    bench = Bench()
    yield bench
    bench.free.set()
    assert bench.control.stop()


def wait_for(condition, what):
    deadline_s = time.monotonic() + 10.0
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.002)


def test_starts_stops_and_starts_again(bench):
    bench.control.start()
    with pytest.raises(RuntimeError, match='runs already'):
        bench.control.start()
    wait_for(lambda: len(bench.senders) > 3, 'commands')
    assert bench.control.stop()
    count = len(bench.senders)
    time.sleep(0.05)
    assert len(bench.senders) == count
    bench.control.start()
    wait_for(lambda: len(bench.senders) > count + 3, 'commands after the second start')


def test_a_thread_that_hangs_in_send_is_never_joined_by_a_second_one(bench):
    bench.control.start()
    wait_for(lambda: bench.senders, 'the first command')
    bench.free.clear()
    count = len(bench.senders)
    wait_for(lambda: len(bench.senders) > count, 'a command that hangs')
    assert bench.control.stop(timeout_s=0.05) is False
    with pytest.raises(RuntimeError, match='still hangs'):
        bench.control.start()
    count = len(bench.senders)
    bench.free.set()  # what hung goes on, and finds itself stopped
    wait_for(lambda: bench.control.stop(0.05), 'the end of the thread')
    assert len(bench.senders) == count
    bench.control.start()
    wait_for(lambda: len(bench.senders) > count + 3, 'commands of the next thread')
    assert len(set(bench.senders[count:])) == 1 and not bench.errors


def test_what_a_tick_raises_is_reported_and_nothing_is_sent(bench):
    def tick(now_ns):
        raise ValueError('no')

    bench.control._tick = tick
    bench.control.start()
    wait_for(lambda: len(bench.errors) > 2, 'reports')
    assert bench.senders == []
