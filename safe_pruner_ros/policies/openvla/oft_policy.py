"""OpenVLA-OFT behind the Policy protocol: one parallel pass, a chunk of actions.

The decoder input is ``[BOS] [visual] [proprioception] [text .. 29871] [placeholders] [</s>]``.
Placeholders, one per action number, have zero embeddings. Every token sees every other: upstream
trained so, in a fork of transformers, and no file of a checkpoint says it. An action number is
read one row before its placeholder, at the hidden state that would predict it in a language model
(openvla-oft 213c5ff, modeling_prismatic.py:734-755, 889-918).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64

from safe_pruner_ros.core.pruner import Pruner
from safe_pruner_ros.core.tokens import Span, TokenLayout, ViewGrid
from safe_pruner_ros.policies.action_statistics import Range
from safe_pruner_ros.policies.checkpoint_check import Backend
from safe_pruner_ros.policies.checkpoint_files import load_strict, read_json
from safe_pruner_ros.policies.deployment import Deployment
from safe_pruner_ros.policies.openvla.family import Act, Inputs, OpenVLAFamilyPolicy
from safe_pruner_ros.policies.openvla.images import ImageProcessor
from safe_pruner_ros.policies.openvla.network import (
    OpenVLANetwork,
    load_network,
    read_size,
    run_network,
)
from safe_pruner_ros.policies.openvla.oft_files import OFTFiles, OFTParts
from safe_pruner_ros.policies.openvla.oft_head import ActionHead, ProprioProjector
from safe_pruner_ros.policies.openvla.prompt import EOS, PromptEncoder
from safe_pruner_ros.policies.openvla.vision import VISION_SIZES, VisionSize
from safe_pruner_ros.policies.pruned_decoder import DecoderOutput

# Which rows ask for saliency: the placeholders (SAFE-Pruner's action tokens) or the rows that
# actions are read from, one earlier. Placeholders enter layer 0 as zeros: their saliency there is
# the same for all tokens.
ActionQueries = Literal['placeholders', 'readout']


@dataclass(frozen=True)
class OFTLayout:
    """``tokens`` for the pruner; ``readout`` [start, stop): rows of the action numbers."""

    tokens: TokenLayout
    readout: Span


def oft_layout(
    views: tuple[ViewGrid, ...],
    n_text: int,
    n_action_tokens: int,
    *,
    has_proprio: bool,
    queries: ActionQueries = 'placeholders',
) -> OFTLayout:
    """``n_text`` T counts BOS and 29871. Length 1 + V + proprioception + (T - 1) + actions + 1."""
    n_visual = sum(view.n_tokens for view in views)
    text = Span(1 + n_visual + has_proprio, n_visual + has_proprio + n_text)
    placeholders = Span(text.stop, text.stop + n_action_tokens)
    readout = Span(placeholders.start - 1, placeholders.stop - 1)
    action = placeholders if queries == 'placeholders' else readout
    tokens = TokenLayout(views, Span(1, 1 + n_visual), text, action, placeholders.stop + 1)
    return OFTLayout(tokens, readout)


@dataclass(frozen=True)
class OFTModel:
    """The network's parts, on one device and in eval mode."""

    network: OpenVLANetwork
    head: ActionHead
    proprio: ProprioProjector | None

    def embed(
        self,
        visual: Float[torch.Tensor, '1 V D'],
        ids: Int64[torch.Tensor, '1 T'],
        proprio: Float[torch.Tensor, '1 P'] | None,
        n_action_tokens: int,
    ) -> Float[torch.Tensor, '1 S D']:
        if (proprio is None) != (self.proprio is None):
            raise ValueError('give proprioception exactly when the checkpoint has its projector')
        text = self.network.embed_ids(ids)
        end = self.network.embed_ids(torch.full_like(ids[:, :1], EOS))
        parts = [text[:, :1], visual]
        if self.proprio is not None and proprio is not None:
            parts.append(self.proprio(proprio.to(text))[None])
        placeholders = text.new_zeros(1, n_action_tokens, text.shape[2])
        return torch.cat([*parts, text[:, 1:], placeholders, end], dim=1)

    def decode(
        self,
        embeddings: Float[torch.Tensor, '1 S D'],
        layout: OFTLayout,
        pruner: Pruner,
        **how: Any,
    ) -> tuple[DecoderOutput, Float[torch.Tensor, 'chunk n']]:
        """(decoder run, normalised actions). ``how``: see `run_network`."""
        out = run_network(self.network, embeddings, layout.tokens, pruner, causal=False, **how)
        return out, self.head(out.rows(layout.readout)).float()


