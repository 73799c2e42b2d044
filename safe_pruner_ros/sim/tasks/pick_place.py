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
    SceneObject,
    Shape,
    sample_rgb,
    sample_size,
)
from safe_pruner_ros.sim.receptacles import TRAY
from safe_pruner_ros.sim.scene import RECEPTACLE_CENTRE
from safe_pruner_ros.sim.tasks.task import (
    SceneLayout,
    Task,
    is_placed,
    placing_stage,
    sample_places,
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
    kinds = _kinds(rng)
    order = rng.permutation(len(kinds))
    objects = []
    for slot, (x, y) in enumerate(sample_places(rng, len(kinds))):
        colour, shape = kinds[order[slot]]
        radius, half_height = sample_size(shape, rng)
        rgb = sample_rgb(colour, rng)
        yaw = float(rng.uniform(-np.pi, np.pi))
        objects.append(SceneObject(colour, shape, radius, half_height, rgb, x, y, yaw))
    dx, dy = rng.uniform(-TRAY_JITTER_M, TRAY_JITTER_M, size=2)
    return SceneLayout(
        objects=tuple(objects),
        receptacle_xy=(RECEPTACLE_CENTRE[0] + float(dx), RECEPTACLE_CENTRE[1] + float(dy)),
        target_index=int(np.flatnonzero(order == 0)[0]),
        template_index=int(rng.integers(len(TEMPLATES))),
    )


PICK_PLACE = Task('pick_place', TEMPLATES, sample, is_placed, placing_stage, TRAY)
