"""Everything that exists between configure and cleanup, and how it starts and stops.

The node owns at most one Session. Threads: executor callbacks -> Inputs, the worker thread ->
`_on_report`, the control thread -> CommandPublishers.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from rclpy.lifecycle import LifecycleNode

from safe_pruner_ros.policies.policy import Policy
from safe_pruner_ros.ros import startup
from safe_pruner_ros.ros.command_sinks import make_sink
from safe_pruner_ros.ros.control_thread import ControlThread
from safe_pruner_ros.ros.diagnostics import CameraFacts, NodeFacts
from safe_pruner_ros.ros.graph_watch import LATCHED, SILENCING, GraphWatch, describe_rivals
from safe_pruner_ros.ros.guarded import CallbackGuard
from safe_pruner_ros.ros.inputs import Inputs
from safe_pruner_ros.ros.lifecycle import TransitionRefused
from safe_pruner_ros.ros.overlay_publisher import OverlayPublishers
from safe_pruner_ros.ros.parameters import LIVE_PRUNER_PARAMETERS
from safe_pruner_ros.ros.publishers import CommandPublishers, StepPublishers
from safe_pruner_ros.ros.resources import fastdds_profile
from safe_pruner_ros.runtime.codes import Code, Reason
from safe_pruner_ros.runtime.config import Config, check_policy_fits, check_topics_apart
from safe_pruner_ros.runtime.control_loop import ControlLoop
from safe_pruner_ros.runtime.pruner_settings import effective_settings
from safe_pruner_ros.runtime.shadow_audit import Audit
from safe_pruner_ros.runtime.step_report import StepReport
from safe_pruner_ros.types import JointCommand

POLL_PERIOD_S = 0.005
WAIT_REPORT_PERIOD_S = 1.0
WORKER_STOP_S = 1.0
ERROR_LOG_PERIOD_S = 5.0


class Session:
    """Policy, loop, subscriptions and publishers of one configuration.

    ``withdraw_instruction`` is called when an instruction came on the topic, or one of
    `apply_live` was refused: what the parameter says is not in force then. Building it raises
    ConfigError (a setting, or policy and robot do not fit) or what loading and running the policy
    raises; nothing is left behind then.
    """

    def __init__(
        self,
        node: LifecycleNode,
        config: Config,
        policy_factory: startup.PolicyFactory,
        guard: CallbackGuard,
        instruction: str,
        use_sim_time: bool,
        withdraw_instruction: Callable[[], None],
    ) -> None:
        self._node, self._guard = node, guard
        self._withdraw_instruction = withdraw_instruction
        self.config = config
        # As the node hears them: a remapping, or a leading slash more, may make one of two.
        check_topics_apart(config.robot, node.resolve_topic_name)
        self.policy: Policy = policy_factory(config)
        check_policy_fits(self.policy.spec, config.robot)
        self.warm_up_ms = startup.warm_up(self.policy, config.robot.layout, instruction)
        runtime = config.runtime
        self.loop = ControlLoop(
            config,
            self.policy,
            lambda: self.now_ns(),
            guard.wrap('policy step', self._on_report),
            on_audit=guard.wrap('audit', self._on_audit),
            kinematics=startup.build_kinematics(config),
        )
        self._logged_ratio = config.pruner.retention_ratio
        self._seen: tuple[Reason, ...] = ()  # on the graph
        self._unsent: tuple[Reason, ...] = ()
        self._blocked: tuple[Reason, ...] = ()  # both, as the loop has them
        self._block_lock = threading.Lock()
        self._lock = threading.Lock()
        self._verdicts: Counter[str] = Counter()
        self._steps = self._key_timesteps = 0
        self._error_logged_s = float('-inf')
        self._closers: list[Callable[[], None]] = []
        try:
            dry_run = config.robot.dry_run
            period_s = 1.0 / runtime.control_rate_hz
            sinks = [make_sink(sink, period_s, dry_run) for sink in config.robot.sinks]
            self._commands = CommandPublishers(node, sinks)
            self._closers.append(self._commands.destroy)
            self._steps_out = StepPublishers(node, self.policy.spec)
            self._closers.append(self._steps_out.destroy)
            self._inputs = Inputs(
                node, config.robot, self.loop, guard, use_sim_time, withdraw_instruction
            )
            self._closers.append(self._inputs.destroy)
            # An optional view that the policy reads is an input like any other.
            views = {camera.name for camera in config.robot.cameras if camera.required}
            views |= {view.name for view in self.policy.spec.views}
            self._graph = GraphWatch(node, self._commands, self._inputs, views, dry_run)
            self._overlays = OverlayPublishers(
                node,
                self.policy.spec,
                self._inputs.frame_ids,
                lambda error: guard.report('overlay', error),
            )
            self._closers.append(self._overlays.destroy)
        except Exception:
            self.close()
            raise
        self._control = ControlThread(
            runtime.control_period_ns,
            self.now_ns,
            self.loop.tick,
            self._send,
            lambda error: guard.report('control tick', error),
        )
        if instruction:
            self.loop.set_instruction(instruction)

    def now_ns(self) -> int:
        return self._inputs.now_ns()

    # ---- lifecycle

    def wait_until_ready(
        self, timeout_s: float, stopped: Callable[[], bool], report: Callable[[], None]
    ) -> None:
        """Block until every required source is fresh and has one publisher. Raises
        TransitionRefused naming the rest. ``report`` is called once a second: no timer of the node
        is served meanwhile."""
        report_s = time.monotonic() + WAIT_REPORT_PERIOD_S
        deadline_s = time.monotonic() + timeout_s
        while True:
            self._inputs.poll()
            missing = self.loop.missing(self.now_ns()) or self._graph.doubled_inputs()
            if not missing:
                return
            if stopped():
                raise TransitionRefused('the process was asked to stop')
            if time.monotonic() > deadline_s:
                raise TransitionRefused(
                    f'not ready after {timeout_s:g} s: '
                    + '; '.join(str(reason) for reason in missing)
                )
            if time.monotonic() > report_s:
                report()
                report_s = time.monotonic() + WAIT_REPORT_PERIOD_S
            time.sleep(POLL_PERIOD_S)

    def is_ready(self) -> bool:
        return not self.loop.missing(self.now_ns())

    def refuse_rivals(self) -> None:
        """Raise TransitionRefused if somebody else commands the robot already."""
        if rivals := self._graph.rivals():
            raise TransitionRefused(
                f'{describe_rivals(rivals)}. Stop it, or run one of them with robot.dry_run:=true'
            )

    def start(self) -> None:
        """Raises TransitionRefused while a policy step or a send of the last start goes on."""
        self._unsent = ()
        self._look_at_graph()
        try:
            self.loop.start()
            self._control.start()
        except RuntimeError as error:
            raise TransitionRefused(str(error)) from error

    def stop(self) -> bool:
        """No command leaves after this; False if the policy still computes, or a send hangs."""
        control_ended = self._control.stop()
        stopped = self.loop.stop(WORKER_STOP_S) and control_ended
        self._graph.forget_rivals()
        self.loop.block()
        self._blocked = ()
        return stopped

    def close(self) -> None:
        """Give up subscriptions and publishers. Call `stop` first."""
        while self._closers:
            self._closers.pop()()

    # ---- while it runs

    def reset(self) -> None:
        """Start of an episode, and the way out of FAULT."""
        with self._lock:
            self._steps = self._key_timesteps = 0
            self._verdicts.clear()
        self.loop.reset()

    def pause(self) -> None:
        self.loop.pause()

    def resume(self) -> None:
        """Go on after a pause, a rival or a send that failed. Raises TransitionRefused while the
        rival is there."""
        self.refuse_rivals()
        self._graph.forget_rivals()
        self._unsent = ()
        self.loop.resume()

    def watch(self, is_active: bool) -> None:
        """What only looking from time to time can find: latched instructions, other nodes."""
        self._inputs.follow_latched_instruction()
        if is_active:
            self._look_at_graph()

    def _look_at_graph(self) -> None:
        self._seen = self._graph.look()
        self._block()

    def _send(self, command: JointCommand) -> None:
        """In the control thread. After a failure nobody knows which arm got its command, and the
        guard counts it as sent to all: nothing is sent from the next tick on, and an arm that can
        still be reached does not go on alone. Latched, as each new try would move it a bit."""
        try:
            self._commands.send(command)
        except Exception as error:
            text = (
                f'a command could not be sent ({type(error).__name__}: {error}), one arm may have '
                'got it and another not. Nothing is sent; see the log, look where the arms are, '
                'then call ~/resume'
            )
            self._unsent = (Reason(Code.COMMAND_UNSENT, text),)
            self._block()
            raise

    def _block(self) -> None:
        """Locked: the executor thread must not take back what the control thread just found."""
        logger = self._node.get_logger()
        with self._block_lock:
            reasons = (*self._unsent, *self._seen)
            for reason in reasons:
                if reason not in self._blocked:
                    # A controller that is not up yet is part of many a start.
                    is_usual = reason.code is Code.COMMAND_UNHEARD
                    (logger.warning if is_usual else logger.error)(f'the arms hold: {reason}')
            if reasons or self._blocked:
                self.loop.block(reasons, any(reason.code in SILENCING for reason in reasons))
            self._blocked = reasons

    def apply_live(self, config: Config, instruction: str | None) -> None:
        """Live parameters. Raises ValueError if the policy cannot follow, or for an instruction
        that is refused: then the arms hold, as they do for one that comes on the topic.

        Nothing else of ``config`` counts: the rest of it is not what this session was built from.
        """
        if instruction is not None:
            refused = self.loop.set_instruction(instruction)
            if refused is not None and refused.code is Code.INSTRUCTION_REFUSED:
                self._withdraw_instruction()
                raise ValueError(str(refused))
        wanted, current = config.pruner, self.config.pruner
        live = [name.removeprefix('pruner.') for name in LIVE_PRUNER_PARAMETERS]
        changes = {name: getattr(wanted, name) for name in live}
        changes = {n: value for n, value in changes.items() if value != getattr(current, n)}
        if changes:
            # Only these: audit or latency budget may have moved the ratio from what is configured.
            settings = effective_settings(wanted)  # a value set back is the method's own
            settings = {name: settings[name] for name in changes if name in settings}
            with self.loop.retention.lock:
                startup.update_pruner(self.policy, settings)
                if 'retention_ratio' in changes:
                    self.loop.retention.set_base(wanted.retention_ratio)
            self.config = replace(self.config, pruner=replace(current, **changes))

    def facts(self, lifecycle: str) -> NodeFacts:
        config, spec = self.config, self.policy.spec
        now_ns = self.now_ns()
        status = self.loop.status(now_ns)
        if lifecycle != 'active':
            # The reasons of the last tick may be an hour old: what would stop activate now?
            waiting = self.loop.missing(now_ns) + self._graph.doubled_inputs()
            status = replace(status, reasons=waiting)
        horizon = config.policy.execution_horizon or spec.execution_horizon
        with self._lock:
            verdicts, steps, keys = dict(self._verdicts), self._steps, self._key_timesteps
        return NodeFacts(
            robot=config.robot.name,
            lifecycle=lifecycle,
            loop=status,
            views=tuple(camera.name for camera in config.robot.cameras),
            cameras={
                name: CameraFacts(meter.receive_ratio(), meter.largest_bytes, meter.lost_events)
                for name, meter in self._inputs.meters.items()
            },
            dry_run=config.robot.dry_run,
            listeners=self._commands.listeners(),
            silenced='; '.join(r.text for r in self._blocked if r.code in LATCHED),
            qos_problems=dict(self._inputs.qos_problems),
            callback_failures=self._guard.failures(),
            sent_commands=self._commands.sent,
            late_ticks=self._control.late_ticks,
            silent_s=self._control.silent_s() if lifecycle == 'active' else 0.0,
            verdicts=verdicts,
            steps=steps,
            key_timesteps=keys,
            execution_period_ms=1e3 * horizon * (config.policy.period_s or spec.period_s),
            audit_limit_rad=config.runtime.audit.max_deviation_rad,
            profile=str(fastdds_profile()),
        )

    def _on_report(self, report: StepReport) -> None:
        """After every policy step, in the worker thread."""
        with self._lock:
            self._verdicts.update(report.verdicts)
            if report.trace is not None:
                self._steps += 1
                self._key_timesteps += report.trace.is_key_timestep
        self._steps_out.publish(report, self.now_ns())
        self._overlays.submit(report)
        self._log_retention()
        if report.error is not None:
            self._log_error(report)

    def _on_audit(self, audit: Audit) -> None:
        """After every shadow audit, in the worker thread."""
        self._steps_out.publish_audit(audit, self.loop.audit.counts)
        self._log_retention()

    def _log_retention(self) -> None:
        state = self.loop.retention.state
        if state.ratio != self._logged_ratio:
            self._node.get_logger().warning(f'retention_ratio {state.ratio:g}: {state.reason}')
            self._logged_ratio = state.ratio

    def _log_error(self, report: StepReport) -> None:
        assert report.error is not None
        if report.error.code is Code.RESULT_DISCARDED:  # expected at every new instruction
            self._node.get_logger().info(f'policy step {report.step}: {report.error}')
            return
        now_s = time.monotonic()
        if now_s - self._error_logged_s < ERROR_LOG_PERIOD_S:
            return
        self._error_logged_s = now_s
        text = f'policy step {report.step}: {report.error}'
        self._node.get_logger().error(f'{text}\n{report.traceback}' if report.traceback else text)
