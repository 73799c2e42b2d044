"""Pick the named doll out of four objects, place it in the box and push the lid shut.

The long task: three subtasks (pick, place, close the lid), each of which looks elsewhere. The lid
stays where it is left, so a hand has to push it all the way.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from safe_pruner_ros.sim.objects import COLOURS, SHAPES, Colour, Shape
from safe_pruner_ros.sim.receptacles import BOX, LID_OPEN_RAD, LID_SHUT_RAD
from safe_pruner_ros.sim.tasks.task import (
    STAGES,
    SceneLayout,
    Task,
    can_be_placed,
    contains,
    is_placed,
    placing_stage,
    sample_layout,
)
from safe_pruner_ros.sim.world import WorldState

TEMPLATES = (
    'put the {object} in the box and close the lid',
    'pack the {object} into the box and shut it',
    'place the {object} in the box then close it',
    'pick up the {object} and pack it in the box',
    'pack the {object} away and close the box',
    'box up the {object} and close the lid',
)
X_RANGE_M = (0.27, 0.43)  # in front of the open lid: the way to the box stays clear of it
BOX_JITTER_M = 0.012
LID_JITTER_RAD = 0.12
# The gap at the lid's edge is narrower than any doll below 0.2 rad (0.175 m * sin 0.2 = 3.5 cm).
# Where exactly the expert stops getting in is not sharp; above, it may.
GAP_RAD = 0.2


def _size(shape: Shape, rng: np.random.Generator) -> tuple[float, float]:
    """(radius_m, half_height_m): everything fits under the lid, also upright."""
    if shape == 'block':
        return float(rng.uniform(0.017, 0.022)), float(rng.uniform(0.013, 0.017))
    if shape == 'ball':
        radius = float(rng.uniform(0.018, 0.023))
        return radius, radius
    return float(rng.uniform(0.0175, 0.020)), float(rng.uniform(0.025, 0.027))


def sample(rng: np.random.Generator) -> SceneLayout:
    """Draw a scene: the doll, a doll of another colour, a thing of its colour and one more."""
    colours = [COLOURS[k] for k in rng.permutation(len(COLOURS))]
    things: tuple[Shape, ...] = ('block', 'cylinder', 'ball')
    same, more = (things[k] for k in rng.integers(len(things), size=2))
    kinds: list[tuple[Colour, Shape]] = [
        (colours[0], 'doll'),
        (colours[1], 'doll'),
        (colours[0], same),
        (colours[int(rng.integers(1, 4))], more),
    ]
    layout = sample_layout(rng, kinds, _size, len(TEMPLATES), BOX_JITTER_M, X_RANGE_M)
    return replace(layout, lid_rad=LID_OPEN_RAD - float(rng.uniform(0.0, LID_JITTER_RAD)))


def is_success(world: WorldState, target: int) -> bool:
    """The target, and nothing else, lies still in the box, and the lid is shut."""
    return is_placed(world, target) and world.lid_rad < LID_SHUT_RAD


def is_solvable(world: WorldState, target: int) -> bool:
    """As for every placing; and a lid that shut before the target was inside stays shut: the hands
    push it, they do not lift it."""
    can_get_in = contains(world, target) or world.lid_rad > GAP_RAD
    return can_get_in and can_be_placed(world, target)


def stage(world: WorldState, target: int) -> str:
    """How far the task has got, one of ``PACK_DOLL.stages``."""
    if not is_placed(world, target):
        return placing_stage(world, target)
    return 'done' if world.lid_rad < LID_SHUT_RAD else 'close_lid'


PACK_DOLL = Task(
    'pack_doll',
    TEMPLATES,
    sample,
    is_success,
    stage,
    BOX,
    stages=(*STAGES[:-1], 'close_lid', 'done'),
    max_steps=240,
    with_heads=True,
    shapes=(*SHAPES, 'doll'),
    is_solvable=is_solvable,
)
