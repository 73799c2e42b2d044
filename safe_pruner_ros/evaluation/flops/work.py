"""Operations as numbers: what a matrix product costs in arithmetic and in weights read.

Counted are matrix products, convolutions and attention, as torch's FlopCounterMode counts them:
norms, activations, softmax, sorting and rotary embeddings are left out (below 1 % of a layer).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """One operation. ``macs`` multiply-accumulates (a FLOP count is twice that); ``weights``
    parameters it reads; both whole numbers."""

    macs: int
    weights: int = 0


Operations = list[Work]


def linear(rows: int, n_in: int, n_out: int) -> Work:
    return Work(rows * n_in * n_out, n_in * n_out)


def product(rows: int, inner: int, cols: int) -> Work:
    """Of two activations: no weight is read."""
    return Work(rows * inner * cols)


def attention(queries: int, keys: int, width: int) -> Work:
    """Logits and weighted sum over all heads; ``width`` = heads x head size. Every query against
    every key, as dense kernels compute it; a causal kernel may skip half of a square."""
    return Work(2 * queries * keys * width)


def mlp(rows: int, *widths: int) -> Operations:
    """Linear maps one after the other, through ``widths``."""
    return [linear(rows, n_in, n_out) for n_in, n_out in itertools.pairwise(widths)]


def macs(operations: Iterable[Work]) -> int:
    return sum(work.macs for work in operations)


@dataclass(frozen=True)
class Stack:
    """A transformer stack. ``gated``: three MLP matrices (Llama, Gemma) or two (ViT)."""

    n_layers: int
    width: int
    mlp_width: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    gated: bool = True

    @property
    def query_width(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def key_width(self) -> int:
        return self.n_kv_heads * self.head_dim

    def keys_and_values(self, rows: int) -> Operations:
        return [linear(rows, self.width, self.key_width)] * 2

    def layer(self, rows: int, keys: int | None = None) -> Operations:
        """One layer on ``rows`` tokens that see ``keys`` tokens, by default each other."""
        keys = rows if keys is None else keys
        projections = [
            linear(rows, self.width, self.query_width),
            *self.keys_and_values(rows),
            attention(rows, keys, self.query_width),
            linear(rows, self.query_width, self.width),
        ]
        up = linear(rows, self.width, self.mlp_width)
        down = linear(rows, self.mlp_width, self.width)
        return [*projections, *([up, up, down] if self.gated else [up, down])]

    @property
    def parameters(self) -> int:
        """Of all layers: matrices and norms, and in a ViT (not ``gated``) their biases."""
        matrices = sum(work.weights for work in self.layer(1))
        if self.gated:
            return self.n_layers * (matrices + 2 * self.width)
        norms = 4 * self.width
        biases = self.query_width + 2 * self.key_width + 2 * self.width + self.mlp_width
        return self.n_layers * (matrices + norms + biases)


def mlp_parameters(*widths: int) -> int:
    """Linear maps with bias through ``widths``."""
    return sum((n_in + 1) * n_out for n_in, n_out in itertools.pairwise(widths))


def vision_tower(stack: Stack, images: int, patches: int, patch_px: int, extra: int) -> Operations:
    """ViT: RGB patches, then the stack on ``extra`` (class, register) tokens besides."""
    embed = linear(images * patches, 3 * patch_px**2, stack.width)
    rows = patches + extra
    layer = [Work(images * work.macs, work.weights) for work in stack.layer(rows)]
    return [embed, *layer * stack.n_layers]
