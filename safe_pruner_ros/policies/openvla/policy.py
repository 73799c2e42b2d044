"""OpenVLA behind the Policy protocol: one pruned prefill, then seven tokens one by one.

The decoder input is ``[BOS] [visual] [text .. 29871]``, causal. Action numbers are the highest
token ids, one bin each (openvla c8f03f4, modeling_prismatic.py:500-534). Layers below
``pruning_layer`` keep the keys of all tokens, the others those of the retained ones; new tokens
go on at the ORIGINAL positions, so each equals a causal pass with the pruned keys masked.

Early saliency comes from the last prompt row, the only one in the prefill that emits an action
token. The deep saliency of 'action' queries comes from the decoding stage, as SAFE-Pruner has it:
the mean over the rows of the tokens fed back (`action_stage.py`). VLA-Pruner's release (fa5bfed,
`_extract_action_modality_attentions`) counts the rows that emit an action: the last of the prompt
besides, seven in all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from transformers import DynamicCache

from safe_pruner_ros.core.pruner import Pruner
from safe_pruner_ros.core.tokens import Span, TokenLayout, ViewGrid
from safe_pruner_ros.policies.action_stage import ActionStage
from safe_pruner_ros.policies.action_statistics import Range
from safe_pruner_ros.policies.checkpoint_check import Backend
from safe_pruner_ros.policies.deployment import Deployment
from safe_pruner_ros.policies.openvla.family import Act, Inputs, OpenVLAFamilyPolicy
from safe_pruner_ros.policies.openvla.files import OpenVLAFiles
from safe_pruner_ros.policies.openvla.images import ImageProcessor
from safe_pruner_ros.policies.openvla.network import OpenVLANetwork, load_network, run_network
from safe_pruner_ros.policies.openvla.prompt import PromptEncoder
from safe_pruner_ros.policies.policy import NoActionError, PolicyOutputError
from safe_pruner_ros.policies.pruned_decoder import DecoderOutput, rotate


def openvla_layout(views: tuple[ViewGrid, ...], n_text: int) -> TokenLayout:
    """``n_text`` T counts BOS and 29871. The action row is the last one, of the prompt itself."""
    n_visual = sum(view.n_tokens for view in views)
    length = n_visual + n_text
    visual, text = Span(1, 1 + n_visual), Span(1 + n_visual, length)
    action, prompt = Span(length - 1, length), Span(0, length)
    return TokenLayout(views, visual, text, action, length, prompt)


def decode_actions(
    network: OpenVLANetwork,
    embeddings: Float[torch.Tensor, '1 S D'],
    layout: TokenLayout,
    pruner: Pruner,
    n_actions: int,
    **how: Any,
) -> tuple[DecoderOutput, Int64[torch.Tensor, ' n']]:
    """(prefill, ids of ``n_actions`` greedy tokens). The last token is never fed back.

    The pruner has not observed the step yet: the caller does that with ``out.attention``, which
    holds the saliency of the decoding stage. ``how``: see `run_network`.
    """
    decoder, lm_head = network.decoder, network.lm_head
    assert lm_head is not None, 'OpenVLA is loaded with its language-model head'
    cache = DynamicCache()
    out = run_network(
        network,
        embeddings,
        layout,
        pruner,
        causal=True,
        past_key_values=cache,
        observe=False,
        **how,
    )
    # Layers of one decoder scale alike.
    stage = ActionStage(out, pruner, decoder.layers[0].self_attn.scaling)
    ids = [_greedy(lm_head(out.hidden[:, -1:]))]
    for position in range(layout.length, layout.length + n_actions - 1):
        hidden = network.embed_ids(ids[-1])
        cos_sin = decoder.rotary_emb(hidden, torch.tensor([[position]], device=hidden.device))
        for index, layer in enumerate(decoder.layers):
            row = hidden
            # One query over a cache sees all of it; is_causal would slice the keys in SDPA.
            hidden = layer(
                hidden,
                attention_mask=None,
                position_embeddings=cos_sin,
                past_key_values=cache,
                use_cache=True,
                is_causal=False,
            )
            if index in stage.layers:
                stage(index, _query(layer, row, cos_sin), cache.layers[index].keys[0])
        ids.append(_greedy(lm_head(decoder.norm(hidden))))
    return stage.answered(), torch.cat(ids, dim=1)[0]


def _query(
    layer: Any, row: Float[torch.Tensor, '1 1 D'], cos_sin: tuple[torch.Tensor, torch.Tensor]
) -> Float[torch.Tensor, 'H 1 d']:
    """What a ``layer`` whose input is ``row`` asks with, rotated."""
    attention = layer.self_attn
    query = attention.q_proj(layer.input_layernorm(row)[0])
    query = query.unflatten(-1, (-1, attention.head_dim)).transpose(0, 1)
    cos, sin = cos_sin
    return rotate(query, cos[0], sin[0])


def _greedy(logits: torch.Tensor) -> torch.Tensor:
    """argmax takes NaN for the highest of all, and a bin would hide it: so it is checked."""
    if not bool(torch.isfinite(logits).all()):
        raise PolicyOutputError('the language-model head returned NaN or infinite logits')
    return logits.argmax(-1)


def ids_to_actions(
    ids: Int64[torch.Tensor, ' n'], vocabulary: int, n_bins: int
) -> Float[torch.Tensor, ' n']:
    """Token ids -> normalised actions: centres of the ``n_bins - 1`` intervals of [-1, 1]. Ids
    that are no action token fall on the nearest end, as upstream: see `check_ids`."""
    edges = np.linspace(-1, 1, n_bins)
    centres = torch.from_numpy((edges[:-1] + edges[1:]) / 2).to(ids.device)
    return centres[(vocabulary - ids - 1).clamp(0, n_bins - 2)]


def check_ids(ids: Int64[torch.Tensor, ' n'], vocabulary: int, n_bins: int) -> None:
    """Raise NoActionError unless all ``ids`` are action tokens. Upstream takes any other, as
    the end of the sentence or a word, for the joint's extreme: a motion that nobody predicted."""
    lowest = vocabulary - n_bins
    if not bool(((ids >= lowest) & (ids < vocabulary)).all()):
        raise NoActionError(
            f'the policy answered with the token ids {ids.tolist()}, of which not all are action '
            f'tokens ({lowest} to {vocabulary - 1}); give an instruction and pictures like those '
            'of its training, and check that the checkpoint was fine-tuned to act'
        )


