"""A command guard under the hand, tick by tick."""

from __future__ import annotations

import numpy as np

from safe_pruner_ros.runtime.command_guard import CommandGuard
from safe_pruner_ros.runtime.config import GuardConfig
from safe_pruner_ros.types import ArmState, JointCommand

TICK = 20_000_000
HOME = np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.1])


def arms(delta):
    """HOME with every arm joint moved."""
    return HOME + np.array([1, 1, 0, 1, 1, 0]) * delta


class Bench:
    """A guard, its clock, and an arm that stands where it was told to (or at ``measured``)."""

    def __init__(self, kit, robot=None, rate_hz=50.0, **settings_):
        settings_.setdefault('soft_start_s', 0.0)
        settings_.setdefault('stall_s', 3600.0)  # its arm stands still by itself
        self.kit, self.robot = kit, robot or kit.robot()
        self.guard = CommandGuard(self.robot, GuardConfig(**settings_), rate_hz)
        self.now, self.measured = kit.T0, HOME.copy()

    def tick(self, targets, reasons=(), state=True, age_ns=0, names=None, ns=TICK):
        self.now += ns
        command = None
        if targets is not None:
            names = names or self.kit.JOINTS
            command = JointCommand(np.asarray(targets, float), names, self.now - age_ns)
        pose = ArmState(self.measured, self.kit.JOINTS, self.now) if state is True else state
        return self.guard.check(command, pose, self.now, reasons)

    def settle(self, targets, ticks=60):
        for _ in range(ticks):
            verdict = self.tick(targets)
        return verdict
