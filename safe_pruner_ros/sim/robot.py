"""The simulated robot: a fixed torso with two 7-joint arms "of the Astribot S1 kind", as MJCF.

Joint names and position limits are those of the public S1 description (its narrow table, see
``NARROW_LIMITS``); links and masses are ours, made of primitives. The right arm mirrors the left
one in the plane y = 0, so equal joint values give a mirrored pose. The exception is joint 3, whose
limits the S1 mirrors instead: there the right value is minus the left one.

This file knows nothing about tables, objects or tasks. World frame: x forward, y to the robot's
left, z up, metres, floor at z = 0.
"""

from __future__ import annotations

from typing import Literal

from safe_pruner_ros.types import Joint, JointLayout

Side = Literal['left', 'right']
SIDES: tuple[Side, Side] = ('left', 'right')

# S1 URDF with_head (narrow), left arm, rad. The right arm differs in joint 3 only.
NARROW_LIMITS = (
    (-3.0, 3.0),
    (-1.4, 0.4),
    (-3.0, 1.4),
    (0.0, 2.4),
    (-2.0, 2.0),
    (-0.6, 0.6),
    (-1.4, 1.4),
)
RIGHT_JOINT_3 = (-1.4, 3.0)
ARM_MAX_VELOCITY = 2.0  # rad/s; the S1 could do 8 and more, a table-top task should not
GRIPPER_MAX_VELOCITY = 5.0  # closed fraction per second

SHOULDER = (0.0, 0.19, 1.25)  # m, left; the right one has -y
UPPER_ARM_M = 0.33
FOREARM_M = 0.33
TCP_M = 0.185  # wrist centre to the point between the finger pads
HAND_BEND = 0.6  # rad, the hand at joint 7 = 0 is already bent down from the forearm
FINGER_TRAVEL_M = 0.05  # each finger; the opening is twice that, about 10 cm

# Joint axes of the left arm in its hanging zero pose (all links point to -z).
LEFT_AXES = (
    (0, -1, 0),  # 1 shoulder pitch, + lifts the arm forwards
    (-1, 0, 0),  # 2 shoulder roll, - lifts the arm sideways
    (0, 0, 1),  # 3 upper arm yaw, - turns the elbow outwards
    (0, -1, 0),  # 4 elbow, + bends
    (0, 0, 1),  # 5 forearm yaw
    (1, 0, 0),  # 6 wrist deviation
    (0, 1, 0),  # 7 wrist flexion, + bends the hand down
)
# Actuator gains per joint: kp N m/rad, kv N m s/rad, torque limit N m. Stiff enough that an arm
# lags its command by kv/kp = 30 ms.
GAINS = ((2000, 60, 200),) * 4 + ((1000, 30, 60),) * 3


def arm_joint_names(side: Side) -> tuple[str, ...]:
    return tuple(f'astribot_arm_{side}_joint_{number}' for number in range(1, 8))


def gripper_joint_name(side: Side) -> str:
    return f'astribot_gripper_{side}_joint_L1'


def arm_limits(side: Side) -> tuple[tuple[float, float], ...]:
    """(lower, upper) of joints 1..7 in rad."""
    limits = list(NARROW_LIMITS)
    if side == 'right':
        limits[2] = RIGHT_JOINT_3
    return tuple(limits)


def joint_layout() -> JointLayout:
    """16 joints: left arm, left gripper, right arm, right gripper."""
    joints = []
    for side in SIDES:
        for name, (lower, upper) in zip(arm_joint_names(side), arm_limits(side), strict=True):
            joints.append(Joint(name, 'arm', lower, upper, ARM_MAX_VELOCITY))
        joints.append(Joint(gripper_joint_name(side), 'gripper', 0.0, 1.0, GRIPPER_MAX_VELOCITY))
    return JointLayout(tuple(joints))


def _axis(side: Side, number: int) -> str:
    x, y, z = LEFT_AXES[number - 1]
    if side == 'right' and number != 3:
        x, z = -x, -z  # a rotation axis is a pseudovector: this mirrors the motion
    return f'{x} {y} {z}'


