"""Saliency of action rows that come after the decoder pass: tokens fed back, rows of an expert.

Action rows are the rows whose input is an action: OpenVLA's tokens fed back (six of seven, the
last is never an input), pi0.5's noisy actions in every denoising step. A prompt has none; its last
row stands in for them before the cut, where a pruner cannot wait for the others.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float

from safe_pruner_ros.core.pruner import Pruner, SaliencyRequest
from safe_pruner_ros.core.saliency import attention_saliency
from safe_pruner_ros.policies.pruned_decoder import DecoderOutput, at_visual_index


class ActionStage:
    """Answers what a pruner asks of 'action' rows in the deep layers: all of it on an unpruned
    step, on a pruned one what is marked ``on_pruned_steps``.

    A request that is a shallow one too keeps its answer from there: pruned steps compare with it.
    Show it queries and keys by calling it; without any, the answers of the decoder pass remain.
    """

    def __init__(self, out: DecoderOutput, pruner: Pruner, scaling: float) -> None:
        """``scaling``: of the logits, in every layer."""
        self._out, self._scaling = out, scaling
        self._requests: tuple[SaliencyRequest, ...] = tuple(
            request
            for request in pruner.deep_requests
            if request.queries == 'action'
            and request not in pruner.shallow_requests
            and (out.plan.retained is None or request.on_pruned_steps)
        )
        self.layers = frozenset(request.layer for request in self._requests)
        self._rows: dict[int, list[Float[torch.Tensor, 'R V']]] = {}

    def __call__(
        self,
        layer: int,
        query: Float[torch.Tensor, 'H R d'],
        key: Float[torch.Tensor, 'H_kv L d'],
    ) -> None:
        """R more rows that attend to ``key`` in ``layer``: the decoder's keys there, then those
        of the stage, all of it visible. Both rotated."""
        if layer not in self.layers:
            return
        layout, retained = self._out.context.layout, self._out.plan.retained
        # Tokens that are skipped keep their keys, those that have left have none.
        n_keys = self._out.layer_tokens[layer].attended
        visual = slice(layout.visual.start, layout.visual.start + n_keys)
        rows = attention_saliency(query, key, visual, self._scaling, per_query=True)
        if n_keys < layout.n_visual:
            assert retained is not None, 'tokens leave on pruned steps only'
            rows = at_visual_index(rows, retained.visual_index, layout)
        self._rows.setdefault(layer, []).append(rows)

    def answered(self) -> DecoderOutput:
        """The decoder pass with the saliency of the rows seen, which count alike."""
        saliency = dict(self._out.attention.saliency)
        for request in self._requests:
            if request.layer in self._rows:
                rows = torch.cat(self._rows[request.layer])
                saliency[request] = rows if request.per_query else rows.mean(dim=0)
        attention = replace(self._out.attention, saliency=saliency)
        return replace(self._out, attention=attention)
