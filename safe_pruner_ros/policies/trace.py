"""A decoder run -> what reports and overlays are told about its pruning."""

from __future__ import annotations

import numpy as np
import torch

from safe_pruner_ros.core.pruner import Pruner
from safe_pruner_ros.policies.policy import Float32Array, PruningTrace
from safe_pruner_ros.policies.pruned_decoder import DecoderOutput


def pruning_trace(out: DecoderOutput, pruner: Pruner) -> PruningTrace:
    plan = out.plan
    retained = (
        np.arange(out.context.layout.n_visual)
        if plan.retained is None
        else plan.retained.visual_index.cpu().numpy()
    )
    return PruningTrace(
        method=pruner.method,
        retention_ratio=pruner.retention_ratio,
        n_visual=out.context.layout.n_visual,
        retained_index=retained.astype(np.int64),
        is_key_timestep=plan.keyframe is not None,
        keyframe_reason='' if plan.keyframe is None else plan.keyframe.value,
        attention_similarity=plan.attention_similarity,
        similarity_threshold=pruner.similarity_threshold,
        steps_since_keyframe=plan.steps_since_keyframe,
        fallback=plan.fallback,
        early=_as_numpy(plan.early),
        forecast=_as_numpy(plan.forecast),
        fused=_as_numpy(plan.fused),
        pruning_layer=pruner.pruning_layer,
        layer_tokens=out.layer_tokens,
        n_text=len(out.context.layout.text),
    )


def _as_numpy(saliency: torch.Tensor | None) -> Float32Array | None:
    return None if saliency is None else saliency.float().cpu().numpy()
