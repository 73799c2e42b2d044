"""What tests of the control loop share: its pace, and a policy that goes somewhere."""

from __future__ import annotations

import numpy as np

TICK_MS = 20


def reach(goal, step=0.02):
    """A policy that moves towards ``goal`` from where it sees the arms."""

    def script(obs):
        here, rows = obs.state.positions, []
        for _ in range(4):
            here = here + np.clip(goal - here, -step, step)
            rows.append(here)
        return np.stack(rows)

    return script


GOAL = np.array([0.4, -0.5, 0.9, 0.3, -0.7, 0.0])
