"""What OpenVLA and OpenVLA-OFT share: two vision towers, projector, Llama decoder.

The decoder runs under a pruner, always (`run_network`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import nn
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from safe_pruner_ros.core.pruner import Pruner
from safe_pruner_ros.core.tokens import TokenLayout
from safe_pruner_ros.policies.checkpoint_files import (
    check_fit,
    load_strict,
    read_json,
    read_weights,
    whole_number,
)
from safe_pruner_ros.policies.device import check_memory, needed_bytes
from safe_pruner_ros.policies.openvla.keys import Renamed, rename_openvla
from safe_pruner_ros.policies.openvla.vision import VISION_SIZES, VisionEncoder, VisionSize
from safe_pruner_ros.policies.pruned_decoder import DecoderOutput, run_pruned

LANGUAGE_MODEL = 'llama2-7b-pure'  # prismatic's name (openvla c8f03f4, configuration_prismatic.py)
_LLAMA_FIELDS = (
    'vocab_size',
    'hidden_size',
    'intermediate_size',
    'num_hidden_layers',
    'num_attention_heads',
    'num_key_value_heads',
    'head_dim',
    'hidden_act',
    'max_position_embeddings',
    'rms_norm_eps',
    'rope_theta',
    'pad_token_id',
)


@dataclass(frozen=True)
class NetworkSize:
    """``n_bins`` and ``vocabulary`` (without padding) place OpenVLA's action tokens."""

    vision: VisionSize
    decoder: LlamaConfig
    n_bins: int = 256
    vocabulary: int = 32000


class OpenVLANetwork(nn.Module):
    def __init__(self, size: NetworkSize, *, with_lm_head: bool) -> None:
        super().__init__()
        self.size = size
        self.vision = VisionEncoder(size.vision, size.decoder.hidden_size)
        self.decoder = LlamaModel(size.decoder)
        self.lm_head = (
            nn.Linear(size.decoder.hidden_size, size.decoder.vocab_size, bias=False)
            if with_lm_head
            else None
        )

    @property
    def device(self) -> torch.device:
        return self.decoder.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.norm.weight.dtype

    def fill_buffers(self, device: torch.device) -> None:
        """What no checkpoint stores and the meta device does not compute. float32 whatever the
        weights are: rounded rotary frequencies would move far tokens."""
        self.decoder.rotary_emb = LlamaRotaryEmbedding(self.size.decoder).to(device)
        self.vision.siglip.fill_buffers(device)

    def encode_images(
        self, pixels: Float[torch.Tensor, 'views 6 H W']
    ) -> Float[torch.Tensor, '1 V D']:
        """Visual tokens of all views, in their order."""
        tokens: torch.Tensor = self.vision(pixels.to(self.device, self.dtype))
        return tokens.flatten(0, 1)[None]

    def embed_ids(self, ids: Int64[torch.Tensor, '1 T']) -> Float[torch.Tensor, '1 T D']:
        embedded: torch.Tensor = self.decoder.embed_tokens(ids)
        return embedded


def run_network(
    network: OpenVLANetwork,
    embeddings: Float[torch.Tensor, '1 S D'],
    layout: TokenLayout,
    pruner: Pruner,
    *,
    run: Callable[..., DecoderOutput] | None = None,
    **how: Any,
) -> DecoderOutput:
    """One policy step of the decoder. ``how``: keywords of `run_pruned`, which ``run`` stands in
    for (`graphed_decoder.py`). Raises as `run_pruned`."""
    decoder = network.decoder
    return (run or run_pruned)(
        decoder.layers,
        decoder.rotary_emb,
        decoder.norm,
        embeddings,
        torch.arange(layout.length, device=embeddings.device)[None],
        layout,
        pruner,
        **how,
    )


