"""One thread: snapshot -> predict -> StepReport. Drops stale work, never queues."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from safe_pruner_ros.policies.policy import Policy
from safe_pruner_ros.runtime.action_buffer import ActionBuffer
from safe_pruner_ros.runtime.codes import Reason
from safe_pruner_ros.runtime.config import PolicyConfig, WorkerConfig
from safe_pruner_ros.runtime.observation_buffer import ObservationBuffer
from safe_pruner_ros.runtime.step_report import StepReport


class InferenceWorker:
    """``clock`` reads the node clock (ns), ``steady`` a monotonic one. ``on_report`` is called in the
    worker thread after every policy step; what it raises is caught and logged.
    The policy is touched by this thread alone, once `start` was called."""

    def __init__(
        self,
        policy: Policy,
        buffer: ObservationBuffer,
        actions: ActionBuffer,
        config: WorkerConfig,
        policy_config: PolicyConfig,
        clock: Callable[[], int],
        on_report: Callable[[StepReport], None],
        take_verdicts: Callable[[], Mapping[str, int]] = dict,
        steady: Callable[[], int] | None = None,
    ) -> None: ...

    def start(self) -> None: ...

    def stop(self, timeout_s: float = 2.0) -> bool:
        """Ask the thread to end and join it; False if it still computes after ``timeout_s``."""
        raise NotImplementedError

    def notify(self) -> None:
        """Something new was stored: look whether a policy step is due. Never blocks."""

    def run_once(self) -> StepReport | None:
        """One look and, if due, one policy step, in the calling thread (tests, evaluation)."""
        raise NotImplementedError

    def reset(self) -> None:
        """Start of an episode: policy and pruner forget, actions flushed, results void, FAULT
        cleared. Returns at once; the policy is reset before its next step."""

    def void(self) -> None:
        """Flush the actions and discard the result in progress (entering a hold)."""

    def pause(self) -> None:
        """`void`, and start no policy step until `resume`."""

    def resume(self) -> None: ...

    def force_keyframe(self) -> None:
        """Run the next policy step unpruned."""

    def hold_reasons(self) -> tuple[Reason, ...]:
        """Why the arms must hold because of inference: FAULT, hang, paused, refused instruction."""
        raise NotImplementedError

    @property
    def busy_since_ns(self) -> int | None:
        """Steady-clock start of the policy step in progress; None while idle."""
        raise NotImplementedError

    @property
    def fault(self) -> Reason | None:
        """Latched when the retry budget is spent, until `reset`."""
        raise NotImplementedError

    @property
    def last_report(self) -> StepReport | None:
        raise NotImplementedError
