"""Fakes of the two things an evaluation composes, and weights that know nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from safe_pruner_ros.policies.policy import PolicyOutput, PolicySpec, PruningTrace, ViewSpec
from safe_pruner_ros.types import (
    ActionChunk,
    ArmState,
    FloatArray,
    Joint,
    JointLayout,
    Observation,
    UInt8Array,
)

TICK_S = 0.02
PERIOD_S = 0.1
CHUNK_SIZE = 8
LAYOUT = JointLayout((Joint('a', 'arm', -9.0, 9.0, 9.0), Joint('g', 'gripper', 0.0, 1.0, 9.0)))


@dataclass
class FakeEnv:
    """Two joints that do as they are told; success when joint 'a' reaches ``goal``."""

    goal: float = 1e9
    control_period_s: float = TICK_S
    layout: JointLayout = LAYOUT
    commands: list[FloatArray] = field(default_factory=list)
    resets: list[tuple[int, int | None]] = field(default_factory=list)

    def reset(self, seed: int, target: int | None = None) -> None:
        self.resets.append((seed, target))
        self.target_index = 2 if target is None else target
        self.commands = []
        self._positions = np.array([0.5, 0.0])

    @property
    def instruction(self) -> str:
        return f'put object {self.target_index} in the tray'

    @property
    def success(self) -> bool:
        return bool(self._positions[0] >= self.goal)

    @property
    def stage(self) -> str:
        return 'done' if self.success else 'reach'

    @property
    def time_limit_s(self) -> float:
        return 2.0

    @property
    def time_ns(self) -> int:
        return round(len(self.commands) * TICK_S * 1e9)

    def step(self, positions: FloatArray) -> None:
        self.commands.append(positions.copy())
        self._positions = positions.copy()

    def state(self) -> ArmState:
        return ArmState(self._positions.copy(), self.layout.names, self.time_ns)

    def render(self, view: str) -> UInt8Array:
        return np.full((4, 4, 3), len(self.commands) % 256, np.uint8)


def trace(step: int, n_retained: int, reason: str = '') -> PruningTrace:
    """A step that kept ``n_retained`` of ten tokens; a ``reason`` makes it a key timestep."""
    return PruningTrace(
        method='fake',
        retention_ratio=0.3,
        n_visual=10,
        retained_index=np.arange(n_retained),
        is_key_timestep=bool(reason),
        keyframe_reason=reason,
        attention_similarity=float('nan'),
        similarity_threshold=0.5,
        steps_since_keyframe=step,
    )


class FakePolicy:
    """Joints in another order than the robot's. Chunks come from ``rows(observation, step)``
    [8, 2] in the order (g, a); every third step is a key timestep."""

    def __init__(self, rows: Callable[[Observation, int], FloatArray]) -> None:
        self.spec = PolicySpec(
            'fake', (ViewSpec('head', 4, 4, 2, 5),), ('g', 'a'), CHUNK_SIZE, PERIOD_S, 4
        )
        self.rows = rows
        self.seen: list[Observation] = []
        self.resets = 0

    def check_instruction(self, instruction: str) -> None: ...

    def force_keyframe(self) -> None: ...

    def forget_plans(self) -> None: ...

    def reset(self) -> None:
        self.resets += 1
        self.step = 0

    def predict(self, observation: Observation) -> PolicyOutput:
        self.seen.append(observation)
        chunk = ActionChunk(
            self.rows(observation, self.step), ('g', 'a'), observation.stamp_ns, round(1e8)
        )
        is_key = self.step % 3 == 0
        output = PolicyOutput(
            chunk,
            trace(self.step, 10 if is_key else 3, 'first step' if is_key else ''),
            {'total': 10.0 + self.step},
        )
        self.step += 1
        return output


@pytest.fixture
def env() -> FakeEnv:
    return FakeEnv()


@pytest.fixture
def make_env() -> type[FakeEnv]:
    return FakeEnv


@pytest.fixture
def make_policy() -> type[FakePolicy]:
    return FakePolicy


@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small embedded policy for the simulated robot with random weights."""
    return _tiny(tmp_path_factory.mktemp('weights') / 'tiny.safetensors', n_layers=5)


@pytest.fixture(scope='session')
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one, which an episode's ``macs_mean`` tells apart: it has a layer less."""
    return _tiny(tmp_path_factory.mktemp('other_weights') / 'tiny.safetensors', n_layers=4)


def _tiny(path: Path, n_layers: int) -> Path:
    import torch

    from safe_pruner_ros.policies.embedded import save_weights
    from safe_pruner_ros.policies.embedded_model import PAD_WORD, EmbeddedConfig, EmbeddedVLA
    from safe_pruner_ros.sim.env import DualArmEnv
    from safe_pruner_ros.sim.objects import COLOURS, SHAPES
    from safe_pruner_ros.sim.tasks.pick_place import TEMPLATES

    with DualArmEnv() as env:
        layout, views = env.layout, env.views
    sentences = (t.format(object=f'{c} {s}') for t in TEMPLATES for c in COLOURS for s in SHAPES)
    words = sorted({word for sentence in sentences for word in sentence.split()})
    grippers = tuple(joint.name for joint in layout.joints if joint.kind == 'gripper')
    config = EmbeddedConfig(
        tuple(views), layout.names, grippers, (PAD_WORD, *words),
        width=32, mlp_width=48, n_layers=n_layers, n_heads=2, vision_width=16,
    )  # fmt: skip
    torch.manual_seed(0)
    save_weights(EmbeddedVLA(config), path, {})
    return path
