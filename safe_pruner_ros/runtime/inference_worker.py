"""One thread: snapshot -> predict -> StepReport. Drops stale work, never queues.

A policy step starts when a new observation is there and the actions of the last step that are
meant to be executed are over. Whatever the policy raises becomes a report, never a dead thread.
Results count only if nothing happened meanwhile that made them void (generation); a policy that
joins chunks over time forgets those that did not count, or do not any more.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from safe_pruner_ros.policies.policy import (
    InstructionError,
    Policy,
    PolicyOutput,
    PolicyOutputError,
    PruningTrace,
)
from safe_pruner_ros.runtime.action_buffer import ActionBuffer
from safe_pruner_ros.runtime.codes import Code, Reason
from safe_pruner_ros.runtime.config import PolicyConfig, WorkerConfig
from safe_pruner_ros.runtime.observation_buffer import NotReady, ObservationBuffer, Snapshot
from safe_pruner_ros.runtime.retention_control import RetentionController
from safe_pruner_ros.runtime.shadow_audit import Audit, ShadowAudit
from safe_pruner_ros.runtime.stamps import NS_PER_S, seconds
from safe_pruner_ros.runtime.step_report import StepReport, StepTiming
from safe_pruner_ros.types import FloatArray

POLL_S = 0.05  # the thread looks this often even if nothing wakes it
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Failure:
    reason: Reason
    traceback: str


class InferenceWorker:
    """``clock`` reads the node clock (ns), ``steady`` a monotonic one. ``on_report`` is called in
    the worker thread after every policy step, ``on_audit`` after every shadow audit; what they
    raise is caught and logged. The policy is touched by this thread alone, once `start` was
    called. Without ``audit`` nothing is audited, without ``retention`` the ratio never changes.
    ``start_pose``: where the path to a chunk sets out from the pose that the policy saw."""

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
        steady: Callable[[], int] = time.monotonic_ns,
        audit: ShadowAudit | None = None,
        retention: RetentionController | None = None,
        on_audit: Callable[[Audit], None] = lambda audit: None,
        start_pose: Callable[[FloatArray], FloatArray] = lambda measured: measured,
    ) -> None:
        self._policy, self._buffer, self._actions = policy, buffer, actions
        self._audit, self._retention, self._on_audit = audit, retention, on_audit
        self._config, self._clock, self._steady = config, clock, steady
        self._on_report, self._take_verdicts = on_report, take_verdicts
        self._start_pose = start_pose
        horizon = policy_config.execution_horizon or policy.spec.execution_horizon
        self._horizon = min(horizon, policy.spec.chunk_size)
        self._period_ns = round(policy_config.period_s * NS_PER_S)  # 0: as the policy says
        # Guards the decision "still valid -> push" against `void`; never held during predict.
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._paused = False
        self._reset_pending = False
        self._keyframe_pending = False
        self._busy_since_ns: int | None = None
        self._last_used: tuple[int, int] | None = None  # generation, observation stamp
        # Of the chunks that the next one may continue; None: none of them may be continued.
        self._plans_generation: int | None = None
        self._refused_generation: int | None = None
        self._errors_ns: deque[int] = deque()
        self._hold_reason: Reason | None = None
        self._fault: Reason | None = None
        self._last_report: StepReport | None = None
        self._step = 0

    # ---- from other threads

    def start(self) -> None:
        """Raises RuntimeError while the thread of the last start lives, stopped or not."""
        if self._thread is not None and self._thread.is_alive():
            if not self._stopping:
                raise RuntimeError('the inference worker runs already; stop it first')
            raise RuntimeError(
                'the inference worker was stopped but its last policy step still computes; wait '
                'until it ends, then try again, or restart the node if it never does'
            )
        self._stopping = False
        # A daemon: a policy that never returns must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name='inference', daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> bool:
        """Ask the thread to end and join it; False if it still computes after ``timeout_s``."""
        self._stopping = True
        self.void()
        self._wake.set()
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def notify(self) -> None:
        """Something new was stored: look whether a policy step is due. Never blocks."""
        self._wake.set()

    def reset(self) -> None:
        """Start of an episode: policy and pruner forget, actions flushed, results void, FAULT
        cleared. Returns at once; the policy is reset before its next step."""
        with self._lock:
            self._reset_pending = True
            self._errors_ns.clear()
            self._fault = self._hold_reason = self._refused_generation = None
        self.void()

    def forget_episode(self) -> None:
        """Policy and pruner forget before their next step, as at `reset`; a FAULT stays."""
        with self._lock:
            self._reset_pending = True

    def void(self) -> None:
        """Flush the actions and discard the result in progress (entering a hold)."""
        with self._lock:
            self._buffer.bump_generation()
            self._actions.flush()
            if self._hold_reason and self._hold_reason.code is Code.INSTRUCTION_REFUSED:
                self._hold_reason = None  # the next instruction may be better

    def pause(self) -> None:
        """`void`, and start no policy step until `resume`."""
        self._paused = True
        self.void()

    def resume(self) -> None:
        if self._paused:
            self.void()  # a step may have begun in the moment of the pause
        self._paused = False
        self._wake.set()

    def force_keyframe(self) -> None:
        """Run the next policy step unpruned."""
        self._keyframe_pending = True

    def hold_reasons(self) -> tuple[Reason, ...]:
        """Why the arms must hold because of inference: FAULT, hang, paused, the last error."""
        reasons = [self._fault]
        if self._hold_reason is not self._fault:
            reasons.append(self._hold_reason)
        if self._paused:
            reasons.append(Reason(Code.PAUSED, 'paused; call the resume service to go on'))
        busy_since_ns = self._busy_since_ns
        if busy_since_ns is not None:
            busy_s = seconds(self._steady() - busy_since_ns)
            if busy_s > self._config.max_inference_s:
                text = (
                    f'the policy step in progress takes {busy_s:.1f} s so far (limit '
                    f'{self._config.max_inference_s} s); restart the node if it never returns'
                )
                reasons.append(Reason(Code.INFERENCE_SLOW, text))
        return tuple(reason for reason in reasons if reason is not None)

    @property
    def busy_since_ns(self) -> int | None:
        """Steady-clock start of the policy step in progress; None while idle."""
        return self._busy_since_ns

    @property
    def fault(self) -> Reason | None:
        """Latched when the retry budget is spent, until `reset`."""
        return self._fault

    @property
    def last_report(self) -> StepReport | None:
        return self._last_report

    # ---- in the worker thread

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(POLL_S)
            self._wake.clear()
            try:
                self.run_once()
            except (Exception, SystemExit):  # not of a policy step; go on rather than die silently
                _log.exception('inference worker')

    def run_once(self) -> StepReport | None:
        """One look and, if due, one policy step, in the calling thread (tests, evaluation)."""
        if self._paused or self._stopping or self._fault is not None:
            return None
        now_ns = self._clock()
        if not self._actions.consumed(now_ns, self._horizon):
            return None
        snapshot = self._buffer.snapshot(now_ns)
        if isinstance(snapshot, NotReady) or not self._is_new(snapshot):
            return None
        report = self._policy_step(snapshot, now_ns)
        self._last_report = report
        try:
            self._on_report(report)
        except Exception:
            _log.exception('report of policy step %d', report.step)
        if report.succeeded and report.trace is not None:
            self._adapt_retention(report, report.trace)
            self._audit_step(report, report.trace)
        return report

    def _adapt_retention(self, report: StepReport, trace: PruningTrace) -> None:
        if self._retention is not None:
            total_ms = report.latency_ms['total']
            with self._retention.lock:
                self._set_retention(self._retention.note_step(total_ms, trace.is_key_timestep))

    def _set_retention(self, ratio: float | None) -> None:
        if ratio is not None:
            self._policy.update_pruner(retention_ratio=ratio)

    def _audit_step(self, report: StepReport, trace: PruningTrace) -> None:
        """Compare this step with the unpruned policy, if that fits before the next one."""
        audit, chunk = self._audit, report.chunk
        if audit is None or chunk is None:
            return
        is_full = trace.n_retained == trace.n_visual
        audit.note_step(report.latency_ms['total'], is_full)
        slack_ms = self._actions.slack_ns(self._clock(), self._horizon) * 1e-6
        if not audit.is_due(slack_ms, is_full):
            return
        self._busy_since_ns = self._steady()
        try:
            done = audit.run(self._policy, report, chunk, slack_ms)
        except (Exception, SystemExit) as error:  # the arms do not depend on it
            _log.exception('audit of policy step %d', report.step)
            audit.note_failure(f'{type(error).__name__}: {error}')
            return
        finally:
            self._busy_since_ns = None
        if self._retention is not None:
            with self._retention.lock:
                self._set_retention(self._retention.note_audit(done.deviation.arms_rad))
        try:
            self._on_audit(done)
        except Exception:
            _log.exception('report of the audit of policy step %d', report.step)

    def _is_new(self, snapshot: Snapshot) -> bool:
        """Whether this observation was not used yet, nor its instruction refused."""
        if snapshot.generation == self._refused_generation:
            return False
        return (snapshot.generation, snapshot.observation.stamp_ns) != self._last_used

    def _policy_step(self, snapshot: Snapshot, assembled_ns: int) -> StepReport:
        observation = snapshot.observation
        self._last_used = (snapshot.generation, observation.stamp_ns)
        self._busy_since_ns = self._steady()
        started_ns = self._clock()
        began = time.perf_counter_ns()
        try:
            outcome = self._predict(snapshot)
        finally:
            self._busy_since_ns = None
        wall_ms = (time.perf_counter_ns() - began) * 1e-6
        finished_ns = self._clock()
        failure = outcome if isinstance(outcome, _Failure) else None
        output = outcome if isinstance(outcome, PolicyOutput) else None
        error = failure.reason if failure else None
        chunk = None
        if output is not None:
            chunk = output.chunk
            if self._period_ns:
                chunk = replace(chunk, period_ns=self._period_ns)
        with self._lock:
            if self._buffer.generation != snapshot.generation:
                text = 'instruction, reset or hold made this result void while it was computed'
                error, chunk = error or Reason(Code.RESULT_DISCARDED, text), None
            elif chunk is not None:
                anchor = self._start_pose(observation.state.positions)
                error = self._actions.push(chunk, finished_ns, anchor)
                chunk = chunk if error is None else None
                self._note_outcome(error, snapshot.generation)
            else:
                self._note_outcome(error, snapshot.generation)
        self._plans_generation = snapshot.generation if error is None else None
        self._step += 1
        return StepReport(
            step=self._step - 1,
            generation=snapshot.generation,
            instruction=observation.instruction,
            observation_stamp_ns=observation.stamp_ns,
            finished_ns=finished_ns,
            observation=observation,
            trace=output.trace if output else None,
            chunk=chunk,
            latency_ms={'total': wall_ms, **(output.latency_ms if output else {})},
            verdicts=dict(self._take_verdicts()),
            error=error,
            traceback=failure.traceback if failure else '',
            timing=StepTiming(
                observation.stamp_ns,
                snapshot.received_ns,
                assembled_ns,
                started_ns,
                finished_ns,
            ),
            seam=self._actions.last_seam,
            starved_ticks=self._actions.starved_ticks,
            retention=None if self._retention is None else self._retention.state,
        )

    def _predict(self, snapshot: Snapshot) -> PolicyOutput | _Failure:
        """The policy's output, or what it raised."""
        try:
            if self._reset_pending:
                self._reset_pending = False
                self._step = 0
                self._policy.reset()
                if self._audit is not None:
                    self._audit.reset()
            if snapshot.generation != self._plans_generation:
                self._policy.forget_plans()
            if self._keyframe_pending:
                self._keyframe_pending = False
                self._policy.force_keyframe()
            output = self._policy.predict(snapshot.observation)
            self._check(output)
            return output
        except InstructionError as error:
            return _Failure(Reason(Code.INSTRUCTION_REFUSED, str(error)), '')
        except PolicyOutputError as error:
            reason = Reason(Code.POLICY_OUTPUT, f'{error}; nothing of it is used')
            return _Failure(reason, traceback.format_exc())
        except (Exception, SystemExit) as error:  # a checkpoint's code may parse arguments
            text = f'{type(error).__name__}: {error}; the traceback is in the log'
            return _Failure(Reason(Code.POLICY_ERROR, text), traceback.format_exc())

    def _check(self, output: object) -> None:
        """Raise PolicyOutputError unless ``output`` is what the policy's own spec promises."""
        if not isinstance(output, PolicyOutput):
            raise PolicyOutputError(f'predict returned {type(output).__name__}, no PolicyOutput')
        rows, expected = len(output.chunk.positions), self._policy.spec.chunk_size
        if rows != expected:
            raise PolicyOutputError(f'a chunk of {rows} actions, the policy promises {expected}')

    def _note_outcome(self, error: Reason | None, generation: int) -> None:
        """Update hold reason, retry budget and FAULT; called with the lock held."""
        if error is None:
            self._hold_reason = None
            return
        if error.code in (Code.ACTION_LATE, Code.ACTION_OUT_OF_ORDER):
            return  # slow is not broken: the chunk before runs out and the arms hold by themselves
        self._actions.flush()
        self._hold_reason = error
        if error.code is Code.INSTRUCTION_REFUSED:
            self._refused_generation = generation  # asking again would give the same answer
            return
        now_ns = self._steady()
        self._errors_ns.append(now_ns)
        while seconds(now_ns - self._errors_ns[0]) > self._config.error_window_s:
            self._errors_ns.popleft()
        if len(self._errors_ns) >= self._config.max_errors:
            self._fault = Reason(
                Code.POLICY_FAILING,
                f'{len(self._errors_ns)} policy steps failed within '
                f'{self._config.error_window_s} s, the last one with {error}; correct the cause, '
                f'then call the reset service',
            )
