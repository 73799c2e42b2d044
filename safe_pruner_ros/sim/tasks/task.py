"""What every task has to say, and the tray logic that several of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from safe_pruner_ros.sim.objects import SceneObject
from safe_pruner_ros.sim.scene import TABLE_TOP_M, TRAY_HALF_SIZE_M
from safe_pruner_ros.sim.world import WorldState

STAGES = ('reach', 'grasp', 'lift', 'carry', 'place', 'done')


@dataclass(frozen=True)
class SceneLayout:
    """A sampled scene: the objects by slot, where the tray stands, and what is asked."""

    objects: tuple[SceneObject, ...]
    tray_xy: tuple[float, float]
    target_index: int
    template_index: int


@dataclass(frozen=True)
class Task:
    """A task: its sentences, its scenes, when it is solved and how far it has got.

    ``sample(rng)`` draws a SceneLayout; ``is_success(world, target)`` and ``stage(world, target)``
    judge a WorldState; ``templates`` contain '{object}'.
    """

    name: str
    templates: tuple[str, ...]
    sample: Callable[[np.random.Generator], SceneLayout] = field(repr=False)
    is_success: Callable[[WorldState, int], bool] = field(repr=False)
    stage: Callable[[WorldState, int], str] = field(repr=False)

    def instruction(self, name: str, template_index: int) -> str:
        return self.templates[template_index].format(object=name)


def in_tray(world: WorldState, index: int) -> bool:
    """Whether an object's centre is within the tray's walls and near its floor."""
    x, y, z = world.positions[index] - world.tray
    inner = TRAY_HALF_SIZE_M - 0.008
    height = world.objects[index].half_height_m
    return bool(abs(x) < inner and abs(y) < inner and 0.0 < z < height + 0.03)


def holder(world: WorldState, index: int) -> int | None:
    """Which hand (0 left, 1 right) holds an object between its pads, or None."""
    hands = np.flatnonzero(world.gripped[:, index])
    return int(hands[0]) if hands.size else None


def height_above_table(world: WorldState, index: int) -> float:
    """Metres between the table top and the object's underside."""
    return float(world.positions[index, 2] - world.objects[index].half_height_m - TABLE_TOP_M)
