"""CogACT behind the Policy protocol: one pruned pass, a cognition token, a diffused chunk.

The decoder input is ``[BOS] [visual] [text .. 29871] [</s>]``, causal. The last token is the
cognition token: its hidden state is all that the action head sees (CogACT b174a1b,
vla/cogactvla.py:276-322). It is also the row that saliency is asked of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int64

from safe_pruner_ros.core.pruner import Pruner
from safe_pruner_ros.core.tokens import Span, TokenLayout, ViewGrid
from safe_pruner_ros.policies.action_statistics import Range
from safe_pruner_ros.policies.checkpoint_check import Backend
from safe_pruner_ros.policies.cogact.checkpoint import CogACTModel
from safe_pruner_ros.policies.cogact.diffusion import DDIMSampler
from safe_pruner_ros.policies.cogact.ensemble import AdaptiveEnsemble
from safe_pruner_ros.policies.cogact.files import CogACTFiles
from safe_pruner_ros.policies.deployment import Deployment
from safe_pruner_ros.policies.openvla.family import Act, FloatArray, Inputs, OpenVLAFamilyPolicy
from safe_pruner_ros.policies.openvla.images import ImageProcessor
from safe_pruner_ros.policies.openvla.network import run_network
from safe_pruner_ros.policies.openvla.prompt import EOS, PromptEncoder
from safe_pruner_ros.policies.policy import PolicyOutput
from safe_pruner_ros.policies.pruned_decoder import DecoderOutput
from safe_pruner_ros.types import Observation


def cogact_layout(views: tuple[ViewGrid, ...], n_text: int) -> TokenLayout:
    """``n_text`` T counts BOS and 29871, not the cognition token behind them, which closes the
    prompt."""
    n_visual = sum(view.n_tokens for view in views)
    cognition = n_visual + n_text
    return TokenLayout(
        views,
        visual=Span(1, 1 + n_visual),
        text=Span(1 + n_visual, cognition),
        action=Span(cognition, cognition + 1),
        length=cognition + 1,
        prefill=Span(0, cognition + 1),
    )


def read_cognition(
    model: CogACTModel,
    visual: Float[torch.Tensor, '1 V D'],
    ids: Int64[torch.Tensor, '1 T'],
    layout: TokenLayout,
    pruner: Pruner,
    **how: Any,
) -> tuple[DecoderOutput, Float[torch.Tensor, '1 D']]:
    """(decoder run, hidden state of the cognition token after the final norm). ``how``: see
    `run_network`."""
    network = model.network
    text = network.embed_ids(torch.cat([ids, torch.full_like(ids[:, :1], EOS)], dim=1))
    embeddings = torch.cat([text[:, :1], visual, text[:, 1:]], dim=1)
    out = run_network(network, embeddings, layout, pruner, causal=True, **how)
    return out, out.rows(layout.action)


def to_physical(normalised: npt.ArrayLike, action_range: Range) -> FloatArray:
    """[..., n] as sampled, finite -> physical. What the statistics leave raw is a gripper, which
    this model closes (0) or opens (1)."""
    clipped = np.asarray(normalised, np.float64).clip(-1.0, 1.0)
    return action_range.unnormalise(np.where(action_range.mask, clipped, clipped >= 0.5))


class CogACTPolicy(OpenVLAFamilyPolicy):
    """One image, no proprioception. Every episode repeats the noise of ``diffusion.seed``."""

    causal = True

    def __init__(
        self,
        model: CogACTModel,
        processor: ImageProcessor,
        encode_prompt: PromptEncoder,
        action_range: Range,
        deployment: Deployment,
        method: str,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        dit, diffusion = model.dit, deployment.diffusion
        super().__init__(
            'cogact',
            model.network,
            processor,
            encode_prompt,
            action_range,
            deployment,
            dit.chunk_size,
            method,
            dict(settings or {}),
        )
        self._model = model
        self._sampler = DDIMSampler(dit, diffusion.n_steps, diffusion.guidance_scale)
        self._ensemble = AdaptiveEnsemble(
            diffusion.ensemble_horizon,
            diffusion.ensemble_alpha,
            round(deployment.period_s * 1e9),
        )
        self._instruction: str | None = None
        self._predicted: FloatArray = np.empty((0, dit.n_actions))

    @property
    def model(self) -> CogACTModel:
        return self._model

    def with_pruner(self, method: str, settings: Mapping[str, Any] | None = None) -> CogACTPolicy:
        return CogACTPolicy(
            self._model,
            self._processor,
            self._encode_prompt,
            self._range,
            self._deployment,
            method,
            settings,
        )

    def forget_plans(self) -> None:
        self._ensemble.clear()

    def reset(self) -> None:
        super().reset()
        self.forget_plans()

    def predict(self, observation: Observation) -> PolicyOutput:
        if observation.instruction != self._instruction:
            self.forget_plans()  # they were for another task
            self._instruction = observation.instruction
        output = super().predict(observation)
        self._ensemble.remember(self._predicted, observation.stamp_ns)
        return output

    def _act(self, inputs: Inputs, pruner: Pruner, step: int) -> Act:
        out, cognition = read_cognition(
            self._model,
            inputs.visual,
            inputs.ids,
            cogact_layout(self.grids, inputs.ids.shape[1]),
            pruner,
            observe=False,
            **self._how(inputs, step),
        )
        return Act(out, self._sampler.sample(cognition, self._noise_of(step)))

    def _noise_of(self, step: int) -> Float[torch.Tensor, '1 H n']:
        """Standard normal; a function of seed and step in the episode, on every device. A step
        that fails and is run again gets the same, and methods can be compared."""
        dit, seed = self._model.dit, self._deployment.diffusion.seed
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        shape = (1, dit.chunk_size, dit.n_actions)
        return torch.randn(shape, generator=generator).to(dit.positional_embedding)

    def _physical(self, normalised: FloatArray, stamp_ns: int) -> FloatArray:
        self._predicted = to_physical(normalised, self._range)  # for `predict` to remember
        averaged = self._ensemble.average(self._predicted, stamp_ns)
        # An average of open and closed is neither; upstream's deployment decides the same way.
        decided: FloatArray = np.where(self._range.mask, averaged, averaged > 0.5)
        return decided


def load(files: CogACTFiles, method: str, settings: Mapping[str, Any]) -> CogACTPolicy:
    return CogACTPolicy(
        files.weights.load(files.size, files.device, files.dtype),
        files.processor,
        files.encode_prompt,
        files.action_range,
        files.deployment,
        method,
        settings,
    )


backend = Backend(CogACTFiles, load)
