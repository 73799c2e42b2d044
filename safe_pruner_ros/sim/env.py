"""DualArmEnv: the simulated robot, one control tick at a time.

The environment knows joint targets, pictures and object poses. It knows no policy and no expert.
Everything that happens is a function of the seed and of the commands.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import TracebackType

import mujoco
import numpy as np
import numpy.typing as npt

from safe_pruner_ros.sim import appearance, robot
from safe_pruner_ros.sim.cameras import ViewRenderer
from safe_pruner_ros.sim.objects import SceneObject
from safe_pruner_ros.sim.scene import (
    N_SLOTS,
    OVERVIEW,
    PHYSICS_STEP_S,
    TABLE_TOP_M,
    VIEWS,
    build_model,
)
from safe_pruner_ros.sim.tasks.catalog import get_task
from safe_pruner_ros.sim.tasks.task import SceneLayout
from safe_pruner_ros.sim.world import WorldState
from safe_pruner_ros.types import ArmState, FloatArray, UInt8Array

# Both hands above their side of the table, out of each other's way: 7 joints of the left arm.
HOME_LEFT = (-0.10, -0.42, -0.07, 2.33, 0.26, 0.33, 1.27)
START_JITTER_RAD = 0.05
SETTLE_TICKS = 10  # objects come to rest on the table before the first picture
TOUCH_M = 0.0015  # a hand touches what is nearer to its pads or palm than this
NEAR_HAND_M = 0.15  # farther objects are not measured
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION


def home_positions() -> FloatArray:
    """Start pose [16] in layout order, grippers open."""
    left = np.array(HOME_LEFT)
    right = left.copy()
    right[2] = -right[2]  # joint 3 is the one the S1 mirrors by sign
    return np.concatenate([left, [0.0], right, [0.0]])


@dataclass(frozen=True)
class EnvState:
    """A moment to come back to: MuJoCo's integration state, the last command and the clock."""

    physics: FloatArray
    command: FloatArray
    ticks: int


