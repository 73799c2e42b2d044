"""An OpenVLA-OFT checkpoint folder: OpenVLA's files, an action head and, mostly, a proprioception
projector. Each piece raises FileNotFoundError or ValueError with the next move."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from safe_pruner_ros.policies.action_statistics import Range, read_range
from safe_pruner_ros.policies.checkpoint_files import check_fit, read_component
from safe_pruner_ros.policies.openvla.files import OpenVLAFiles
from safe_pruner_ros.policies.openvla.oft_head import ActionHead, ProprioProjector

MAX_VIEWS = 3


class OFTParts:
    """What OpenVLA-OFT adds to the network, as ``.pt`` files beside it."""

    def __init__(self, folder: Path, width: int) -> None:
        self.folder, self._width = folder, width

    @cached_property
    def head_state(self) -> dict[str, torch.Tensor]:
        foreign = [
            path.name
            for name in ('vision_backbone', 'noisy_action_projector')
            for path in sorted(self.folder.glob(f'{name}--*_checkpoint.pt'))
        ]
        if foreign:
            raise ValueError(
                f'{self.folder} holds {foreign}: FiLM and diffusion variants of OpenVLA-OFT are '
                'not supported; take a checkpoint with the L1 head'
            )
        state = read_component(self.folder, 'action_head')
        if 'model.fc2.weight' not in state:
            raise ValueError(
                f'the action head in {self.folder} is no L1 head: it has no model.fc2.weight, '
                f'only {sorted(state)}'
            )
        return state

    @cached_property
    def proprio_state(self) -> dict[str, torch.Tensor] | None:
        """None for a checkpoint trained without."""
        if not any(self.folder.glob('proprio_projector--*_checkpoint.pt')):
            return None
        return read_component(self.folder, 'proprio_projector')

    @property
    def n_actions(self) -> int:
        return self.head_state['model.fc2.weight'].shape[0]

    @property
    def n_proprio(self) -> int:
        """0 for a checkpoint trained without."""
        if self.proprio_state is None:
            return 0
        weight = self.proprio_state.get('fc1.weight')
        return 1 if weight is None else weight.shape[-1]  # `check_fit` says what is missing

    def head(self) -> ActionHead:
        """On the meta device, checked against its file."""
        with torch.device('meta'):
            head = ActionHead(self._width, self.n_actions)
        check_fit(head, self.head_state, self.folder / 'action_head')
        return head

    def proprio(self) -> ProprioProjector | None:
        """On the meta device, checked against its file."""
        if self.proprio_state is None:
            return None
        with torch.device('meta'):
            proprio = ProprioProjector(self.n_proprio, self._width)
        check_fit(proprio, self.proprio_state, self.folder / 'proprio_projector')
        return proprio


class OFTFiles(OpenVLAFiles):
    policy = 'openvla_oft'
    reads = ('bounds', 'image_chain', 'chunk_size', 'proprioception')
    view_limits = (1, MAX_VIEWS)
    epsilon = 1e-8  # openvla-oft 213c5ff, modeling_prismatic.py:772-791
    with_lm_head = False

    def _check_parts(self) -> None:
        """They belong here; `OFTParts` says which are missing or not supported."""

    @property
    def chunk_size(self) -> int:
        if self.deployment.chunk_size is None:
            raise ValueError(
                'no file of an OpenVLA-OFT checkpoint says how many actions it gives; set '
                'chunk_size to that of its training (8 for LIBERO, 25 for ALOHA, 5 for BridgeData)'
            )
        return self.deployment.chunk_size

    @cached_property
    def parts(self) -> OFTParts:
        return OFTParts(self.folder, self.size.decoder.hidden_size)

    @cached_property
    def action_range(self) -> Range:
        found = self._action_range()
        if len(found) != self.parts.n_actions:
            raise ValueError(
                f'the action head gives {self.parts.n_actions} numbers, the action statistics of '
                f'{self.deployment.statistics_key!r} have {len(found)}; choose the data set the '
                'head was trained on'
            )
        return found

    @cached_property
    def proprio_range(self) -> Range | None:
        """None for a checkpoint trained without."""
        joints, n_read = list(self.deployment.proprioception), self.parts.n_proprio
        if not n_read:
            if joints:
                raise ValueError(
                    f'the configuration gives proprioception {joints}, the checkpoint has no '
                    'proprioception projector; leave it empty'
                )
            return None
        found = read_range(self.statistics, 'proprio', self.deployment.bounds, self.epsilon)
        if not n_read == len(joints) == len(found):
            raise ValueError(
                f'the checkpoint reads {n_read} numbers of proprioception, its statistics have '
                f'{len(found)}, the configuration names {len(joints)} joints {joints}; name one '
                'for each, in the order of its training'
            )
        return found

    def modules(self) -> list[nn.Module]:
        parts = (self.parts.head(), self.parts.proprio())
        return [*(part for part in parts if part is not None), *super().modules()]

    def _describe_actions(self) -> str:
        actions = super()._describe_actions()
        n_proprio = 0 if self.proprio_range is None else len(self.proprio_range)
        return f'{actions}, proprioception of {n_proprio} joints'