def _joint(side: Side, number: int) -> str:
    lower, upper = arm_limits(side)[number - 1]
    name = arm_joint_names(side)[number - 1]
    axis = _axis(side, number)
    return f'<joint name="{name}" class="arm" axis="{axis}" range="{lower} {upper}"/>'


def arm_xml(side: Side) -> str:
    """One arm from shoulder to finger tips, as a <body> to put into the torso."""
    sign = 1 if side == 'left' else -1
    x, y, z = SHOULDER
    upper, fore = UPPER_ARM_M, FOREARM_M
    return f"""
<body name="{side}_shoulder" pos="{x} {sign * y} {z}" gravcomp="1">
  {_joint(side, 1)}
  <geom class="shell" type="sphere" size=".07" material="graphite" mass="1"/>
  <body name="{side}_shoulder_roll" gravcomp="1">
    {_joint(side, 2)}
    <geom class="shell" type="sphere" size=".062" pos="0 0 -.01" material="white" mass=".5"/>
    <body name="{side}_upper_arm" gravcomp="1">
      {_joint(side, 3)}
      <geom class="shell" type="capsule" size=".05" fromto="0 0 -.06 0 0 {-upper + 0.05}"
        material="white" mass="1.2"/>
      <geom class="shell" type="cylinder" size=".052 .012" pos="0 0 {-upper * 0.5}"
        material="accent" mass=".1"/>
      <body name="{side}_elbow" pos="0 0 {-upper}" gravcomp="1">
        {_joint(side, 4)}
        <geom class="shell" type="cylinder" size=".05 .046" euler="1.5708 0 0"
          material="graphite" mass=".6"/>
        <body name="{side}_forearm" gravcomp="1">
          {_joint(side, 5)}
          <geom class="shell" type="capsule" size=".043" fromto="0 0 -.06 0 0 {-fore + 0.05}"
            material="white" mass=".8"/>
          <geom class="shell" type="cylinder" size=".045 .01" pos="0 0 {-fore + 0.07}"
            material="accent" mass=".1"/>
          <body name="{side}_wrist" pos="0 0 {-fore}" gravcomp="1">
            {_joint(side, 6)}
            <geom class="shell" type="sphere" size=".036" material="graphite" mass=".3"/>
            {_hand_xml(side)}
          </body>
        </body>
      </body>
    </body>
  </body>
</body>"""


def _hand_xml(side: Side) -> str:
    """Palm, camera on its outer (dorsal, +x) side, and two fingers that slide along y."""
    return f"""
<body name="{side}_hand" gravcomp="1" euler="0 {HAND_BEND} 0">
  {_joint(side, 7)}
  <geom class="shell" type="cylinder" size=".031 .03" pos="0 0 -.035" material="white" mass=".2"/>
  <geom name="{side}_palm" class="touch" type="box" size=".026 .064 .016" pos="0 0 -.075"
    material="graphite" mass=".3"/>
  <geom class="shell" type="box" size=".014 .016 .016" pos=".056 0 -.02" material="black"
    mass=".05"/>
  <geom class="shell" type="box" size=".02 .006 .006" pos=".03 0 -.02" material="graphite"
    mass=".01"/>
  <camera name="{side}_wrist" pos=".085 0 -.045" xyaxes="0 -1 0 .98 0 -.2" fovy="80"/>
  <site name="{side}_tcp" pos="0 0 {-TCP_M}" size=".004" group="4"/>
  {_finger_xml(side, 'L1', 1)}
  {_finger_xml(side, 'R1', -1)}
</body>"""


def _finger_xml(side: Side, name: str, sign: int) -> str:
    joint = f'astribot_gripper_{side}_joint_{name}'
    return f"""
<body name="{side}_finger_{name}" pos="0 {sign * FINGER_TRAVEL_M} 0" gravcomp="1">
  <joint name="{joint}" class="finger" axis="0 {-sign} 0"/>
  <geom class="shell" type="box" size=".012 .006 .03" pos="0 {sign * 0.0085} -.115"
    material="graphite" mass=".02"/>
  <geom name="{side}_pad_{name}" class="pad" type="box" size=".015 .005 .034"
    pos="0 {sign * 0.005} -.166"/>
</body>"""


