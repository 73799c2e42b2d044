"""Rows 30, 36, 39, 40: errors, hangs, late results; the thread survives all of them."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from safe_pruner_ros.policies.cogact.ensemble import AdaptiveEnsemble
from safe_pruner_ros.policies.policy import InstructionError, PolicyOutputError
from safe_pruner_ros.runtime.action_buffer import ActionBuffer
from safe_pruner_ros.runtime.codes import Code
from safe_pruner_ros.runtime.config import ActionConfig, BufferConfig, PolicyConfig, WorkerConfig
from safe_pruner_ros.runtime.inference_worker import InferenceWorker
from safe_pruner_ros.runtime.observation_buffer import ObservationBuffer


@pytest.fixture
def make(kit):
    def make(policy=None, on_report=None, policy_config=None):
        bench = SimpleNamespace(clock=kit.Clock(), policy=policy or kit.Policy(), reports=[])
        bench.buffer = ObservationBuffer(kit.robot(), BufferConfig())
        bench.actions = ActionBuffer(kit.robot().layout, ActionConfig(), 20 * kit.MS)
        bench.worker = InferenceWorker(
            bench.policy,
            bench.buffer,
            bench.actions,
            WorkerConfig(),
            policy_config or PolicyConfig(),
            bench.clock,
            on_report or bench.reports.append,
            lambda: {'pass': 3},
            bench.clock.steady,
        )
        bench.buffer.set_instruction('lift the cup')
        feed = kit.Feeder(bench.buffer)

        def step(ms=100):
            for _ in range(ms // 10):
                bench.clock.advance(10 * kit.MS)
                feed.all(bench.clock.ns)
            return bench.worker.run_once()

        bench.step = step
        return bench

    return make


def test_a_step_reports_everything(kit, make):
    bench = make()
    report = bench.step()
    assert report.succeeded and report is bench.worker.last_report and bench.reports == [report]
    assert report.step == 0 and report.instruction == 'lift the cup'
    assert report.observation_stamp_ns == bench.clock.ns and report.age_s == 0.0
    assert report.chunk.positions.shape == (4, 6) and report.trace.n_retained == 4
    assert report.latency_ms['total'] == 12.0 and report.verdicts == {'pass': 3}
    assert bench.actions.command(bench.clock.ns) is not None


def test_waits_for_new_observations_and_for_the_horizon(kit, make):
    bench = make()
    assert bench.worker.run_once() is None  # nothing there yet
    bench.step()
    assert bench.worker.run_once() is None
    assert bench.step(ms=100) is None  # two actions of 0.1 s are to be executed first
    assert bench.step(ms=100).step == 1
    bench.clock.advance(200 * kit.MS)
    assert bench.worker.run_once() is None  # due, but the observation is the same
    assert len(bench.policy.observations) == 2


def test_own_horizon_and_period(kit, make):
    bench = make(policy_config=PolicyConfig(execution_horizon=1, period_s=0.2))
    assert bench.step().chunk.period_ns == 200 * kit.MS
    assert bench.step(ms=190) is None
    assert bench.step(ms=20).step == 1


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_one_bad_action_value_drops_the_chunk_and_holds(kit, make, bad):
    rows = np.zeros((4, 6))
    rows[2, 3] = bad
    bench = make(kit.Policy(lambda obs: rows))
    report = bench.step()
    assert report.error.code is Code.ACTION_NONFINITE and report.chunk is None
    assert report.trace is not None  # what the pruner did is still known
    assert bench.actions.command(bench.clock.ns) is None
    assert [r.code for r in bench.worker.hold_reasons()] == [Code.ACTION_NONFINITE]


@pytest.mark.parametrize(
    ('error', 'code'),
    [
        (RuntimeError('CUDA out of memory'), Code.POLICY_ERROR),
        (MemoryError(), Code.POLICY_ERROR),
        (SystemExit(2), Code.POLICY_ERROR),  # argparse in a checkpoint's code
        (PolicyOutputError('NaN in the action head'), Code.POLICY_OUTPUT),
    ],
)
def test_errors_hold_recover_and_fault_after_three(make, kit, error, code):
    def script(obs):
        if failing:
            raise error
        return np.zeros((4, 6))

    bench, failing = make(kit.Policy(script)), True
    report = bench.step()
    assert report.error.code is code and type(error).__name__ in report.traceback
    assert 'Traceback' not in report.error.text
    failing = False
    assert bench.step().succeeded and bench.worker.hold_reasons() == ()
    failing = True
    bench.step(300)
    assert bench.worker.fault is None
    bench.step(300)
    assert bench.worker.fault.code is Code.POLICY_FAILING
    assert str(report.error.code.value) in bench.worker.fault.text
    failing = False
    calls = len(bench.policy.observations)
    assert bench.step(300) is None and len(bench.policy.observations) == calls
    bench.worker.reset()
    assert bench.step(300).succeeded and bench.policy.resets == 1


@pytest.mark.parametrize('rows', [0, 3, 5])
def test_chunk_of_another_length_than_promised(kit, make, rows):
    report = make(kit.Policy(lambda obs: np.zeros((rows, 6)))).step()
    assert report.error.code is Code.POLICY_OUTPUT and f'{rows} actions' in report.error.text


def test_policy_that_returns_nonsense(kit, make):
    policy = kit.Policy()
    policy.predict = lambda observation: None
    assert make(policy).step().error.code is Code.POLICY_OUTPUT


def test_rare_errors_are_no_fault(kit, make):
    def script(obs):
        raise ValueError('now and then')

    bench = make(kit.Policy(script))
    for _ in range(10):
        bench.step()
        bench.clock.steady_ns += 6_000_000_000
    assert bench.worker.fault is None


def test_refused_instruction_is_asked_once_and_is_no_fault(kit, make):
    def script(obs):
        if 'dragon' in obs.instruction:
            raise InstructionError("does not know ['dragon']")
        return np.zeros((4, 6))

    bench = make(kit.Policy(script))
    bench.buffer.set_instruction('lift the dragon')
    assert bench.step().error.code is Code.INSTRUCTION_REFUSED
    for _ in range(5):
        assert bench.step() is None
    assert len(bench.policy.observations) == 1 and bench.worker.fault is None
    assert 'dragon' in str(bench.worker.hold_reasons()[0])
    bench.buffer.set_instruction('lift the cup')
    bench.worker.void()
    assert bench.worker.hold_reasons() == ()
    assert bench.step().succeeded


@pytest.mark.parametrize('what', ['instruction', 'reset', 'void', 'pause', 'clear'])
def test_result_made_void_meanwhile_is_discarded(kit, make, what):
    def script(obs):
        {
            'instruction': lambda: bench.buffer.set_instruction('put it down'),
            'reset': bench.worker.reset,
            'void': bench.worker.void,
            'pause': bench.worker.pause,
            'clear': bench.buffer.clear,
        }[what]()
        return np.zeros((4, 6))

    bench = make(kit.Policy(script))
    report = bench.step()
    assert report.error.code is Code.RESULT_DISCARDED and report.chunk is None
    assert bench.actions.command(bench.clock.ns) is None
    assert bench.worker.fault is None


@pytest.fixture
def joining(kit):
    """A policy whose second chunk says 1 where the first said 0, joined as CogACT joins them.
    ``first`` happens while the first is computed; it may return other rows."""

    class Joining(kit.Policy):
        def __init__(self, first):
            self.first, self.forgotten = first, []
            self.ensemble = AdaptiveEnsemble(horizon=2, alpha=0.1, period_ns=100 * kit.MS)
            super().__init__(self.answer, chunk=16)

        def answer(self, observation):
            n = len(self.observations)
            rows = np.full((16, 6), float(n > 1))
            replaced = self.first() if n == 1 else None
            rows = rows if replaced is None else replaced
            joined = self.ensemble.average(rows, observation.stamp_ns)
            self.ensemble.remember(rows, observation.stamp_ns)
            return joined

        def forget_plans(self):
            self.forgotten.append(len(self.observations))
            self.ensemble.clear()

    return Joining


@pytest.mark.parametrize('what', ['nothing', 'pause', 'void', 'instruction', 'clear', 'reset'])
def test_plans_that_became_void_are_not_continued(kit, make, joining, what):
    bench = make(joining(lambda: None))
    assert bench.step().succeeded
    {
        'nothing': lambda: None,
        'pause': lambda: (bench.worker.pause(), bench.worker.resume()),
        'void': bench.worker.void,
        'instruction': lambda: bench.buffer.set_instruction('put it down'),
        'clear': bench.buffer.clear,
        'reset': bench.worker.reset,
    }[what]()
    rows = bench.step(200).chunk.positions
    assert (rows == 1).all() == (what != 'nothing')
    assert bench.policy.forgotten[1:] == ([] if what == 'nothing' else [1])
    assert bench.step(200).succeeded and len(bench.policy.forgotten) <= 2  # once is enough


@pytest.mark.parametrize('what', ['void', 'pause', 'error', 'not finite'])
def test_a_chunk_that_was_not_used_is_not_continued(kit, make, joining, what):
    """Discarded for what happened meanwhile, or refused: it moves no arm, then or later."""

    def pause():
        bench.worker.pause()
        bench.worker.resume()

    def fail():
        raise RuntimeError('now and then')

    first = {
        'void': lambda: bench.worker.void(),
        'pause': pause,
        'error': fail,
        'not finite': lambda: np.full((16, 6), np.nan),
    }[what]
    bench = make(joining(first))
    assert bench.step().error is not None
    report = bench.step(100)
    assert report.succeeded and (report.chunk.positions == 1).all()


def test_late_chunk_is_dropped_but_is_no_error_of_the_policy(kit, make):
    def script(obs):
        bench.clock.advance(500 * kit.MS)
        return np.zeros((4, 6))

    bench = make(kit.Policy(script))
    for _ in range(5):
        assert bench.step(200).error.code is Code.ACTION_LATE
    assert bench.worker.fault is None


def test_keyframe_and_pause(make):
    bench = make()
    bench.worker.force_keyframe()
    bench.step()
    assert bench.policy.keyframes == 1
    bench.worker.pause()
    assert [r.code for r in bench.worker.hold_reasons()] == [Code.PAUSED]
    assert bench.step(300) is None
    bench.worker.resume()
    assert bench.step(300).succeeded and bench.policy.keyframes == 1


def test_a_step_that_began_in_the_moment_of_the_pause_moves_nothing(make):
    bench = make()
    snapshot = bench.buffer.snapshot

    def paused_meanwhile(now_ns):
        bench.worker.pause()
        return snapshot(now_ns)

    bench.buffer.snapshot = paused_meanwhile
    assert bench.step().succeeded
    bench.worker.resume()
    assert bench.actions.command(bench.clock.ns) is None
    bench.buffer.snapshot = snapshot
    assert bench.step(300).succeeded
    bench.worker.resume()  # was not paused: what is planned goes on
    assert bench.actions.command(bench.clock.ns) is not None


def test_report_that_raises_does_not_matter(make):
    def broken(report):
        raise OSError('disk full')

    bench = make(on_report=broken)
    assert bench.step().succeeded


def wait_for(condition, timeout_s=5.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, 'timed out'
        time.sleep(0.002)


def test_hang_is_seen_from_outside_and_stop_does_not_wait_for_ever(kit, make):
    release = threading.Event()

    def script(obs):
        release.wait(10.0)
        return np.zeros((4, 6))

    bench = make(kit.Policy(script))
    bench.worker.start()
    with pytest.raises(RuntimeError, match='runs already'):
        bench.worker.start()
    kit.Feeder(bench.buffer).all(bench.clock.ns)
    bench.worker.notify()
    wait_for(lambda: bench.worker.busy_since_ns is not None)
    assert bench.worker.hold_reasons() == ()
    bench.clock.steady_ns += 3_000_000_000
    assert [r.code for r in bench.worker.hold_reasons()] == [Code.INFERENCE_SLOW]
    began = time.monotonic()
    assert bench.worker.stop(0.1) is False
    assert time.monotonic() - began < 2.0
    with pytest.raises(RuntimeError, match='was stopped but its last policy step still computes'):
        bench.worker.start()
    release.set()
    assert bench.worker.stop(5.0)
    assert bench.worker.busy_since_ns is None
    assert bench.reports[0].error.code is Code.RESULT_DISCARDED
    assert bench.actions.command(bench.clock.ns) is None


def test_thread_survives_errors_and_restarts(kit, make):
    calls = []

    def script(obs):
        calls.append(obs)
        if len(calls) == 1:
            raise RuntimeError('first')
        return np.zeros((4, 6))

    bench = make(kit.Policy(script))
    feed = kit.Feeder(bench.buffer)
    for expected in (1, 2):
        bench.worker.start()
        bench.clock.advance(100 * kit.MS)
        feed.all(bench.clock.ns)
        bench.worker.notify()
        wait_for(lambda n=expected: len(bench.reports) == n)
        assert bench.worker.stop()
    assert bench.reports[0].error and bench.reports[1].succeeded
    assert threading.active_count() < 10
