"""Episodes of the scripted expert, or of a policy that the expert corrects (DAgger).

Every recorded frame carries the expert's chunk for the instructed object and, while nothing is
held, for every other object of the scene: the same picture with another instruction. Without such
counterfactual labels the network reads the target off the arm's pose and ignores the instruction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from safe_pruner_ros.sim.env import DualArmEnv
from safe_pruner_ros.sim.expert import ScriptedExpert
from safe_pruner_ros.sim.rollouts import execute, run_expert
from safe_pruner_ros.sim.scene import TABLE_TOP_M
from safe_pruner_ros.sim.tasks.task import has_fallen
from safe_pruner_ros.training.labels import patch_labels
from safe_pruner_ros.types import FloatArray

# Phases in which no object is held, so that another object is an equally good target.
FREE_PHASES = frozenset({'above', 'descend'})
# Around the table. An object that falls off it falls for ever, and would own the statistics.
POSITION_BOUNDS_M = np.array([[-0.2, -0.8, TABLE_TOP_M - 0.1], [1.0, 0.8, TABLE_TOP_M + 0.6]])
Act = Callable[[DualArmEnv], FloatArray]


@dataclass(frozen=True)
class Label:
    object_index: int
    chunk: npt.NDArray[np.float32]  # [8, 16] absolute joint targets


@dataclass(frozen=True)
class Frame:
    """One recorded moment. ``coverage`` uint8 [V, n_objects], 255 = the whole patch."""

    images: npt.NDArray[np.uint8]  # [views, H, W, 3]
    proprioception: npt.NDArray[np.float32]  # [16]
    coverage: npt.NDArray[np.uint8]
    kinds: tuple[str, ...]  # 'red block', ... of objects 0..n-1
    object_positions: npt.NDArray[np.float32]  # [n_objects, 3] m
    receptacle: npt.NDArray[np.float32]  # [3]: its x and y in m, how far its lid is open in rad
    labels: tuple[Label, ...]  # the instructed object's first

    def without_images(self) -> Frame:
        """The same with ``images`` [0]: what is kept once they are encoded, 0.6 MB less."""
        return replace(self, images=np.empty(0, np.uint8))


def record_frame(
    env: DualArmEnv,
    expert: ScriptedExpert,
    chunk: FloatArray,
    grid: int = 8,
) -> Frame:
    """The present moment with ``chunk``, the expert's label for the instructed object."""
    n_objects, target = len(env.objects), env.target_index
    labels = [Label(target, chunk.astype(np.float32))]
    world = env.world()
    if expert.phase(target) in FREE_PHASES:
        others = (i for i in range(n_objects) if i != target and not has_fallen(world, i))
        labels += [Label(i, expert.chunk(i).astype(np.float32)) for i in others]
    coverage = [
        patch_labels(env.segmentation(view), n_objects, grid).coverage[:, :n_objects]
        for view in env.views
    ]
    return Frame(
        images=np.stack([env.render(view) for view in env.views]),
        proprioception=env.state().positions.astype(np.float32),
        coverage=np.ceil(np.concatenate(coverage) * 255).astype(np.uint8),
        kinds=tuple(item.name for item in env.objects),
        object_positions=np.clip(world.positions, *POSITION_BOUNDS_M).astype(np.float32),
        receptacle=np.array([*world.receptacle_position[:2], world.lid_rad], np.float32),
        labels=tuple(labels),
    )


def expert_episode(env: DualArmEnv, seed: int, noise_rad: float, stride: int) -> list[Frame]:
    """Frames every ``stride`` waypoints of one expert episode; ``noise_rad`` 0 is clean.

    A second of the retreat after success is recorded too: the arm must leave the tray alone.
    None of an episode that the expert did not solve: what it does there is no example.
    """
    expert = ScriptedExpert(env)
    frames: list[Frame] = []
    episode = run_expert(
        env,
        seed,
        noise_rad,
        execution_horizon=stride,
        extra_steps=10,
        expert=expert,
        on_policy_step=lambda env, chunk: frames.append(record_frame(env, expert, chunk)),
    )
    return frames if episode.success else []


def policy_episode(env: DualArmEnv, seed: int, act: Act, horizon: int) -> list[Frame]:
    """An episode that the policy ``act`` drives, labelled by the expert (DAgger,
    arXiv 1011.0686): one frame wherever the policy decides. ``act`` returns a chunk [8, 16], of
    which ``horizon`` waypoints are executed. Ends when the task is solved, its time is over or
    nothing can solve it any more (``task.is_solvable``): the expert would label that as if it
    could."""
    env.reset(seed)
    expert = ScriptedExpert(env)
    command = env.state().positions
    frames: list[Frame] = []
    for _ in range(0, env.task.max_steps, horizon):
        if env.success or not env.task.is_solvable(env.world(), env.target_index):
            break
        frames.append(record_frame(env, expert, expert.chunk(env.target_index)))
        for waypoint in act(env)[:horizon]:
            execute(env, command, waypoint)
            command = waypoint
    return frames
