"""Pick the named small ball out of four objects and drop it through the hoop.

The hoop's opening is twice as wide as a ball, so the hand has to be within a centimetre or two
when it opens. A closed net hangs below it: what lies in there went through the hoop.
"""

from __future__ import annotations

import numpy as np

from safe_pruner_ros.sim.objects import COLOURS, Colour, Shape
from safe_pruner_ros.sim.receptacles import HOOP
from safe_pruner_ros.sim.tasks.task import (
    SceneLayout,
    Task,
    is_placed,
    placing_stage,
    sample_layout,
)

TEMPLATES = (
    'pick up the {object} and drop it through the hoop',
    'throw the {object} into the hoop',
    'put the {object} through the hoop',
    'drop the {object} into the basketball hoop',
    'score a basket with the {object}',
    'shoot the {object} through the hoop',
)
HOOP_JITTER_M = 0.02
ROLLING_FRICTION_M = 0.006  # soft balls: one that is knocked stays on the table


def _size(shape: Shape, rng: np.random.Generator) -> tuple[float, float]:
    """(radius_m, half_height_m): everything fits through the hoop."""
    radius = float(rng.uniform(0.014, 0.017))
    if shape == 'ball':
        return radius, radius
    return radius, float(rng.uniform(0.014, 0.018))


def sample(rng: np.random.Generator) -> SceneLayout:
    """Draw a scene: the target ball, two balls of other colours, another shape of its colour."""
    colours = [COLOURS[k] for k in rng.permutation(len(COLOURS))]
    other: Shape = 'block' if rng.random() < 0.5 else 'cylinder'
    kinds: list[tuple[Colour, Shape]] = [(colour, 'ball') for colour in colours[:3]]
    kinds.append((colours[0], other))
    return sample_layout(
        rng, kinds, _size, len(TEMPLATES), HOOP_JITTER_M, rolling_friction_m=ROLLING_FRICTION_M
    )


THROW_BASKETBALL = Task(
    'throw_basketball', TEMPLATES, sample, is_placed, placing_stage, HOOP, max_steps=160
)