class OpenVLAOFTPolicy(OpenVLAFamilyPolicy):
    def __init__(
        self,
        model: OFTModel,
        processor: ImageProcessor,
        encode_prompt: PromptEncoder,
        action_range: Range,
        proprio_range: Range | None,
        deployment: Deployment,
        method: str,
        settings: Mapping[str, Any] | None = None,
        queries: ActionQueries = 'placeholders',
    ) -> None:
        assert deployment.chunk_size is not None, '`OFTFiles` refuses that'
        super().__init__(
            'openvla_oft',
            model.network,
            processor,
            encode_prompt,
            action_range,
            deployment,
            deployment.chunk_size,
            method,
            dict(settings or {}),
        )
        self._model, self._proprio_range, self._queries = model, proprio_range, queries
        joints = self.spec.joint_names
        self._proprio_index = [joints.index(name) for name in deployment.proprioception]

    @property
    def model(self) -> OFTModel:
        return self._model

    def with_pruner(
        self, method: str, settings: Mapping[str, Any] | None = None
    ) -> OpenVLAOFTPolicy:
        return OpenVLAOFTPolicy(
            self._model,
            self._processor,
            self._encode_prompt,
            self._range,
            self._proprio_range,
            self._deployment,
            method,
            settings,
            self._queries,
        )

    def _act(self, inputs: Inputs, pruner: Pruner, step: int) -> Act:
        n_action_tokens = self.spec.chunk_size * self._model.head.n_actions
        layout = oft_layout(
            self.grids,
            inputs.ids.shape[1],
            n_action_tokens,
            has_proprio=self._model.proprio is not None,
            queries=self._queries,
        )
        proprio = None
        if self._proprio_range is not None:
            state = self._deployment.actions.to_checkpoint(inputs.measured)[self._proprio_index]
            normalised = self._proprio_range.normalise(state)
            proprio = torch.from_numpy(normalised.astype(np.float32))[None]
        embeddings = self._model.embed(inputs.visual, inputs.ids, proprio, n_action_tokens)
        out, actions = self._model.decode(
            embeddings, layout, pruner, observe=False, **self._how(inputs, step)
        )
        return Act(out, actions)


def load_oft_model(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    vision_sizes: Mapping[str, VisionSize] = VISION_SIZES,
) -> OFTModel:
    """Merged shards, ``action_head--*.pt`` and, where there is one, ``proprio_projector--*.pt``.

    Raises FileNotFoundError or ValueError saying what is missing, unexpected or of a wrong shape.
    """
    size = read_size(folder, read_json(folder, 'config.json'), vision_sizes)
    parts = OFTParts(folder, size.decoder.hidden_size)
    head, proprio = parts.head(), parts.proprio()
    load_strict(head, parts.head_state, folder / 'action_head', device=device, dtype=dtype)
    if proprio is not None and parts.proprio_state is not None:
        source = folder / 'proprio_projector'
        load_strict(proprio, parts.proprio_state, source, device=device, dtype=dtype)
        proprio.eval()
    network = load_network(folder, size, with_lm_head=False, device=device, dtype=dtype)
    return OFTModel(network, head.eval(), proprio)


def load(files: OFTFiles, method: str, settings: Mapping[str, Any]) -> OpenVLAOFTPolicy:
    return OpenVLAOFTPolicy(
        load_oft_model(files.folder, files.device, files.dtype, files.vision_sizes),
        files.processor,
        files.encode_prompt,
        files.action_range,
        files.proprio_range,
        files.deployment,
        method,
        settings,
    )


backend = Backend(OFTFiles, load)
