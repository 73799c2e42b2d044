"""Lifecycle transitions that say why they failed, and an executor loop that ends on a signal.

rclpy turns an exception in a transition into a silent ERROR; here its text and traceback reach the
log, and the transition answers FAILURE: configure returns to unconfigured, activate to inactive.
A transition that the state does not allow is answered, too.
"""

from __future__ import annotations

import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Concatenate, ParamSpec, TypeVar

import rclpy
from lifecycle_msgs.srv import ChangeState
from rclpy.context import Context
from rclpy.executors import Executor, ExternalShutdownException
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn

NodeT = TypeVar('NodeT', bound=LifecycleNode)
P = ParamSpec('P')


@contextmanager
def undone_on_error(undo: Callable[[], None]) -> Iterator[None]:
    """Call ``undo`` if the block raises: a publisher that a failed configure leaves in the graph
    looks like another node's to the next one."""
    try:
        yield
    except Exception:
        undo()
        raise


class TransitionRefused(RuntimeError):
    """A transition must not happen, for a reason the operator can act on: no traceback."""


def logged_transition(
    method: Callable[Concatenate[NodeT, P], None],
) -> Callable[Concatenate[NodeT, P], Any]:
    """Wrap ``on_configure`` and friends: returning means SUCCESS, raising means FAILURE."""
    name = method.__name__.removeprefix('on_')

    @functools.wraps(method)
    def wrapper(self: NodeT, *args: P.args, **kwargs: P.kwargs) -> TransitionCallbackReturn:
        try:
            method(self, *args, **kwargs)
        except TransitionRefused as error:
            self.get_logger().error(f'{name} refused: {error}')
            return TransitionCallbackReturn.FAILURE
        except Exception as error:
            import traceback

            self.get_logger().error(
                f'{name} failed: {type(error).__name__}: {error}\n{traceback.format_exc()}'
            )
            return TransitionCallbackReturn.FAILURE
        self.get_logger().info(f'{name} done')
        return TransitionCallbackReturn.SUCCESS

    return wrapper


def refuse_unavailable_transitions(node: LifecycleNode) -> None:
    """Have ``~/change_state`` answer False to what the node's state does not allow.

    rclpy raises in its callback then (lifecycle/node.py, __change_state): the caller waits for
    ever, and the error on its way through the executor delays joint states by half a second. That
    callback is private to rclpy, but a service reads its ``callback`` at every call, so a check is
    put before it; everything else stays rclpy's.
    """
    service, machine = node._service_change_state, node._state_machine
    change = service.callback

    def answer(request: ChangeState.Request, response: ChangeState.Response) -> Any:
        available = {number: label for number, label, *_ in machine.available_transitions}
        asked = request.transition
        # As in rclpy, a label goes before a number.
        if asked.label in available.values() if asked.label else asked.id in available:
            return change(request, response)
        state = machine.current_state[1]
        can = ', '.join(f'{label} ({number})' for number, label in sorted(available.items()))
        node.get_logger().error(
            f'transition {asked.label or asked.id!r} refused: not possible while {state}; '
            f'possible are: {can or "none"}'
        )
        response.success = False
        return response

    service.callback = answer


class StopSignal:
    """SIGINT and SIGTERM set a flag instead of tearing the context down under running code.

    The second signal is left to Python's default, so that a hanging process can still be ended.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._previous: dict[int, Any] = {}

    def install(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)

    def restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._event.set()
        signal.signal(number, signal.SIG_DFL)

    def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout_s: float) -> bool:
        return self._event.wait(timeout_s)


def make_executor(context: Context | None = None) -> Executor:
    """The events executor where rclpy has it: a third of the CPU and of the timer jitter."""
    try:
        from rclpy.experimental import EventsExecutor
    except ImportError:
        from rclpy.executors import SingleThreadedExecutor

        return SingleThreadedExecutor(context=context)
    return EventsExecutor(context=context or rclpy.get_default_context())


def spin_until(
    executor: Executor,
    stop: StopSignal,
    until: Callable[[], bool] = lambda: False,
    period_s: float = 0.2,
) -> None:
    """Serve callbacks until ``stop``, or until ``until()``.

    Never ``executor.spin()``: in the wheels of rclpy 7.1.6 the events executor busy-loops there
    and timers never fire; ``spin_once`` works.
    """
    while not stop.is_set() and not until():
        try:
            executor.spin_once(timeout_sec=period_s)
        except ExternalShutdownException:
            return
        except Exception as error:  # a callback that raises must not end the node
            print(f'safe_pruner_ros: a callback raised {error!r}', file=sys.stderr)
            if not rclpy.ok():
                return
