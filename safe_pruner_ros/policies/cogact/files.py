"""A CogACT run folder, read piece by piece; what does not fit shows before any weight is moved.
Each piece raises FileNotFoundError or ValueError with the next move."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from torch import nn

from safe_pruner_ros.policies.action_statistics import Range
from safe_pruner_ros.policies.checkpoint_check import CheckpointCheck
from safe_pruner_ros.policies.cogact.checkpoint import (
    BASE_VLMS,
    CogACTWeights,
    find_files,
    read_size,
)
from safe_pruner_ros.policies.cogact.dit import DIT_SIZES, DiTSize
from safe_pruner_ros.policies.deployment import Deployment
from safe_pruner_ros.policies.device import check_memory
from safe_pruner_ros.policies.openvla.files import OpenVLAFiles
from safe_pruner_ros.policies.openvla.images import ImageProcessor
from safe_pruner_ros.policies.openvla.network import NetworkSize

# timm's numbers for both towers, DINOv2 first; OpenVLA's files hold the first rounded to bfloat16.
MEAN = ((0.485, 0.456, 0.406), (0.5, 0.5, 0.5))
STD = ((0.229, 0.224, 0.225), (0.5, 0.5, 0.5))


class CogACTFiles(OpenVLAFiles):
    policy = 'cogact'
    reads = ('bounds', 'image_chain', 'chunk_size', 'diffusion')
    with_lm_head = False

    def __init__(
        self,
        checkpoint: Path,
        deployment: Deployment,
        device: str = 'cpu',
        base_vlms: Mapping[str, NetworkSize] = BASE_VLMS,
        dit_sizes: Mapping[str, DiTSize] = DIT_SIZES,
    ) -> None:
        """``checkpoint``: the folder, or one of several .pt files in it. Raises ValueError or
        FileNotFoundError when it is neither, or for a device that is not there."""
        folder, weights = find_files(checkpoint)
        super().__init__(folder, deployment, device, {})
        self._base_vlms = base_vlms
        self.weights = CogACTWeights(weights, dit_sizes)

    @cached_property
    def size(self) -> NetworkSize:
        return read_size(self.folder, self.config, self._base_vlms)

    @cached_property
    def action_range(self) -> Range:
        found = self._action_range()
        if len(found) != self.weights.n_actions:
            raise ValueError(
                f'the action model gives {self.weights.n_actions} numbers, the action statistics '
                f'of {self.deployment.statistics_key!r} have {len(found)}; choose the data set it '
                'was trained on'
            )
        return found

    @property
    def chunk_size(self) -> int:
        asked, given = self.deployment.chunk_size, self.weights.chunk_size
        if asked not in (None, given):
            raise ValueError(
                f'{self.weights.path} gives {given} actions a query, got chunk_size {asked}; '
                'leave it out, and set execution_horizon to execute fewer'
            )
        return given

    def check_deployment(self) -> str:
        relative = [
            dimension.joint
            for dimension in self.deployment.actions.dimensions
            if dimension.semantics == 'delta_from_state'
        ]
        if relative and self.deployment.diffusion.ensemble_horizon > 1:
            raise ValueError(
                f'the joints {relative} count from the position of their own query, so chunks of '
                'several queries cannot be averaged; set diffusion.ensemble_horizon to 1'
            )
        found = super().check_deployment()
        self._check_ensemble()
        return found

    def _check_ensemble(self) -> None:
        """Upstream averages with a query at every action, and refuses to do so with chunks (CogACT
        b174a1b, scripts/deploy.py:88)."""
        deployment = self.deployment
        joined = deployment.diffusion.ensemble_horizon
        horizon = deployment.horizon(self.chunk_size)
        if joined > 1 and horizon > 1:
            raise ValueError(
                f'diffusion.ensemble_horizon {joined} with execution_horizon {horizon} would mix '
                f'plans {horizon * deployment.period_s:g} s old and older into every action, so '
                'that the arms lag behind what the policy sees; set diffusion.ensemble_horizon to '
                '1, or execution_horizon to 1 for a query at every action, as upstream averages'
            )

    def _check_crop(self) -> None:
        """config.json is the training's configuration as it was dumped, and ``image_aug`` a field
        of it; scripts/deploy.py crops such a picture (CogACT b174a1b, scripts/train.py:75 and
        134, scripts/deploy.py:197)."""
        super()._check_crop()
        said = self._said_of_crops()
        if said and self.deployment.image_chain.crop_area == 1:
            raise ValueError(
                f'{self.folder / "config.json"} has {said}: trained with random '
                'crops, and image_chain.crop_area is 1: its pictures would be wider than any in '
                'training; set image_chain.crop_area to 0.9'
            )

    def _said_of_crops(self) -> str:
        """The entry by which config.json says that the training cropped, '' if none does."""
        run_id = self.config.get('run_id')
        if self.config.get('image_aug') is True:
            return 'image_aug true'
        return f'run_id {run_id!r}' if 'image_aug' in str(run_id) else ''

    def checks(self) -> tuple[CheckpointCheck, ...]:
        crop = CheckpointCheck('crop', self._describe_crop, is_note=True)
        return (*super().checks(), crop)

    def _describe_crop(self) -> str:
        area = self.deployment.image_chain.crop_area
        if area == 1 or self._said_of_crops() or self.config.get('image_aug') is not False:
            return ''
        return (
            f'{self.folder / "config.json"} has image_aug false, the training saw whole pictures, '
            f'and image_chain.crop_area is {area:g}: the policy sees the middle of them. Set it '
            'to 1 unless the data had been cropped before'
        )

    @cached_property
    def processor(self) -> ImageProcessor:
        size = self.size.vision.image_size
        return ImageProcessor(size, MEAN, STD, self.deployment.image_chain)

    def modules(self) -> list[nn.Module]:
        return self._modules

    @cached_property
    def _modules(self) -> list[nn.Module]:
        dit = self.weights.dit(self.size.decoder.hidden_size)
        return [dit, self.weights.network(self.size)]

    def check_memory(self) -> str:
        needed = self.weights.needed_bytes(self.size, self.device, self.dtype)
        return check_memory(needed, self.device, self.dtype, str(self.weights.path))