class DualArmEnv:
    """Two arms at a table. ``reset`` first; then ``step`` joint targets and ``render`` views."""

    views = VIEWS

    def __init__(
        self,
        task: str = 'pick_place',
        image_height: int = 256,
        image_width: int = 256,
        control_period_s: float = 0.02,
    ) -> None:
        substeps = round(control_period_s / PHYSICS_STEP_S)
        if substeps < 1 or abs(substeps * PHYSICS_STEP_S - control_period_s) > 1e-9:
            raise ValueError(
                f'control_period_s must be a multiple of {PHYSICS_STEP_S}, got {control_period_s}'
            )
        self.task = get_task(task)
        self.layout = robot.joint_layout()
        self._names = self.layout.names
        self.control_period_s = control_period_s
        self._substeps = substeps
        self._model = build_model(self.task.receptacle, self.task.with_heads)
        self._data = mujoco.MjData(self._model)
        self._renderer = ViewRenderer(self._model, image_height, image_width)
        self._qpos = np.array([self._model.joint(n).qposadr[0] for n in self.layout.names])
        self._scale = np.where(self.layout.is_gripper, robot.FINGER_TRAVEL_M, 1.0)
        self._max_move = self.layout.max_velocity * control_period_s
        self._objects_body = [self._model.body(f'object_{i}').id for i in range(N_SLOTS)]
        self._sites = [self._model.site(f'{side}_tcp').id for side in robot.SIDES]
        self._object_geoms = [self._model.geom(f'object_{i}').id for i in range(N_SLOTS)]
        heads = range(N_SLOTS if self.task.with_heads else 0)
        self._head_geoms = [self._model.geom(f'head_{i}').id for i in heads]
        self._hand_geoms = [
            [self._model.geom(f'{side}_{part}').id for part in ('pad_L1', 'pad_R1', 'palm')]
            for side in robot.SIDES
        ]
        self._scene: SceneLayout | None = None
        self._command = home_positions()
        self._ticks = 0

    def __enter__(self) -> DualArmEnv:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the GL context. Safe to call twice."""
        self._renderer.close()

    # ---- episodes

    def reset(self, seed: int, target: int | None = None) -> None:
        """Set up the scene of ``seed``; ``target`` names another object of the same scene."""
        if target is not None and not 0 <= target < N_SLOTS:
            raise ValueError(f'target must be in 0..{N_SLOTS - 1}, got {target}')
        scene_rng, look_rng, pose_rng = (np.random.default_rng([seed, k]) for k in range(3))
        scene = self.task.sample(scene_rng)
        appearance.apply_objects(self._model, scene.objects, scene.receptacle_xy)
        appearance.apply_jitter(self._model, look_rng)
        self._scene = scene if target is None else replace(scene, target_index=target)
        mujoco.mj_resetData(self._model, self._data)
        start = home_positions()
        jitter = pose_rng.uniform(-START_JITTER_RAD, START_JITTER_RAD, size=len(start))
        start = self._clipped(np.where(self.layout.is_gripper, start, start + jitter))
        self._data.qpos[self._qpos] = start * self._scale
        if self.task.receptacle.has_lid:
            self._data.joint('lid').qpos[0] = scene.lid_rad
        for index, item in enumerate(scene.objects):
            height = TABLE_TOP_M + item.half_height_m + 0.0005
            self.place_object(index, np.array([item.x_m, item.y_m, height]), item.yaw_rad)
        self._command = start
        for _ in range(SETTLE_TICKS):
            self.step(start)
        self._ticks = 0
        self._data.time = 0.0

    def place_object(self, index: int, position: FloatArray, yaw_rad: float = 0.0) -> None:
        """Put an object somewhere, at rest: for scene setup and tests."""
        joint = self._model.joint(f'object_{index}')
        start, speed = joint.qposadr[0], joint.dofadr[0]
        self._data.qpos[start : start + 3] = position
        self._data.qpos[start + 3 : start + 7] = (np.cos(yaw_rad / 2), 0, 0, np.sin(yaw_rad / 2))
        self._data.qvel[speed : speed + 6] = 0.0
        self._refresh()

    def place_arms(self, positions: FloatArray) -> None:
        """Put the arms somewhere [16], at rest, through whatever is in the way: for pictures."""
        self._command = self._clipped(positions)
        self._data.qpos[self._qpos] = self._command * self._scale
        for side in robot.SIDES:  # the second finger follows the first
            second = self._model.joint(robot.gripper_joint_name(side).replace('_L1', '_R1'))
            first = self._model.joint(robot.gripper_joint_name(side))
            self._data.qpos[second.qposadr[0]] = self._data.qpos[first.qposadr[0]]
        self._data.qvel[:] = 0.0
        self._refresh()

    def place_lid(self, lid_rad: float) -> None:
        """Put the receptacle's lid at an angle, at rest; nothing happens without a lid."""
        if self.task.receptacle.has_lid:
            self._data.joint('lid').qpos[0] = lid_rad
            self._data.joint('lid').qvel[0] = 0.0
            self._refresh()

    def hand_positions(self) -> FloatArray:
        """Where the hands' tool centre points are [2, 3], m, world frame."""
        hands: FloatArray = self._data.site_xpos[self._sites].copy()
        return hands

    def save_state(self) -> EnvState:
        """Everything physical about this moment; the scene of the seed is not in it."""
        physics = np.empty(mujoco.mj_stateSize(self._model, _STATE))
        mujoco.mj_getState(self._model, self._data, physics, _STATE)
        return EnvState(physics, self._command.copy(), self._ticks)

    def restore_state(self, state: EnvState) -> None:
        """Return to a moment saved since the last reset (or a reset with the same seed)."""
        mujoco.mj_setState(self._model, self._data, state.physics, _STATE)
        self._command = state.command.copy()
        self._ticks = state.ticks
        self._refresh()

    # ---- control

    def step(self, positions: FloatArray) -> None:
        """One control tick towards absolute targets [16], clipped to limits and joint speed.

        Raises ValueError for a wrong shape or a non-finite value; then nothing has moved.
        """
        positions = np.asarray(positions, dtype=np.float64)
        if positions.shape != (len(self.layout),):
            raise ValueError(
                f'positions must be [{len(self.layout)}], got {list(positions.shape)}'
            )
        if not np.isfinite(positions).all():
            bad = [self.layout.names[k] for k in np.flatnonzero(~np.isfinite(positions))]
            raise ValueError(f'positions must be finite, not so for {bad}')
        move = np.clip(self._clipped(positions) - self._command, -self._max_move, self._max_move)
        for substep in range(1, self._substeps + 1):
            command = self._command + move * (substep / self._substeps)
            self._data.ctrl[:] = command * self._scale
            mujoco.mj_step(self._model, self._data)
        self._refresh()
        self._command = self._command + move
        self._ticks += 1

    def _refresh(self) -> None:
        """Bring poses and cameras up to date with the joints (mj_step leaves them a step behind).

        Kinematics only: the solver's warm start stays as it is, so a restored moment goes on
        exactly as the saved one did.
        """
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)

    def _clipped(self, positions: FloatArray) -> FloatArray:
        return np.clip(positions, self.layout.lower, self.layout.upper)

    # ---- what can be seen

    def state(self) -> ArmState:
        """Measured joints in layout order."""
        positions = self._clipped(self._data.qpos[self._qpos] / self._scale)
        return ArmState(positions, self._names, self.time_ns)

    @property
    def time_ns(self) -> int:
        """Simulated time since reset."""
        return round(self._ticks * self.control_period_s * 1e9)

    def render(self, view: str) -> UInt8Array:
        """RGB image of a view ('overview' is a bystander's camera), uint8 [H, W, 3]."""
        self._check_view(view)
        return self._renderer.colour(self._data, view)

    def segmentation(self, view: str) -> npt.NDArray[np.int64]:
        """Labels [H, W]: object index, -1 background or table, -2 receptacle, -3 robot, -4 lid."""
        self._check_view(view)
        return self._renderer.segmentation(self._data, view)

    def _check_view(self, view: str) -> None:
        if view not in (*VIEWS, OVERVIEW):
            raise ValueError(f'unknown view {view!r}; known: {[*VIEWS, OVERVIEW]}')

    # ---- the task

    @property
    def scene(self) -> SceneLayout:
        if self._scene is None:
            raise RuntimeError('no scene yet; call reset(seed) first')
        return self._scene

    @property
    def objects(self) -> tuple[SceneObject, ...]:
        return self.scene.objects

    @property
    def target_index(self) -> int:
        return self.scene.target_index

    @property
    def instruction(self) -> str:
        return self.instruction_for(self.target_index)

    def instruction_for(self, index: int, template_index: int | None = None) -> str:
        """The sentence that asks for object ``index``; this episode's wording by default."""
        template = self.scene.template_index if template_index is None else template_index
        return self.task.instruction(self.objects[index].name, template)

    def object_position(self, index: int) -> FloatArray:
        """Centre of an object [3], m, world frame."""
        position: FloatArray = self._data.xpos[self._objects_body[index]].copy()
        return position

    @property
    def success(self) -> bool:
        return self.task.is_success(self.world(), self.target_index)

    @property
    def stage(self) -> str:
        return self.task.stage(self.world(), self.target_index)

    @property
    def time_limit_s(self) -> float:
        """How long the task allows an episode to take."""
        return self.task.time_limit_s

    def world(self) -> WorldState:
        """The observable state that tasks judge and the expert acts on."""
        data = self._data
        positions = self.state().positions
        gripped, touched = self._touches()
        speeds = [
            np.linalg.norm(data.qvel[self._model.body_dofadr[b] :][:3]) for b in self._objects_body
        ]
        return WorldState(
            objects=self.objects,
            positions=data.xpos[self._objects_body].copy(),
            speeds=np.array(speeds),
            gripped=gripped,
            touched=touched,
            receptacle=self.task.receptacle,
            receptacle_position=np.array([*self.scene.receptacle_xy, TABLE_TOP_M]),
            lid_rad=float(data.joint('lid').qpos[0]) if self.task.receptacle.has_lid else 0.0,
            joints=np.stack([positions[:7], positions[8:15]]),
            grippers=positions[self.layout.is_gripper],
            hands=data.site_xpos[self._sites].copy(),
        )

    def _touches(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """(gripped [2, n], touched [2, n]), see WorldState.

        From distances, not from contact forces: a force can vanish for a single physics step.
        """
        gripped = np.zeros((2, N_SLOTS), dtype=bool)
        touched = np.zeros((2, N_SLOTS), dtype=bool)
        for hand, geoms in enumerate(self._hand_geoms):
            away = self._data.xpos[self._objects_body] - self._data.site_xpos[self._sites[hand]]
            for item in np.flatnonzero(np.linalg.norm(away, axis=1) < NEAR_HAND_M):
                touch = [self._distance(geom, int(item)) < TOUCH_M for geom in geoms]
                touched[hand, item] = any(touch)
                gripped[hand, item] = touch[0] and touch[1]
        return gripped, touched

    def _distance(self, geom: int, item: int) -> float:
        others = [self._object_geoms[item]]
        if self.objects[item].shape == 'doll':
            others.append(self._head_geoms[item])
        far = 2 * TOUCH_M  # nothing beyond is told apart
        return min(
            float(mujoco.mj_geomDistance(self._model, self._data, geom, other, far, None))
            for other in others
        )
