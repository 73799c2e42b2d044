"""SafePrunerNode: cameras, joints and an instruction in, joint commands out. Wiring and lifecycle.

configure loads, checks and warms up; activate waits for fresh data and starts; deactivate stops
output at once. What runs in between is a `Session`; the loop it drives is `runtime/control_loop`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.executors import Executor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.signals import SignalHandlerOptions
from std_srvs.srv import Trigger

from safe_pruner_ros.ros import diagnostics
from safe_pruner_ros.ros.guarded import CallbackGuard
from safe_pruner_ros.ros.lifecycle import (
    StopSignal,
    TransitionRefused,
    logged_transition,
    make_executor,
    refuse_unavailable_transitions,
    spin_until,
)
from safe_pruner_ros.ros.parameters import NodeParameters
from safe_pruner_ros.ros.session import Session
from safe_pruner_ros.ros.startup import (
    PolicyFactory,
    build_configured_policy,
    describe_timing,
)
from safe_pruner_ros.runtime.config import Config, ConfigError
from safe_pruner_ros.runtime.robot_notes import robot_notes

# Inference in Python may keep the interpreter lock for 5 ms at a time; the control thread wants
# it back sooner (measured on 2 CPU cores: jitter p99 11 -> 5 ms).
SWITCH_INTERVAL_S = 5e-4
WATCH_PERIOD_S = 0.2
SILENCE_LOG_PERIOD_S = 5.0


class SafePrunerNode(LifecycleNode):
    """``policy_factory`` builds the policy of a Config; tests inject a small one."""

    def __init__(
        self,
        policy_factory: PolicyFactory = build_configured_policy,
        stop: StopSignal | None = None,
        **node_arguments: Any,
    ) -> None:
        super().__init__('safe_pruner', **node_arguments)
        refuse_unavailable_transitions(self)
        self._policy_factory, self._stop = policy_factory, stop or StopSignal()
        self._session: Session | None = None
        self.lifecycle = 'unconfigured'
        self._guard = CallbackGuard(self.get_logger())
        self._settings = NodeParameters(self, lambda: self.lifecycle == 'active', self._live)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        for name, action in (
            ('reset', Session.reset),
            ('pause', Session.pause),
            ('resume', Session.resume),
        ):
            self.create_service(Trigger, f'~/{name}', self._service(name, action))
        self._guarded_report = self._guard.wrap('diagnostics', self._report)
        # On steady time: "waiting for /clock" must be reported without /clock.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self.create_timer(
            self._settings.diagnostics_period_s(),
            self._guarded_report,
            clock=steady,
        )
        # Of its own: who reports rarely must not notice a second commander late.
        self._watch_timer = self.create_timer(
            WATCH_PERIOD_S, self._guard.wrap('watch', self._watch), clock=steady
        )

    # ---- transitions

    @logged_transition
    def on_configure(self, state: LifecycleState) -> None:
        try:
            config = self._settings.load()
            self._session = Session(
                self,
                config,
                self._policy_factory,
                self._guard,
                self._settings.value('instruction'),
                self._settings.value('use_sim_time'),
                self._settings.withdraw_instruction,
            )
        except ConfigError as error:
            raise TransitionRefused(str(error)) from error
        self.lifecycle = 'inactive'
        self.get_logger().info(
            f'robot {config.robot.name!r}, policy {self._session.policy.spec.name!r}, '
            f'{config.pruner.method} at retention_ratio {config.pruner.retention_ratio:g}, '
            f'{self._session.warm_up_ms:.0f} ms a step'
            + (', DRY RUN: commands go to ~/preview' if config.robot.dry_run else '')
        )
        if not config.robot.dry_run:
            topics = [sink.topic for sink in config.robot.sinks]
            self.get_logger().warning(
                f'COMMANDS MOVE THE ROBOT {config.robot.name!r} once active: robot.dry_run is '
                f'false, they go to {topics}'
            )
            for text in robot_notes(config.robot):
                self.get_logger().warning(text)
        for text in describe_timing(config, self._session.policy.spec, self._session.warm_up_ms):
            self.get_logger().warning(text)

    @logged_transition
    def on_activate(self, state: LifecycleState) -> None:
        session = self._configured()
        self._refuse_changed_settings()
        session.refuse_rivals()
        timeout_s = self._settings.value('activation_timeout_s')
        session.wait_until_ready(timeout_s, self._stop.is_set, self._guarded_report)
        session.refuse_rivals()
        try:
            super().on_activate(state)
            session.start()
        except Exception:
            self._end_output(state)  # inactive must mean mute, whatever failed
            raise
        self.lifecycle = 'active'

    def _refuse_changed_settings(self) -> None:
        """What is shown as a parameter must be what moves the arms."""
        if changed := self._settings.changed_since_load():
            raise TransitionRefused(
                f'changed since configure: {changed}; clean up and configure again, so that they '
                'count, or set them back'
            )

    @logged_transition
    def on_deactivate(self, state: LifecycleState) -> None:
        self._end_output(state)

    @logged_transition
    def on_cleanup(self, state: LifecycleState) -> None:
        self._free()

    @logged_transition
    def on_shutdown(self, state: LifecycleState) -> None:
        self._end_output(state)
        self._free()

    @logged_transition
    def on_error(self, state: LifecycleState) -> None:
        self._end_output(state)
        self._free()

    def _end_output(self, state: LifecycleState) -> None:
        super().on_deactivate(state)  # mutes the command publishers first
        self.lifecycle = 'inactive'
        if self._session is not None and not self._session.stop():
            self.get_logger().warning(
                'the policy still computes or a send hangs; what comes of it is dropped'
            )

    def _free(self) -> None:
        session, self._session = self._session, None
        self.lifecycle = 'unconfigured'
        self._guard.clear()
        if session is not None:
            session.close()

    def _configured(self) -> Session:
        if self._session is None:
            raise TransitionRefused('not configured')
        return self._session

    # ---- services, parameters, diagnostics

    def _service(
        self, name: str, action: Callable[[Session], None]
    ) -> Callable[[Trigger.Request, Trigger.Response], Trigger.Response]:
        def serve(request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
            try:
                action(self._configured())
                response.success, response.message = True, f'{name} done'
            except TransitionRefused as error:  # the caller can act on it: no failure of ours
                response.success, response.message = False, f'{name} refused: {error}'
                self.get_logger().warning(response.message)
            except Exception as error:
                response.success, response.message = False, f'{name} refused: {error}'
                self._guard.report(f'service {name}', error)
            return response

        return serve

    def _live(self, config: Config, instruction: str | None) -> None:
        if self._session is not None:
            self._session.apply_live(config, instruction)

    def _watch(self) -> None:
        if self._session is not None:
            self._session.watch(self.lifecycle == 'active')

    def _report(self) -> None:
        session = self._session
        if session is None:
            lines = [
                diagnostics.Check('state', diagnostics.OK, f'{self.lifecycle}: nothing is loaded')
            ]
            now_ns, robot = int(self.get_clock().now().nanoseconds), ''
        else:
            facts = session.facts(self.lifecycle)
            lines, now_ns, robot = diagnostics.checks(facts), session.now_ns(), facts.robot
            if silent := diagnostics.why_silent(facts):
                self.get_logger().error(str(silent), throttle_duration_sec=SILENCE_LOG_PERIOD_S)
        self._diagnostics.publish(diagnostics.to_message(lines, robot, now_ns))

    # ---- without a lifecycle manager

    def wants_autostart(self) -> bool:
        return bool(self._settings.value('autostart'))

    def is_ready(self) -> bool:
        return self._session is not None and self._session.is_ready()

    def end(self) -> bool:
        """Stop and free everything; False if the policy is still computing."""
        self.lifecycle = 'finalized'
        finished = self._session is None or self._session.stop()
        self._free()
        return finished


def run(node: SafePrunerNode, executor: Executor, stop: StopSignal) -> int:
    """Serve until ``stop``; with autostart, bring the node to active first. Exit code."""
    if node.wants_autostart():
        if node.trigger_configure() != TransitionCallbackReturn.SUCCESS:
            return 1
        spin_until(executor, stop, until=node.is_ready)
        if not stop.is_set() and node.trigger_activate() != TransitionCallbackReturn.SUCCESS:
            return 1
    spin_until(executor, stop)
    return 0


def main(
    argv: Sequence[str] | None = None, policy_factory: PolicyFactory = build_configured_policy
) -> int:
    """`ros2 run safe_pruner_ros safe_pruner_node`."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    rclpy.init(
        args=None if argv is None else list(argv), signal_handler_options=SignalHandlerOptions.NO
    )
    stop = StopSignal()
    stop.install()
    node = SafePrunerNode(policy_factory, stop)
    executor = make_executor()
    executor.add_node(node)
    code, finished = 1, True
    try:
        code = run(node, executor, stop)
    finally:
        finished = node.end()
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()  # gives the shared memory segments back
    if not finished:
        os._exit(code)  # a policy that computes without end must not keep the process
    return code


if __name__ == '__main__':
    sys.exit(main())
