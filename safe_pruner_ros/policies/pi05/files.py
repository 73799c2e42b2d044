"""A pi0.5 checkpoint folder, read piece by piece; what does not fit shows before any weight is
moved. Each piece raises FileNotFoundError or ValueError with the next move."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from safe_pruner_ros.policies.checkpoint_check import CheckpointCheck, FloatArray
from safe_pruner_ros.policies.deployment import Deployment
from safe_pruner_ros.policies.device import check_memory, choose_device, choose_dtype
from safe_pruner_ros.policies.pi05.checkpoint import (
    check_files,
    image_names,
    needed_memory,
    read_config,
    read_values,
)
from safe_pruner_ros.policies.pi05.config import Pi05Config
from safe_pruner_ros.policies.pi05.model import Pi05
from safe_pruner_ros.policies.pi05.prompt import PromptEncoder, load_tokenizer, prompt_form
from safe_pruner_ros.policies.pi05.relative_actions import check_relative_actions
from safe_pruner_ros.policies.pi05.statistics import Statistics, load_statistics

POLICY = 'pi05'
READS = ('prompt', 'prompt_state_dim', 'max_prompt_tokens')
# Images in the order of the training (openpi `models/model.py`), where config.json names none.
SLOTS = ('base', 'left wrist', 'right wrist')


class Pi05Files:
    def __init__(
        self,
        folder: Path,
        deployment: Deployment,
        device: str = 'cpu',
        base: Pi05Config | None = None,
    ) -> None:
        """``base``: sizes that config.json does not name. Raises ValueError for a device that is
        not there."""
        self.folder, self.deployment, self.base = folder, deployment, base
        self.device = choose_device(device)
        self.dtype = choose_dtype(deployment.dtype, self.device)

    @cached_property
    def config(self) -> Pi05Config:
        return read_config(self.folder, self.base)

    @property
    def chunk_size(self) -> int:
        return self.config.action_horizon

    @cached_property
    def statistics(self) -> Statistics:
        """Of the joints that the robot has."""
        found = load_statistics(self.folder, self.deployment.statistics_key)
        joints, limit = self.deployment.actions.joint_names, self.config.action_dim
        if len(joints) > limit:
            raise ValueError(
                f'the checkpoint acts in at most {limit} dimensions, the robot configuration '
                f'drives {len(joints)} joints {list(joints)}'
            )
        return found.for_joints(len(joints), limit)

    @cached_property
    def prompt(self) -> PromptEncoder:
        form = prompt_form(self.deployment.prompt)
        if form == 'text' and self.config.framework == 'lerobot':
            raise ValueError(
                f'{self.folder / "config.json"} is from lerobot, whose prompts always hold the '
                "state, got prompt 'text'; set prompt: state"
            )
        longest, n_words = self.deployment.max_prompt_tokens, self.config.vocabulary_size
        return PromptEncoder(load_tokenizer(self.folder), form, longest, n_words)

    @cached_property
    def model(self) -> Pi05:
        """On the meta device, names and shapes checked against the file."""
        return check_files(self.folder, self.base)

    def check_memory(self) -> str:
        needed = needed_memory(self.model, self.device, self.dtype)
        return check_memory(needed, self.device, self.dtype, str(self.folder))

    def check_deployment(self) -> str:
        deployment = self.deployment
        deployment.check_read(POLICY, READS)
        trained = image_names(self.folder)
        deployment.check_views(POLICY, 1, len(trained or SLOTS))
        horizon = deployment.horizon(self.chunk_size)
        values, path = read_values(self.folder), self.folder / 'config.json'
        check_relative_actions(path, values, deployment.actions)
        return (
            f'views {list(deployment.views)} for {trained or list(SLOTS)} of the training, '
            f'{horizon} of {self.chunk_size} actions every '
            f'{horizon * deployment.period_s:g} s'
        )

    def checks(self) -> tuple[CheckpointCheck, ...]:
        return (
            CheckpointCheck('config', self._describe_config),
            CheckpointCheck('deployment', self.check_deployment),
            CheckpointCheck('views', self._describe_missing_views, is_note=True),
            CheckpointCheck('statistics', self._describe_statistics),
            CheckpointCheck('tokenizer', self._describe_prompt),
            CheckpointCheck('weights', self._describe_weights),
            CheckpointCheck('memory', self.check_memory),
        )

    def action_span(self) -> tuple[FloatArray, FloatArray]:
        return self.statistics.action.low, self.statistics.action.high

    def _describe_config(self) -> str:
        config = self.config
        return (
            f'pi0.5, {config.prefix.depth} prefix layers of width {config.prefix.width}, '
            f'{config.vision.grid**2} tokens a view'
        )

    def _describe_missing_views(self) -> str:
        trained, views = image_names(self.folder), list(self.deployment.views)
        if len(views) >= len(trained):
            return ''
        return (
            f'the training had {len(trained)} images {trained}, the configuration names {views}; '
            'the policy sees no others. Name all of them in deployment.views if the robot has them'
        )

    def _describe_statistics(self) -> str:
        joints = list(self.deployment.actions.joint_names)
        return f'{len(self.statistics.action)} values for {joints}'

    def _describe_prompt(self) -> str:
        return f'prompt form {self.prompt.form!r}'

    def _describe_weights(self) -> str:
        n_weights = sum(weight.numel() for weight in self.model.parameters())
        return f'{n_weights / 1e9:.3f} B, names and shapes as config.json says'
