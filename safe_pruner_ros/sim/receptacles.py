"""Where objects are brought to: a tray, a hoop with a net, a box with a hinged lid.

Each is one MJCF body named 'receptacle' on the table. Its origin is the middle of its footprint,
at the height of the table top; x points away from the robot, y to the robot's left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from safe_pruner_ros.types import FloatArray

TRAY_HALF_SIZE_M = 0.09  # outer footprint, square
TRAY_WALL_M = 0.022  # wall height above the table
HOOP_RADIUS_M = 0.036  # clear opening; the balls' radius is 1.4 to 1.7 cm
HOOP_HEIGHT_M = 0.10
NET_SIDES = 12
BOX_HALF_SIZE_M = 0.09
BOX_WALL_M = 0.066  # higher than any object it is for
LID_LENGTH_M = 0.175  # from the hinge at the far wall's top to the near edge
LID_HALF_THICKNESS_M = 0.004
LID_OPEN_RAD = 1.75  # stop a little beyond upright; 0 is shut
LID_SHUT_RAD = 0.06  # counts as shut below: a gap of 1 cm at the near edge

_COMMON = 'class="world" material="receptacle"'


@dataclass(frozen=True)
class Receptacle:
    """A place for objects, and how one lets go of them there.

    ``inner_half_size_m`` half the clear opening; ``floor_m`` height of the floor above the table;
    ``release_m`` an object's underside above the floor when the hand opens; ``carry_m`` an
    object's underside above the table on its way; ``release_radius_m`` how far from the middle a
    hand may open; ``clear_m`` a hand this high above the table may leave sideways.
    """

    name: str
    inner_half_size_m: float
    floor_m: float
    release_m: float
    carry_m: float
    release_radius_m: float
    clear_m: float
    xml: Callable[[float, float, float], str] = field(repr=False)

    @property
    def has_lid(self) -> bool:
        return self.name == 'box'

    def holds(self, offset: FloatArray, half_height_m: float) -> bool:
        """Whether an object whose centre is ``offset`` [3] m from the origin is inside.

        Between the walls and near the floor; walls are solid, so it came from above.
        """
        x, y, z = offset
        inner = self.inner_half_size_m
        return bool(abs(x) < inner and abs(y) < inner and 0.0 < z < half_height_m + 0.03)


def _walls(half: float, height: float, thick: float, floor: float) -> str:
    """Geoms of an open square box."""
    wall, middle = height / 2, half - thick
    return f"""
  <geom name="receptacle_floor" {_COMMON} type="box" size="{half} {half} {floor}"
    pos="0 0 {floor}"/>
  <geom {_COMMON} type="box" size="{thick} {half} {wall}" pos="{middle} 0 {wall}"/>
  <geom {_COMMON} type="box" size="{thick} {half} {wall}" pos="{-middle} 0 {wall}"/>
  <geom {_COMMON} type="box" size="{half} {thick} {wall}" pos="0 {middle} {wall}"/>
  <geom {_COMMON} type="box" size="{half} {thick} {wall}" pos="0 {-middle} {wall}"/>"""


def _tray_xml(x: float, y: float, z: float) -> str:
    walls = _walls(TRAY_HALF_SIZE_M, TRAY_WALL_M, 0.004, 0.002)
    return f'<body name="receptacle" pos="{x} {y} {z}">{walls}\n</body>'


def _hoop_xml(x: float, y: float, z: float) -> str:
    """A rim of capsules, below it a closed net down to the table, behind it a backboard."""
    parts = []
    radius = HOOP_RADIUS_M + 0.004
    side = (radius + 0.002) * np.tan(np.pi / NET_SIDES)
    for angle in np.arange(NET_SIDES) * 2 * np.pi / NET_SIDES:
        cos, sin = radius * np.cos(angle), radius * np.sin(angle)
        wall = HOOP_HEIGHT_M / 2 - 0.004
        parts.append(
            f'<geom class="world" type="box" size=".002 {side:.5f} {wall}" rgba=".93 .93 .95 .45"'
            f' pos="{cos:.5f} {sin:.5f} {wall}" euler="0 0 {angle:.5f}"/>'
            f'<geom class="world" type="capsule" size=".004 {side:.5f}" rgba=".93 .36 .08 1"'
            f' pos="{cos:.5f} {sin:.5f} {HOOP_HEIGHT_M - 0.004}" euler="1.5708 {angle:.5f} 0"/>'
        )
    board = radius + 0.012
    return f"""
<body name="receptacle" pos="{x} {y} {z}">
  {''.join(parts)}
  <geom {_COMMON} type="box" size=".005 .016 .06" pos="{board} 0 .06"/>
  <geom {_COMMON} type="box" size=".004 .06 .035" pos="{board} 0 .14"/>
</body>"""


def _box_xml(x: float, y: float, z: float) -> str:
    """Walls, and a lid on a hinge stiff enough to stay where it is left."""
    half, thick = LID_LENGTH_M / 2, LID_HALF_THICKNESS_M
    hinge = BOX_HALF_SIZE_M - 0.004
    return f"""
<body name="receptacle" pos="{x} {y} {z}">
  {_walls(BOX_HALF_SIZE_M, BOX_WALL_M, 0.004, 0.002)}
  <body name="lid" pos="{hinge} 0 {BOX_WALL_M + thick}">
    <joint name="lid" type="hinge" axis="0 1 0" range="0 {LID_OPEN_RAD}" limited="true"
      damping=".01" frictionloss=".15" solimpfriction=".99 .999 .001" armature=".0005"/>
    <geom name="lid" {_COMMON} type="box" size="{half} {BOX_HALF_SIZE_M} {thick}"
      pos="{-half} 0 0" mass=".08"/>
    <geom class="shell" type="box" size=".006 .02 .0045" pos="{-2 * half + 0.01} 0 0"
      rgba=".93 .36 .08 1" mass="0"/>
  </body>
</body>"""


TRAY = Receptacle('tray', TRAY_HALF_SIZE_M - 0.008, 0.004, 0.008, 0.10, 0.02, 0.10, _tray_xml)
HOOP = Receptacle('hoop', HOOP_RADIUS_M, 0.0, HOOP_HEIGHT_M + 0.012, 0.15, 0.008, 0.14, _hoop_xml)
BOX = Receptacle('box', BOX_HALF_SIZE_M - 0.008, 0.004, 0.008, 0.11, 0.02, 0.12, _box_xml)
