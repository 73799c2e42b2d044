"""What every task has to say, and the judgement of picking and placing that several share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from safe_pruner_ros.sim.objects import (
    COLOURS,
    SHAPES,
    Colour,
    SceneObject,
    Shape,
    sample_rgb,
)
from safe_pruner_ros.sim.receptacles import Receptacle
from safe_pruner_ros.sim.scene import RECEPTACLE_CENTRE, TABLE_TOP_M
from safe_pruner_ros.sim.world import WorldState

STAGES = ('reach', 'grasp', 'lift', 'carry', 'place', 'done')
X_RANGE_M = (0.29, 0.52)
ABS_Y_RANGE_M = (
    0.175,
    0.34,
)  # clear of the receptacle and the midline: no doubt which arm is near
SPACING_M = 0.095  # between centres: room for an open finger (6 cm from the hand's middle)
REST_SPEED = 0.05  # m/s
WAYPOINT_S = 0.1
FALLEN_M = 0.05  # a centre that far below the table top: off the table, and falling for ever


@dataclass(frozen=True)
class SceneLayout:
    """A sampled scene: the objects by slot, where the receptacle stands, and what is asked.

    ``lid_rad`` is how far its lid is open, where it has one.
    """

    objects: tuple[SceneObject, ...]
    receptacle_xy: tuple[float, float]
    target_index: int
    template_index: int
    lid_rad: float = 0.0


def contains(world: WorldState, index: int) -> bool:
    """Whether an object's centre is within the receptacle's walls and near its floor."""
    offset = world.positions[index] - world.receptacle_position
    return world.receptacle.holds(offset, world.objects[index].half_height_m)


def has_fallen(world: WorldState, index: int) -> bool:
    """Whether an object is off the table."""
    return bool(world.positions[index, 2] < TABLE_TOP_M - FALLEN_M)


def can_be_placed(world: WorldState, target: int) -> bool:
    """Whether a hand that picks up and puts down can still bring the target into the receptacle.

    Not once the target is off the table, nor once another object lies in there, let go of: the
    expert does not take it out again, and ``is_placed`` wants the target alone. One that a hand
    still touches may be put back. In doubt yes.
    """
    left_inside = any(
        contains(world, i) and not world.touched[:, i].any()
        for i in range(len(world.objects))
        if i != target
    )
    return not left_inside and not has_fallen(world, target)


@dataclass(frozen=True)
class Task:
    """A task: its sentences, its scenes, when it is solved and how far it has got.

    ``sample(rng)`` draws a SceneLayout; ``is_success(world, target)``, ``stage(world, target)``
    and ``is_solvable(world, target)`` judge a WorldState; ``stages`` lists what ``stage`` answers,
    in order; ``templates`` contain '{object}'. ``max_steps`` is how many waypoints an episode may
    take; ``with_heads`` compiles dolls into the model; ``shapes`` are those that its scenes may
    show.
    """

    name: str
    templates: tuple[str, ...]
    sample: Callable[[np.random.Generator], SceneLayout] = field(repr=False)
    is_success: Callable[[WorldState, int], bool] = field(repr=False)
    stage: Callable[[WorldState, int], str] = field(repr=False)
    receptacle: Receptacle
    stages: tuple[str, ...] = STAGES
    max_steps: int = 120
    with_heads: bool = False
    shapes: tuple[Shape, ...] = SHAPES
    is_solvable: Callable[[WorldState, int], bool] = field(default=can_be_placed, repr=False)

    @property
    def time_limit_s(self) -> float:
        return WAYPOINT_S * self.max_steps

    @property
    def object_names(self) -> tuple[str, ...]:
        """All that its scenes may show and its sentences may ask for."""
        return tuple(f'{colour} {shape}' for colour in COLOURS for shape in self.shapes)

    @property
    def sentences(self) -> frozenset[str]:
        """Every instruction there is."""
        return frozenset(t.format(object=n) for t in self.templates for n in self.object_names)

    def instruction(self, name: str, template_index: int) -> str:
        return self.templates[template_index].format(object=name)


def sample_places(
    rng: np.random.Generator, count: int, x_range_m: tuple[float, float] = X_RANGE_M
) -> list[tuple[float, float]]:
    """Table positions (x, y) in m, spaced, at least one on either side."""
    while True:
        places: list[tuple[float, float]] = []
        for _ in range(200):
            side = rng.choice((-1.0, 1.0))
            x, y = rng.uniform(*x_range_m), side * rng.uniform(*ABS_Y_RANGE_M)
            if all(np.hypot(x - a, y - b) >= SPACING_M for a, b in places):
                places.append((float(x), float(y)))
            if len(places) == count:
                break
        if len(places) == count and abs(sum(np.sign(y) for _, y in places)) < count:
            return places


def sample_layout(
    rng: np.random.Generator,
    kinds: Sequence[tuple[Colour, Shape]],
    sample_size: Callable[[Shape, np.random.Generator], tuple[float, float]],
    n_templates: int,
    jitter_m: float,
    x_range_m: tuple[float, float] = X_RANGE_M,
    rolling_friction_m: float = SceneObject.rolling_friction_m,
) -> SceneLayout:
    """Objects of these kinds, the target first, anywhere on the table, in any order; and the
    receptacle ``jitter_m`` around its place. ``sample_size`` gives (radius_m, half_height_m)."""
    order = rng.permutation(len(kinds))
    objects = []
    for slot, (x, y) in enumerate(sample_places(rng, len(kinds), x_range_m)):
        colour, shape = kinds[order[slot]]
        radius, half_height = sample_size(shape, rng)
        rgb = sample_rgb(colour, rng)
        yaw = float(rng.uniform(-np.pi, np.pi))
        objects.append(
            SceneObject(colour, shape, radius, half_height, rgb, x, y, yaw, rolling_friction_m)
        )
    dx, dy = rng.uniform(-jitter_m, jitter_m, size=2)
    return SceneLayout(
        objects=tuple(objects),
        receptacle_xy=(RECEPTACLE_CENTRE[0] + float(dx), RECEPTACLE_CENTRE[1] + float(dy)),
        target_index=int(np.flatnonzero(order == 0)[0]),
        template_index=int(rng.integers(n_templates)),
    )


def holder(world: WorldState, index: int) -> int | None:
    """Which hand (0 left, 1 right) holds an object between its pads, or None."""
    hands = np.flatnonzero(world.gripped[:, index])
    return int(hands[0]) if hands.size else None


def height_above_table(world: WorldState, index: int) -> float:
    """Metres between the table top and the object's underside."""
    return float(world.positions[index, 2] - world.objects[index].half_height_m - TABLE_TOP_M)


def is_placed(world: WorldState, target: int) -> bool:
    """The target lies still in the receptacle, let go of, and nothing else does."""
    others = (i for i in range(len(world.objects)) if i != target)
    return bool(
        contains(world, target)
        and world.speeds[target] < REST_SPEED
        and not world.touched[:, target].any()
        and not any(contains(world, i) for i in others)
    )


def placing_stage(world: WorldState, target: int) -> str:
    """How far bringing the target into the receptacle has got, one of ``STAGES``."""
    if is_placed(world, target):
        return 'done'
    offset = np.abs(world.positions[target, :2] - world.receptacle_position[:2]).max()
    if contains(world, target) or (holder(world, target) is not None and offset < 0.05):
        return 'place'
    hand = holder(world, target)
    if hand is None:
        near = np.linalg.norm(world.hands - world.positions[target], axis=1).min() < 0.03
        return 'grasp' if near else 'reach'
    if height_above_table(world, target) < 0.01:
        return 'grasp'
    return 'lift' if height_above_table(world, target) < 0.06 and offset > 0.12 else 'carry'
