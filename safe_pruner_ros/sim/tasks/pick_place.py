"""Pick the named object out of four and put it into the tray, with the arm of its side.

Every scene holds the target, one object of the same colour, one of the same shape and one more, so
that neither word of the name is enough.
"""

from __future__ import annotations

import numpy as np

from safe_pruner_ros.sim.objects import (
    COLOURS,
    SHAPES,
    Colour,
    Shape,
    sample_size,
)
from safe_pruner_ros.sim.receptacles import TRAY
from safe_pruner_ros.sim.tasks.task import (
    SceneLayout,
    Task,
    is_placed,
    placing_stage,
    sample_layout,
)

TEMPLATES = (
    'pick up the {object} and place it in the tray',
    'put the {object} in the tray',
    'move the {object} into the tray',
    'grab the {object} and drop it in the tray',
    'place the {object} in the tray',
    'take the {object} to the tray',
)
TRAY_JITTER_M = 0.015


def _kinds(rng: np.random.Generator) -> list[tuple[Colour, Shape]]:
    """Four different kinds, the target first."""
    colour, shape = COLOURS[rng.integers(4)], SHAPES[rng.integers(3)]
    other_colours = [c for c in COLOURS if c != colour]
    other_shapes = [s for s in SHAPES if s != shape]
    kinds = [
        (colour, shape),
        (colour, other_shapes[rng.integers(2)]),
        (other_colours[rng.integers(3)], shape),
    ]
    rest = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in kinds]
    kinds.append(rest[rng.integers(len(rest))])
    return kinds


def sample(rng: np.random.Generator) -> SceneLayout:
    """Draw a scene."""
    return sample_layout(rng, _kinds(rng), sample_size, len(TEMPLATES), TRAY_JITTER_M)


PICK_PLACE = Task('pick_place', TEMPLATES, sample, is_placed, placing_stage, TRAY)
