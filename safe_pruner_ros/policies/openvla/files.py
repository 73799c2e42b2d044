"""An OpenVLA checkpoint folder, read piece by piece; what does not fit shows before any weight
is moved. Each piece raises FileNotFoundError or ValueError with the next move."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from safe_pruner_ros.policies.action_statistics import Range, choose_statistics, read_range
from safe_pruner_ros.policies.checkpoint_check import CheckpointCheck, FloatArray
from safe_pruner_ros.policies.checkpoint_files import read_json
from safe_pruner_ros.policies.deployment import Deployment
from safe_pruner_ros.policies.device import (
    check_memory,
    choose_device,
    choose_dtype,
    needed_bytes,
)
from safe_pruner_ros.policies.openvla.images import ImageProcessor, read_image_processor
from safe_pruner_ros.policies.openvla.network import (
    NetworkSize,
    check_files,
    read_size,
    read_statistics,
)
from safe_pruner_ros.policies.openvla.prompt import PromptEncoder, read_prompt_encoder
from safe_pruner_ros.policies.openvla.vision import VISION_SIZES, VisionSize

# What OpenVLA-OFT saves beside the network (213c5ff, vla-scripts/finetune.py:632-645).
OFT_PARTS = ('action_head', 'proprio_projector', 'noisy_action_projector', 'vision_backbone')


class OpenVLAFiles:
    """OpenVLA's files; OpenVLA-OFT's add to them (`oft_files.py`)."""

    policy = 'openvla'
    reads: tuple[str, ...] = ('bounds', 'image_chain', 'chunk_size')
    view_limits = (1, 1)
    epsilon = 0.0  # added to the span of an action range
    with_lm_head = True

    def __init__(
        self,
        folder: Path,
        deployment: Deployment,
        device: str = 'cpu',
        vision_sizes: Mapping[str, VisionSize] = VISION_SIZES,
    ) -> None:
        """Raises ValueError for a device that is not there."""
        self.folder, self.deployment = folder, deployment
        self.device = choose_device(device)
        self.dtype = choose_dtype(deployment.dtype, self.device)
        self.vision_sizes = vision_sizes

    @cached_property
    def config(self) -> dict[str, Any]:
        return read_json(self.folder, 'config.json')

    @cached_property
    def size(self) -> NetworkSize:
        return read_size(self.folder, self.config, self.vision_sizes)

    @cached_property
    def statistics(self) -> dict[str, Any]:
        """Of the chosen data set."""
        statistics, source = read_statistics(self.folder, self.config)
        return choose_statistics(statistics, self.deployment.statistics_key, source)

    @cached_property
    def action_range(self) -> Range:
        return self._action_range()

    def _action_range(self) -> Range:
        found = read_range(self.statistics, 'action', self.deployment.bounds, self.epsilon)
        self.deployment.actions.check_size(len(found), f'the checkpoint {self.folder}')
        return found

    @property
    def chunk_size(self) -> int:
        if self.deployment.chunk_size not in (None, 1):
            raise ValueError(
                f'OpenVLA gives 1 action a query, got chunk_size {self.deployment.chunk_size}; '
                "leave it out, or take policy 'openvla_oft' for a checkpoint with an action head"
            )
        return 1

    @cached_property
    def processor(self) -> ImageProcessor:
        path = self.folder / 'preprocessor_config.json'
        values = read_json(self.folder, path.name)
        processor = read_image_processor(values, self.deployment.image_chain, path)
        if processor.size != self.size.vision.image_size:
            raise ValueError(
                f'{path} resizes to {processor.size} px, the vision towers read '
                f'{self.size.vision.image_size} px; take both files from one checkpoint'
            )
        return processor

    @cached_property
    def encode_prompt(self) -> PromptEncoder:
        return read_prompt_encoder(self.folder)

    def modules(self) -> list[nn.Module]:
        """All parts on the meta device, names and shapes checked against the files."""
        return [self._network]

    @cached_property
    def _network(self) -> nn.Module:
        return check_files(self.folder, self.size, with_lm_head=self.with_lm_head)

    def check_memory(self) -> str:
        needed = needed_bytes(self.modules(), self.device, self.dtype)
        return check_memory(needed, self.device, self.dtype, str(self.folder))

    def check_deployment(self) -> str:
        self._check_parts()
        deployment = self.deployment
        deployment.check_read(self.policy, self.reads)
        deployment.check_views(self.policy, *self.view_limits)
        horizon = deployment.horizon(self.chunk_size)
        self._check_crop()
        return (
            f'views {list(deployment.views)}, {horizon} of {self.chunk_size} actions every '
            f'{horizon * deployment.period_s:g} s'
        )

    def _check_parts(self) -> None:
        """OpenVLA-OFT's network has the names and shapes of OpenVLA's, and was trained to other
        outputs; only the files beside it tell."""
        parts = [name for name in OFT_PARTS if any(self.folder.glob(f'{name}--*_checkpoint.pt'))]
        if parts:
            raise ValueError(
                f'{self.folder} holds files of {parts}: this is an OpenVLA-OFT checkpoint, which '
                f"policy {self.policy!r} would run as what it is not; set policy 'openvla_oft'"
            )

    def _check_crop(self) -> None:
        """Upstream's training writes ``image_aug`` into the name of a folder trained with random
        crops, and its evaluation refuses that without a centre crop (openvla c8f03f4, openvla-oft
        213c5ff: vla-scripts/finetune.py, experiments/robot/libero/run_libero_eval.py)."""
        if (
            'image_aug' in self.folder.resolve().name
            and self.deployment.image_chain.crop_area == 1
        ):
            raise ValueError(
                f'{self.folder} was trained with random crops, as image_aug in its name says, and '
                'image_chain.crop_area is 1: its pictures would be wider than any in training; '
                'set image_chain.crop_area to 0.9, or rename the folder if the name is wrong'
            )

    def checks(self) -> tuple[CheckpointCheck, ...]:
        return (
            CheckpointCheck('deployment', self.check_deployment),
            CheckpointCheck('config', self._describe_size),
            CheckpointCheck('statistics', self._describe_statistics),
            CheckpointCheck('actions', self._describe_actions),
            CheckpointCheck('images', lambda: f'resized to {self.processor.size} px'),
            CheckpointCheck('tokenizer', self._describe_prompt),
            CheckpointCheck('weights', self._describe_weights),
            CheckpointCheck('memory', self.check_memory),
        )

    def action_span(self) -> tuple[FloatArray, FloatArray]:
        return self.action_range.low, self.action_range.high

    def _describe_size(self) -> str:
        decoder = self.size.decoder
        return (
            f'{self.policy}, {decoder.num_hidden_layers} decoder layers of width '
            f'{decoder.hidden_size}, {self.size.vision.grid**2} tokens a view'
        )

    def _describe_statistics(self) -> str:
        key = self.deployment.statistics_key or 'the only data set'
        return f'{key} has {sorted(self.statistics)}'

    def _describe_actions(self) -> str:
        return f'{len(self.action_range)} values for {list(self.deployment.actions.joint_names)}'

    def _describe_prompt(self) -> str:
        n_tokens = len(self.encode_prompt('pick up the red block'))
        return f'"pick up the red block" becomes {n_tokens} tokens'

    def _describe_weights(self) -> str:
        n_weights = sum(w.numel() for module in self.modules() for w in module.parameters())
        return f'{n_weights / 1e9:.3f} B, names and shapes as config.json says'
