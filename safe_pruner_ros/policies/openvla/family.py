"""What the policies on the OpenVLA network share: observation in, guarded chunk out.

Subclasses say how a prompt becomes a sequence and hidden states become actions (`_act`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int64, UInt8

from safe_pruner_ros.core.pruner import Pruner
from safe_pruner_ros.core.tokens import ViewGrid
from safe_pruner_ros.policies.action_statistics import Range
from safe_pruner_ros.policies.deployment import Deployment
from safe_pruner_ros.policies.openvla.images import ImageProcessor
from safe_pruner_ros.policies.openvla.network import OpenVLANetwork
from safe_pruner_ros.policies.openvla.prompt import PromptEncoder
from safe_pruner_ros.policies.patches import image_patches
from safe_pruner_ros.policies.policy import PolicyOutputError, PolicySpec, ViewSpec
from safe_pruner_ros.policies.pruned_decoder import DecoderOutput
from safe_pruner_ros.policies.pruned_policy import PrunedPolicy
from safe_pruner_ros.types import ActionChunk, Observation

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Act:
    """One decoder run and the normalised actions [chunk_size, n] that follow from it."""

    out: DecoderOutput
    actions: Float[torch.Tensor, 'chunk n']


@dataclass(frozen=True)
class Inputs:
    """One observation as the network reads it.

    ``visual`` [1, V, D]: projected image tokens. ``ids`` [1, T]: of the prompt. ``measured`` [n]:
    joint positions. ``patches`` [V, P]: RGB behind each visual token, 0 to 255.
    """

    visual: Float[torch.Tensor, '1 V D']
    ids: Int64[torch.Tensor, '1 T']
    measured: FloatArray
    patches: UInt8[torch.Tensor, 'V P']


class OpenVLAFamilyPolicy(PrunedPolicy):
    """Policy protocol on an `OpenVLANetwork`; batch 1."""

    def __init__(
        self,
        name: str,
        network: OpenVLANetwork,
        processor: ImageProcessor,
        encode_prompt: PromptEncoder,
        action_range: Range,
        deployment: Deployment,
        chunk_size: int,
        method: str,
        settings: dict[str, Any],
    ) -> None:
        vision = network.size.vision
        self._network, self._processor = network, processor
        # Seams for `graphed_decoder.use_graphs`; None is `run_pruned`.
        self.encode_images = network.encode_images
        self.run_decoder: Callable[..., DecoderOutput] | None = None
        self.device = network.device
        self._encode_prompt, self._range = encode_prompt, action_range
        self._deployment = deployment
        super().__init__(method, settings, len(network.decoder.layers))
        size, grid = vision.image_size, vision.grid
        self._grid = grid, grid
        self.grids = tuple(ViewGrid(view, grid, grid) for view in deployment.views)
        self.spec = PolicySpec(
            name=name,
            views=tuple(ViewSpec(view, size, size, grid, grid) for view in deployment.views),
            joint_names=deployment.actions.joint_names,
            chunk_size=chunk_size,
            period_s=deployment.period_s,
            execution_horizon=deployment.horizon(chunk_size),
        )

    def check_instruction(self, instruction: str) -> None:
        self._encode_prompt(instruction)

    @torch.inference_mode()
    def _run(
        self, observation: Observation, pruner: Pruner, step: int
    ) -> tuple[DecoderOutput, ActionChunk, dict[str, float]]:
        """Actions and latency by stage; nothing of the policy changes."""
        device = self._network.device
        began = perf_counter_ns()
        prompt = self._encode_prompt(observation.instruction)
        ids = torch.tensor([prompt], device=device)
        pictures = self._pictures(observation)
        pixels = self._pixels(pictures)
        patches = image_patches(torch.from_numpy(pictures), *self._grid).to(device)
        measured = self._measured(observation)
        prepared = perf_counter_ns()
        visual = self.encode_images(pixels)
        if device.type == 'cuda':  # the GPU runs behind the host; stages end when it is done
            torch.cuda.synchronize(device)
        encoded = perf_counter_ns()
        act = self._act(Inputs(visual, ids, measured, patches), pruner, step)
        chunk = self._chunk(act.actions, measured, observation.stamp_ns)
        finished = perf_counter_ns()
        latency = {
            'preprocess': (prepared - began) / 1e6,
            'vision': (encoded - prepared) / 1e6,
            **act.out.latency_ms,
            'head': (finished - encoded) / 1e6 - sum(act.out.latency_ms.values()),
            'total': (finished - began) / 1e6,
        }
        return act.out, chunk, latency

    @abstractmethod
    def _act(self, inputs: Inputs, pruner: Pruner, step: int) -> Act:
        """One decoder run, and what the action head makes of it."""

    def _how(self, inputs: Inputs, step: int) -> dict[str, Any]:
        """What `run_network` is told about this policy step."""
        return {
            'instruction_key': tuple(inputs.ids[0].tolist()),
            'step': step,
            'patches': inputs.patches,
            'run': self.run_decoder,
        }

    def _pictures(self, observation: Observation) -> npt.NDArray[np.uint8]:
        """[views, size, size, 3]."""
        views = self._deployment.views
        missing = [view for view in views if view not in observation.images]
        if missing:
            raise ValueError(
                f'{self.spec.name} needs the views {list(views)}; the observation misses {missing}'
            )
        return np.stack([self._processor.resize(observation.images[view].rgb) for view in views])

    def _pixels(self, pictures: npt.NDArray[np.uint8]) -> Float[torch.Tensor, 'views 6 H W']:
        return torch.stack([self._processor.normalise(picture) for picture in pictures])

    def _measured(self, observation: Observation) -> FloatArray:
        return observation.state.ordered(self.spec.joint_names)

    def _chunk(self, actions: torch.Tensor, measured: FloatArray, stamp_ns: int) -> ActionChunk:
        normalised = actions.double().cpu().numpy()
        if not np.isfinite(normalised).all():
            raise PolicyOutputError('the action head returned NaN or infinite actions')
        physical = self._physical(normalised, stamp_ns)
        targets = self._deployment.actions.targets(physical, measured)
        period_ns = round(self.spec.period_s * 1e9)
        return ActionChunk(targets, self.spec.joint_names, stamp_ns, period_ns)

    def _physical(self, normalised: FloatArray, stamp_ns: int) -> FloatArray:
        """[chunk_size, n], finite -> in the units of the action statistics."""
        return self._range.unnormalise(normalised)