def read_size(
    folder: Path,
    config: Mapping[str, Any],
    vision_sizes: Mapping[str, VisionSize] = VISION_SIZES,
) -> NetworkSize:
    """From config.json. What ``text_config`` leaves out takes transformers' Llama defaults, which
    are Llama-2-7B with rms_norm_eps 1e-6: upstream's converter writes it so."""
    if config.get('model_type') != 'openvla':
        raise ValueError(
            f'{folder} is no OpenVLA checkpoint: model_type is {config.get("model_type")!r}, '
            "expected 'openvla'"
        )
    backbone = config.get('vision_backbone_id')
    if not isinstance(backbone, str) or backbone not in vision_sizes:
        raise ValueError(
            f'{folder} has vision_backbone_id {backbone!r:.80}; supported: {sorted(vision_sizes)}'
        )
    language = config.get('llm_backbone_id', LANGUAGE_MODEL)
    if language != LANGUAGE_MODEL:
        raise ValueError(
            f'{folder} has llm_backbone_id {language!r}; supported: {LANGUAGE_MODEL!r}, the one '
            'of the official checkpoints. Others of the same shapes read other prompts'
        )
    text = config.get('text_config') or {}
    if not isinstance(text, Mapping):
        raise ValueError(f'{folder}: text_config must be an object, got {text!r:.80}')
    if text.get('rope_scaling'):
        raise ValueError(f'{folder}: rope_scaling {text["rope_scaling"]} is not supported')
    fields = {name: text[name] for name in _LLAMA_FIELDS if text.get(name) is not None}
    fields.setdefault('rms_norm_eps', 1e-6)
    path = folder / 'config.json'
    try:
        decoder = LlamaConfig(**fields, attn_implementation='sdpa', use_cache=False)
    except Exception as error:  # of several kinds, none of them a ValueError
        raise ValueError(
            f'{path}: text_config does not describe a Llama network: '
            f'{" ".join(str(error).split())}; take the file from the checkpoint anew'
        ) from error
    padding = whole_number(path, config, 'pad_to_multiple_of', 0, 64)
    n_bins = whole_number(path, config, 'n_action_bins', 2, 256)
    vocabulary = decoder.vocab_size - padding
    if vocabulary <= n_bins:
        raise ValueError(
            f'{path}: the {n_bins} tokens of n_action_bins do not fit below pad_to_multiple_of '
            f'{padding} in a vocabulary of {decoder.vocab_size}; take the file from the '
            'checkpoint anew'
        )
    return NetworkSize(vision_sizes[backbone], decoder, n_bins, vocabulary)


def check_files(folder: Path, size: NetworkSize, *, with_lm_head: bool) -> OpenVLANetwork:
    """The network on the meta device, once the headers of the files say that they fit it.

    Raises as `checkpoint_files`, except for weights that are not finite.
    """
    with torch.device('meta'):
        network = OpenVLANetwork(size, with_lm_head=with_lm_head)
    renamed = _renamed(folder, size, with_lm_head, headers_only=True)
    check_fit(network, renamed.state, folder, renamed.unexpected)
    return network


def load_network(
    folder: Path,
    size: NetworkSize,
    *,
    with_lm_head: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> OpenVLANetwork:
    """Weights straight from the mapped files to ``device``. Raises as `checkpoint_files`, and
    ValueError when ``device`` has not the memory."""
    network = check_files(folder, size, with_lm_head=with_lm_head)
    check_memory(needed_bytes([network], device, dtype), device, dtype, str(folder))
    renamed = _renamed(folder, size, with_lm_head)
    load_strict(network, renamed.state, folder, device=device, dtype=dtype)
    network.fill_buffers(device)
    return network.eval()


def _renamed(
    folder: Path, size: NetworkSize, with_lm_head: bool, *, headers_only: bool = False
) -> Renamed:
    renamed = rename_openvla(read_weights(folder, headers_only=headers_only), size.vision)
    if not with_lm_head:
        renamed.state.pop('lm_head.weight', None)
    return renamed


def read_statistics(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """(statistics by data set, their file). A fine-tune's dataset_statistics.json goes before the
    ``norm_stats`` of pre-training (openvla c8f03f4, openvla_utils.py:60-72)."""
    if (folder / 'dataset_statistics.json').is_file():
        return read_json(folder, 'dataset_statistics.json'), str(
            folder / 'dataset_statistics.json'
        )
    statistics = config.get('norm_stats')
    if not isinstance(statistics, dict):
        raise FileNotFoundError(
            f'{folder} has no dataset_statistics.json and its config.json no norm_stats; without '
            'them actions have no unit'
        )
    return statistics, str(folder / 'config.json')