class OpenVLAPolicy(OpenVLAFamilyPolicy):
    """One image, no proprioception, one action per query."""

    causal = True

    def __init__(
        self,
        network: OpenVLANetwork,
        processor: ImageProcessor,
        encode_prompt: PromptEncoder,
        action_range: Range,
        deployment: Deployment,
        method: str,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            'openvla',
            network,
            processor,
            encode_prompt,
            action_range,
            deployment,
            1,
            method,
            dict(settings or {}),
        )

    @property
    def network(self) -> OpenVLANetwork:
        return self._network

    def with_pruner(self, method: str, settings: Mapping[str, Any] | None = None) -> OpenVLAPolicy:
        return OpenVLAPolicy(
            self._network,
            self._processor,
            self._encode_prompt,
            self._range,
            self._deployment,
            method,
            settings,
        )

    def _act(self, inputs: Inputs, pruner: Pruner, step: int) -> Act:
        text = self._network.embed_ids(inputs.ids)
        embeddings = torch.cat([text[:, :1], inputs.visual, text[:, 1:]], dim=1)
        out, action_ids = decode_actions(
            self._network,
            embeddings,
            openvla_layout(self.grids, inputs.ids.shape[1]),
            pruner,
            len(self._range),
            **self._how(inputs, step),
        )
        size = self._network.size
        check_ids(action_ids, size.vocabulary, size.n_bins)
        return Act(out, ids_to_actions(action_ids, size.vocabulary, size.n_bins)[None])


def load(files: OpenVLAFiles, method: str, settings: Mapping[str, Any]) -> OpenVLAPolicy:
    network = load_network(
        files.folder, files.size, with_lm_head=True, device=files.device, dtype=files.dtype
    )
    return OpenVLAPolicy(
        network,
        files.processor,
        files.encode_prompt,
        files.action_range,
        files.deployment,
        method,
        settings,
    )


backend = Backend(OpenVLAFiles, load)
