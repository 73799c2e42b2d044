"""What lies on the table: four colours times three shapes, and dolls (a body with a head)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import mujoco
import numpy as np

Colour = Literal['red', 'green', 'blue', 'yellow']
Shape = Literal['block', 'cylinder', 'ball', 'doll']

RGB: dict[Colour, tuple[float, float, float]] = {
    'red': (0.85, 0.10, 0.09),
    'green': (0.10, 0.62, 0.18),
    'blue': (0.10, 0.28, 0.86),
    'yellow': (0.96, 0.80, 0.08),
}
COLOURS: tuple[Colour, ...] = tuple(RGB)
SHAPES: tuple[Shape, ...] = ('block', 'cylinder', 'ball')  # of every task
GEOM_TYPES: dict[Shape, mujoco.mjtGeom] = {
    'block': mujoco.mjtGeom.mjGEOM_BOX,
    'cylinder': mujoco.mjtGeom.mjGEOM_CYLINDER,
    'ball': mujoco.mjtGeom.mjGEOM_SPHERE,
    'doll': mujoco.mjtGeom.mjGEOM_CYLINDER,
}
OBJECT_MASS_KG = 0.06
HEAD_SHARE = 0.75  # radius of a doll's head, of its body's
SKIN_RGB = (0.93, 0.74, 0.60)


@dataclass(frozen=True)
class SceneObject:
    """One movable object. ``radius_m`` is half its width as the gripper sees it, ``half_height_m``
    half its height; ``x_m``, ``y_m``, ``yaw_rad`` say where it starts on the table;
    ``rolling_friction_m`` is MuJoCo's coefficient: torque per normal force."""

    colour: Colour
    shape: Shape
    radius_m: float
    half_height_m: float
    rgb: tuple[float, float, float]
    x_m: float
    y_m: float
    yaw_rad: float
    rolling_friction_m: float = 0.001

    @property
    def name(self) -> str:
        return f'{self.colour} {self.shape}'

    @property
    def geom_size(self) -> tuple[float, float, float]:
        """MuJoCo's three size numbers for this shape."""
        if self.shape == 'block':
            return (self.radius_m, self.radius_m, self.half_height_m)
        if self.shape == 'cylinder':
            return (self.radius_m, self.half_height_m, 0.0)
        if self.shape == 'doll':
            return (self.radius_m, self.half_height_m - self.head_radius_m, 0.0)
        return (self.radius_m, 0.0, 0.0)

    @property
    def head_radius_m(self) -> float:
        """Radius of a doll's head, a ball that rests on its body; 0 for other shapes."""
        return HEAD_SHARE * self.radius_m if self.shape == 'doll' else 0.0


def sample_size(shape: Shape, rng: np.random.Generator) -> tuple[float, float]:
    """(radius_m, half_height_m): blocks lie flat, cylinders stand like cans, 3 to 4.8 cm across.

    From above, 12 to 25 pixels wide, a cube and a can of its height look alike.
    """
    if shape == 'block':
        return rng.uniform(0.018, 0.024), rng.uniform(0.012, 0.016)
    if shape == 'cylinder':
        return rng.uniform(0.015, 0.019), rng.uniform(0.027, 0.033)
    radius = rng.uniform(0.018, 0.024)
    return radius, radius


def sample_rgb(colour: Colour, rng: np.random.Generator) -> tuple[float, float, float]:
    """The colour, a little lighter or darker and tinted."""
    rgb = np.array(RGB[colour]) * rng.uniform(0.82, 1.1) + rng.uniform(-0.04, 0.04, size=3)
    red, green, blue = np.clip(rgb, 0.0, 1.0)
    return float(red), float(green), float(blue)
