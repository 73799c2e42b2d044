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
from safe_pruner_ros.sim.scene import TRAY_CENTRE
from safe_pruner_ros.sim.tasks.task import (
    SceneLayout,
    Task,
    height_above_table,
    holder,
    in_tray,
)
from safe_pruner_ros.sim.world import WorldState

TEMPLATES = (
    'pick up the {object} and place it in the tray',
    'put the {object} in the tray',
    'move the {object} into the tray',
    'grab the {object} and drop it in the tray',
    'place the {object} in the tray',
    'take the {object} to the tray',
)
X_RANGE_M = (0.29, 0.52)
ABS_Y_RANGE_M = (0.175, 0.34)  # clear of the tray and the midline: no doubt which arm is near
SPACING_M = 0.095  # between centres: room for an open finger (6 cm from the hand's middle)
TRAY_JITTER_M = 0.015
REST_SPEED = 0.05  # m/s


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


def _places(rng: np.random.Generator, count: int) -> list[tuple[float, float]]:
    """Table positions (x, y) in m, spaced, with one to three on either side."""
    while True:
        places: list[tuple[float, float]] = []
        for _ in range(200):
            side = rng.choice((-1.0, 1.0))
            x, y = rng.uniform(*X_RANGE_M), side * rng.uniform(*ABS_Y_RANGE_M)
            if all(np.hypot(x - a, y - b) >= SPACING_M for a, b in places):
                places.append((float(x), float(y)))
            if len(places) == count:
                break
        if len(places) == count and abs(sum(np.sign(y) for _, y in places)) < count:
            return places


def sample(rng: np.random.Generator) -> SceneLayout:
    """Draw a scene."""
    kinds = _kinds(rng)
    order = rng.permutation(len(kinds))
    objects = []
    for slot, (x, y) in enumerate(_places(rng, len(kinds))):
        colour, shape = kinds[order[slot]]
        radius, half_height = sample_size(shape, rng)
        rgb = sample_rgb(colour, rng)
        yaw = float(rng.uniform(-np.pi, np.pi))
        objects.append(SceneObject(colour, shape, radius, half_height, rgb, x, y, yaw))
    dx, dy = rng.uniform(-TRAY_JITTER_M, TRAY_JITTER_M, size=2)
    return SceneLayout(
        objects=tuple(objects),
        tray_xy=(TRAY_CENTRE[0] + float(dx), TRAY_CENTRE[1] + float(dy)),
        target_index=int(np.flatnonzero(order == 0)[0]),
        template_index=int(rng.integers(len(TEMPLATES))),
    )


def is_success(world: WorldState, target: int) -> bool:
    """The target lies still in the tray, let go of, and nothing else does."""
    others = (i for i in range(len(world.objects)) if i != target)
    return bool(
        in_tray(world, target)
        and world.speeds[target] < REST_SPEED
        and not world.touched[:, target].any()
        and not any(in_tray(world, i) for i in others)
    )


def stage(world: WorldState, target: int) -> str:
    """How far the task has got, one of ``STAGES``."""
    if is_success(world, target):
        return 'done'
    offset = np.abs(world.positions[target, :2] - world.tray[:2]).max()
    if in_tray(world, target) or (holder(world, target) is not None and offset < 0.05):
        return 'place'
    hand = holder(world, target)
    if hand is None:
        near = np.linalg.norm(world.hands - world.positions[target], axis=1).min() < 0.03
        return 'grasp' if near else 'reach'
    if height_above_table(world, target) < 0.01:
        return 'grasp'
    return 'lift' if height_above_table(world, target) < 0.06 and offset > 0.12 else 'carry'


PICK_PLACE = Task('pick_place', TEMPLATES, sample, is_success, stage)
