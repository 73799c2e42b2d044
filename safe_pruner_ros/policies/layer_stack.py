"""Decoder layers one by one, with the positions and the mask of the tokens that are left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


class _KeyTap:
    """Stands where a layer expects its cache, sees the keys it attends to, and hands all to the
    real cache, if there is one."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self.key: torch.Tensor | None = None

    def update(
        self, key: torch.Tensor, value: torch.Tensor, *arguments: Any, **keywords: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self._cache is not None:
            key, value = self._cache.update(key, value, *arguments, **keywords)
        self.key = key[0]
        return key, value


@dataclass(frozen=True)
class LayerRun:
    """``key`` [H_kv, S, d], rotated; None for a layer that shows no cache its keys."""

    inputs: torch.Tensor
    output: torch.Tensor
    key: torch.Tensor | None


class LayerStack:
    """Calls layers with the positions and the mask of the tokens that are left."""

    def __init__(
        self,
        layers: Sequence[nn.Module],
        rotary: tuple[torch.Tensor, torch.Tensor],
        position_ids: torch.Tensor,
        causal: bool,
        is_eager: bool,
        past_key_values: Any,
    ) -> None:
        self.rotary = rotary
        self._layers, self._position_ids = layers, position_ids
        self._causal, self._is_eager = causal, is_eager
        self._past_key_values = past_key_values
        self._mask = self._build_mask()

    def keep(self, positions: torch.Tensor) -> None:
        """Only these rows go on; the mask is built anew, the full one would not fit."""
        cos, sin = self.rotary
        self.rotary = (cos.index_select(1, positions), sin.index_select(1, positions))
        self._position_ids = self._position_ids.index_select(1, positions)
        self._mask = self._build_mask()

    def run_layer(self, index: int, hidden: torch.Tensor) -> LayerRun:
        tap = _KeyTap(self._past_key_values)
        output: torch.Tensor = self._layers[index](
            hidden,
            attention_mask=self._mask,
            position_ids=self._position_ids,
            past_key_values=tap,
            use_cache=self._past_key_values is not None,
            position_embeddings=self.rotary,
            is_causal=self._causal,
        )
        return LayerRun(hidden, output, tap.key)

    def _build_mask(self) -> torch.Tensor | None:
        if not (self._causal and self._is_eager):
            return None
        cos, _ = self.rotary
        length = cos.shape[1]
        lowest = torch.finfo(cos.dtype).min
        mask = torch.full((length, length), lowest, dtype=cos.dtype, device=cos.device)
        return mask.triu(1)[None, None]