DEFAULTS_XML = f"""
<default class="arm"><joint type="hinge" armature=".1" damping="1" limited="true"/></default>
<default class="finger"><joint type="slide" armature=".1" damping="2"
  range="0 {FINGER_TRAVEL_M}" limited="true"/></default>
<default class="shell"><geom contype="0" conaffinity="0"/></default>
<default class="touch"><geom contype="1" conaffinity="0" condim="4"
  friction="1 .02 .001"/></default>
<default class="pad"><geom contype="1" conaffinity="0" condim="6" friction="1.6 .03 .002"
  mass=".03" solref=".008 1" solimp=".95 .99 .001" material="pad"/></default>
"""

MATERIALS_XML = """
<material name="white" rgba=".92 .93 .95 1" specular=".4" shininess=".5"/>
<material name="graphite" rgba=".28 .30 .33 1" specular=".3" shininess=".4"/>
<material name="black" rgba=".07 .07 .08 1"/>
<material name="pad" rgba=".16 .16 .18 1"/>
<material name="accent" rgba=".10 .55 .72 1"/>
<material name="visor" rgba=".05 .06 .09 1" specular="1" shininess="1"/>
"""

TORSO_XML = """
<body name="torso">
  <geom class="shell" type="cylinder" size=".24 .05" pos="-.12 0 .06" material="graphite"/>
  <geom class="shell" type="cylinder" size=".22 .04" pos="-.12 0 .14" material="white"/>
  <geom class="shell" type="box" size=".06 .09 .36" pos="-.14 0 .52" material="graphite"/>
  <geom class="shell" type="ellipsoid" size=".10 .15 .24" pos="-.06 0 1.10" material="white"/>
  <geom class="shell" type="capsule" size=".06" fromto="-.02 -.15 1.25 -.02 .15 1.25"
    material="white"/>
  <geom class="shell" type="cylinder" size=".035 .06" pos="-.05 0 1.36" material="graphite"/>
  <geom class="shell" type="ellipsoid" size=".095 .085 .11" pos="-.04 0 1.50" material="white"/>
  <geom class="shell" type="ellipsoid" size=".05 .066 .05" pos=".022 0 1.505" material="visor"/>
  <geom class="shell" type="cylinder" size=".02 .004" pos=".036 0 1.16" euler="0 1.5708 0"
    material="accent"/>
"""


def robot_xml() -> str:
    """The <body> of the whole robot."""
    return TORSO_XML + ''.join(arm_xml(side) for side in SIDES) + '</body>'


def actuators_xml() -> str:
    """Position actuators in the order of ``joint_layout``; gripper controls are metres."""
    lines = []
    for side in SIDES:
        for name, (lower, upper), (kp, kv, force) in zip(
            arm_joint_names(side), arm_limits(side), GAINS, strict=True
        ):
            lines.append(
                f'<position name="{name}" joint="{name}" kp="{kp}" kv="{kv}"'
                f' ctrlrange="{lower} {upper}" forcerange="{-force} {force}"/>'
            )
        name = gripper_joint_name(side)
        lines.append(
            f'<position name="{name}" joint="{name}" kp="1500" kv="60"'
            f' ctrlrange="0 {FINGER_TRAVEL_M}" forcerange="-24 24"/>'
        )
    return '<actuator>' + '\n'.join(lines) + '</actuator>'


def mimic_xml() -> str:
    """The second finger of each hand follows the first; there are no other equalities."""
    return ''.join(
        f'<joint joint1="astribot_gripper_{side}_joint_R1"'
        f' joint2="{gripper_joint_name(side)}"'
        f' polycoef="0 1 0 0 0" solref=".008 1" solimp=".98 .999 .001"/>'
        for side in SIDES
    )


def robot_only_xml() -> str:
    """A document with nothing but the robot, for kinematics."""
    return f"""
<mujoco model="robot">
  <compiler angle="radian" autolimits="true"/>
  <default>{DEFAULTS_XML}</default>
  <asset>{MATERIALS_XML}</asset>
  <worldbody>{robot_xml()}</worldbody>
</mujoco>"""
