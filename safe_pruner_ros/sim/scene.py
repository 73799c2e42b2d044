"""The world around the robot: room, table, receptacle, object slots, lights and the head camera.

One model serves all episodes of a task: ``appearance.py`` and ``env.py`` change sizes, shapes,
colours and poses in it on every reset, which is much faster than compiling a new one. Nothing here
is random.
"""

from __future__ import annotations

import mujoco
import numpy as np

from safe_pruner_ros.sim import robot
from safe_pruner_ros.sim.receptacles import TRAY, Receptacle
from safe_pruner_ros.types import UInt8Array

TABLE_TOP_M = 0.75
TABLE_CENTRE = (0.52, 0.0)
TABLE_HALF_SIZE = (0.36, 0.62)
N_SLOTS = 4  # movable objects in a scene
RECEPTACLE_CENTRE = (0.40, 0.0)
PHYSICS_STEP_S = 0.004
VIEWS = ('head', 'left_wrist', 'right_wrist')
HEAD_CAMERA = '<camera name="head" pos=".10 0 1.44" xyaxes="0 -1 0 .87 0 .48" fovy="60"/>'
OVERVIEW = 'overview'  # a bystander's camera for pictures and videos, no policy input
TABLE_MATERIALS = ('oak', 'walnut', 'birch', 'plain')


def _wood(rgb: tuple[float, float, float], seed: int, size: int = 256) -> UInt8Array:
    """Wood grain, uint8 [size, size, 3]: stretched noise along one axis, from a fixed seed."""
    rng = np.random.default_rng(seed)
    across = np.cumsum(rng.normal(size=size))
    across = (across - np.linspace(across[0], across[-1], size)) / (np.abs(across).max() + 1e-9)
    along = np.linspace(0, 2 * np.pi, size)
    grain = np.sin(14 * across[:, None] + 0.5 * np.sin(along)[None, :])
    fibre = rng.normal(size=(size, 16)).repeat(size // 16, axis=1)
    shade = 1 + 0.06 * grain + 0.02 * fibre
    pixels: UInt8Array = np.clip(255 * np.asarray(rgb) * shade[..., None], 0, 255).astype(np.uint8)
    return pixels


WOODS = {'oak': (0.78, 0.62, 0.44), 'walnut': (0.52, 0.38, 0.28), 'birch': (0.88, 0.80, 0.68)}


def _slot_xml(slot: int, with_head: bool) -> str:
    head = f'<geom name="head_{slot}" class="object" size=".012" mass="0"/>' if with_head else ''
    return f"""
<body name="object_{slot}" pos=".4 {0.2 + 0.1 * slot} {TABLE_TOP_M + 0.03}">
  <freejoint name="object_{slot}"/>
  <geom name="object_{slot}" class="object" type="box" size=".02 .02 .02" mass=".06"/>
  {head}
</body>"""


def scene_xml(receptacle: Receptacle = TRAY, with_heads: bool = False) -> str:
    """The complete MJCF document (textures are added afterwards, from arrays).

    ``with_heads`` gives every object slot a second geom, the head of a doll.
    """
    lid = '<contact><exclude body1="receptacle" body2="lid"/></contact>'
    exclude = lid if receptacle.has_lid else ''
    x, y = TABLE_CENTRE
    half_x, half_y = TABLE_HALF_SIZE
    top = TABLE_TOP_M
    legs = ''.join(
        f'<geom class="shell" type="box" size=".025 .025 {top / 2 - 0.02}" material="graphite"'
        f' pos="{x + sx * (half_x - 0.05)} {y + sy * (half_y - 0.05)} {top / 2 - 0.02}"/>'
        for sx in (-1, 1)
        for sy in (-1, 1)
    )
    woods = ''.join(
        f'<texture name="{name}" type="2d" builtin="flat" width="256" height="256"/>'
        f'<material name="{name}" texture="{name}" texrepeat="1 2"/>'
        for name in WOODS
    )
    return f"""
<mujoco model="dual_arm_table">
  <compiler angle="radian" autolimits="true"/>
  <statistic extent="1" center=".3 0 .9" meansize=".05"/>
  <option timestep="{PHYSICS_STEP_S}" integrator="implicitfast" cone="elliptic" impratio="10"
    iterations="50">
    <flag midphase="disable"/>
  </option>
  <visual>
    <global offwidth="1280" offheight="960"/>
    <quality shadowsize="0" offsamples="0" numslices="16" numstacks="10" numquads="1"/>
    <headlight ambient=".35 .35 .35" diffuse=".15 .15 .15" specular="0 0 0"/>
    <map znear=".03" zfar="14"/>
  </visual>
  <default>
    {robot.DEFAULTS_XML}
    <default class="world"><geom contype="2" conaffinity="3" condim="4"
      friction=".8 .01 .001"/></default>
    <default class="object"><geom contype="2" conaffinity="3" condim="6" friction="1 .01 .001"
      solref=".008 1"/></default>
  </default>
  <asset>
    <texture name="sky" type="skybox" builtin="gradient" rgb1=".80 .86 .92" rgb2=".45 .52 .60"
      width="64" height="384"/>
    <texture name="floor" type="2d" builtin="checker" rgb1=".62 .64 .66" rgb2=".56 .58 .60"
      width="128" height="128"/>
    <material name="floor" texture="floor" texrepeat="8 8"/>
    <material name="wall" rgba=".82 .84 .86 1"/>
    {woods}
    <material name="plain" rgba=".8 .8 .8 1"/>
    <material name="receptacle" rgba=".35 .38 .42 1" specular=".2"/>
    {robot.MATERIALS_XML}
  </asset>
  <worldbody>
    <light name="key" type="directional" pos="0 .6 3" dir=".2 -.3 -1" diffuse=".55 .55 .53"
      specular=".15 .15 .15" castshadow="false"/>
    <light name="fill" type="directional" pos="1 -1 3" dir="-.3 .5 -.8" diffuse=".22 .22 .25"
      specular="0 0 0" castshadow="false"/>
    <geom name="table" class="world" type="box" size="{half_x} {half_y} .02"
      pos="{x} {y} {top - 0.02}" material="plain"/>
    {legs}
    {HEAD_CAMERA}
    <camera name="overview" pos="1.55 -.95 1.65" xyaxes=".55 .84 0 -.42 .27 .87" fovy="45"/>
    {robot.robot_xml()}
    {receptacle.xml(*RECEPTACLE_CENTRE, TABLE_TOP_M)}
    {''.join(_slot_xml(slot, with_heads) for slot in range(N_SLOTS))}
    <body name="room">
      <geom name="floor" class="shell" type="plane" size="4 4 .1" material="floor"/>
      <geom name="wall" class="shell" type="box" size=".02 4 1.4" pos="2.2 0 1.4" material="wall"/>
    </body>
  </worldbody>
  {exclude}
  <equality>{robot.mimic_xml()}</equality>
  {robot.actuators_xml()}
</mujoco>"""


def build_model(receptacle: Receptacle = TRAY, with_heads: bool = False) -> mujoco.MjModel:
    """Compile the scene."""
    model = mujoco.MjModel.from_xml_string(scene_xml(receptacle, with_heads))
    for seed, (name, rgb) in enumerate(WOODS.items()):
        texture = model.texture(name)
        start = texture.adr[0]
        pixels = _wood(rgb, seed).ravel()
        model.tex_data[start : start + pixels.size] = pixels
    return model
