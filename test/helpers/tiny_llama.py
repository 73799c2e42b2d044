"""A Llama decoder small enough to check by hand, and one policy step through it."""

import torch
from transformers import LlamaConfig, LlamaModel

from safe_pruner_ros.core.catalog import accepted_settings, build_pruner
from safe_pruner_ros.core.tokens import Span, TokenLayout, ViewGrid
from safe_pruner_ros.policies.pruned_decoder import run_pruned

N_LAYERS, WIDTH = 6, 32
LAYOUT = TokenLayout(
    (ViewGrid('head', 3, 4), ViewGrid('wrist', 2, 4)), Span(1, 21), Span(21, 25), Span(26, 29), 30
)


def llama(attention='sdpa', dtype=torch.float32):
    """Grouped queries (4 heads, 2 key heads); sharp attention, so that errors show."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation=attention,
        initializer_range=0.3,
    )
    return LlamaModel(config).eval().to(dtype)


def run_llama(model, pruner, embeddings, position_ids, step=0, **changes):
    arguments = {
        'layers': model.layers,
        'rotary': model.rotary_emb,
        'norm': model.norm,
        'embeddings': embeddings,
        'position_ids': position_ids,
        'layout': LAYOUT,
        'pruner': pruner,
        'instruction_key': 'pick',
        'step': step,
        **changes,
    }
    return run_pruned(**arguments)


# -- an episode of it


def embeddings_of(step=0):
    """An episode of slowly changing images."""
    generator = torch.Generator().manual_seed(7)
    still = torch.randn(1, LAYOUT.length, WIDTH, generator=generator)
    generator = torch.Generator().manual_seed(100 + step)
    return still + 0.01 * torch.randn(still.shape, generator=generator)


POSITIONS = torch.arange(LAYOUT.length)[None]


def run(model, pruner, step=0, **changes):
    given = {'embeddings': embeddings_of(step), 'position_ids': POSITIONS, **changes}
    return run_llama(model, pruner, step=step, **given)


def build(method, ratio=0.3, **settings):
    if 'retention_ratio' in accepted_settings(method):
        settings['retention_ratio'] = ratio
    return build_pruner(method, N_LAYERS, **{'pruning_layer': 3, **settings})
