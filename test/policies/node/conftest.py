"""Tiny random checkpoints of big policies with sixteen actions, and policy files for them.

They fit config/robots/sim.yaml, so the real node can run them on the simulated robot.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.pi05_folder import characters
from safetensors.torch import save_file

# Before rclpy is imported anywhere: a domain of this process alone, on this machine alone.
os.environ['ROS_DOMAIN_ID'] = str(10 + os.getpid() % 90)
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'

from safe_pruner_ros.policies.openvla.oft_head import ActionHead, ProprioProjector
from safe_pruner_ros.policies.openvla.vision import VISION_SIZES
from safe_pruner_ros.policies.pi05.config import GemmaSize, Pi05Config, VisionSize
from safe_pruner_ros.policies.pi05.model import Pi05
from safe_pruner_ros.runtime.config_yaml import load_config

ROOT = Path(__file__).parents[3]
JOINTS = load_config(ROOT / 'config' / 'robots' / 'sim.yaml').robot.layout.names
GRIPPERS = tuple(name for name in JOINTS if 'gripper' in name)
CHUNK = 8
STEP_RAD = 0.03  # what a full action moves an arm joint

PI05 = Pi05Config(
    prefix=GemmaSize(16, 6, 32, n_heads=2, head_dim=8),
    expert=GemmaSize(8, 6, 16, n_heads=2, head_dim=8),
    vision=VisionSize(16, 1, 24, n_heads=2, image_size=56),
    vocabulary_size=128,
    action_horizon=CHUNK,
    n_denoising_steps=2,
)

POLICY = """\
policy:
  name: {name}
  checkpoint: {folder}
  deployment:
    views: [head, left_wrist, right_wrist]
    period_s: 0.1
    execution_horizon: 4
{extra}
    actions:
{actions}
pruner: {{method: safe_pruner, retention_ratio: 0.25, similarity_threshold: 0.0}}
runtime:
  # Generous ages: these tests are about what is sent, on any loaded machine.
  guard: {{soft_start_s: 0.1, max_state_age_s: 1.0, max_command_age_s: 1.0}}
  worker: {{max_inference_s: 20.0}}
  actions: {{max_action_age_s: 5.0}}
  buffer: {{max_state_age_s: 1.0, max_image_age_s: 2.0, max_skew_s: 1.0, max_future_s: 0.5}}
"""


@dataclass(frozen=True)
class TinyPolicy:
    """A checkpoint folder and a policy file that names it; both may be changed by a test."""

    name: str
    folder: Path
    file: Path

    def edit(self, old: str, new: str) -> None:
        text = self.file.read_text()
        assert old in text
        self.file.write_text(text.replace(old, new))


def write_policy_file(path: Path, name: str, folder: Path, semantics: str, extra: str) -> None:
    lines = []
    for joint in JOINTS:
        how = 'gripper: true' if joint in GRIPPERS else f'semantics: {semantics}'
        lines.append(f'      - {{joint: {joint}, {how}}}')
    path.write_text(POLICY.format(name=name, folder=folder, extra=extra, actions='\n'.join(lines)))


def bounds(low: float, high: float) -> dict[str, list[float]]:
    """Steps of the arms, 0..1 for grippers."""
    return {
        'q01': [0.0 if joint in GRIPPERS else low for joint in JOINTS],
        'q99': [1.0 if joint in GRIPPERS else high for joint in JOINTS],
    }


@pytest.fixture
def tiny_oft(
    tmp_path: Path, openvla_tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> TinyPolicy:
    monkeypatch.setitem(VISION_SIZES, 'tiny', openvla_tiny.vision_sizes['tiny'])
    folder = tmp_path / 'oft'
    shutil.copytree(openvla_tiny.oft, folder)
    torch.manual_seed(1)
    n = len(JOINTS)
    for name, module in (
        ('action_head', ActionHead(32, n)),
        ('proprio_projector', ProprioProjector(n, 32)),
    ):
        (old,) = folder.glob(f'{name}--*.pt')
        state = {f'module.{key}': value for key, value in module.state_dict().items()}
        torch.save(state, old)
    statistics = {'action': bounds(-STEP_RAD, STEP_RAD), 'proprio': bounds(-3.0, 3.0)}
    (folder / 'dataset_statistics.json').write_text(json.dumps({'lab_robot': statistics}))
    file = tmp_path / 'openvla_oft.yaml'
    extra = f'    chunk_size: {CHUNK}\n    proprioception: [{", ".join(JOINTS)}]'
    write_policy_file(file, 'openvla_oft', folder, 'delta', extra)
    return TinyPolicy('openvla_oft', folder, file)


@pytest.fixture
def tiny_pi05(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyPolicy:
    monkeypatch.setattr('safe_pruner_ros.policies.pi05.checkpoint.PUBLISHED', PI05)
    torch.manual_seed(1)
    folder = tmp_path / 'pi05'
    folder.mkdir()
    inside = 'paligemma_with_expert.paligemma.model.'
    outside = {
        'vision_tower': f'{inside}vision_tower.vision_model.',
        'projector': f'{inside}multi_modal_projector.linear.',
        'language_model': f'{inside}language_model.',
        'expert': 'paligemma_with_expert.gemma_expert.model.',
    }
    state = {}
    for name, value in Pi05(PI05).state_dict().items():
        head, _, rest = name.partition('.')
        state[outside[head] + rest if head in outside else name] = value.clone()
    save_file(state, folder / 'model.safetensors')
    config = {'action_dim': 32, 'action_horizon': CHUNK}
    (folder / 'config.json').write_text(json.dumps(config))
    assets = folder / 'assets' / 'lab_robot'
    assets.mkdir(parents=True)
    statistics = {'state': bounds(-3.0, 3.0), 'actions': bounds(-0.3, 0.3)}
    (assets / 'norm_stats.json').write_text(json.dumps({'norm_stats': statistics}))
    characters().save(str(folder / 'tokenizer.json'))
    file = tmp_path / 'pi05.yaml'
    write_policy_file(file, 'pi05', folder, 'delta_from_state', '    prompt: state')
    return TinyPolicy('pi05', folder, file)


@pytest.fixture(params=['openvla_oft', 'pi05'])
def tiny_policy(request: pytest.FixtureRequest) -> TinyPolicy:
    fixture = {'openvla_oft': 'tiny_oft', 'pi05': 'tiny_pi05'}[request.param]
    policy: TinyPolicy = request.getfixturevalue(fixture)
    return policy


@pytest.fixture
def preflight(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """The command with these arguments -> (exit code, what it printed)."""
    from safe_pruner_ros.cli import main

    def run(*arguments: str) -> tuple[int, str]:
        code = main(['preflight', *arguments])
        return code, capsys.readouterr().out

    return run
