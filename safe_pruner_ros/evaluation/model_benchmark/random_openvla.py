"""OpenVLA and OpenVLA-OFT with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig

from safe_pruner_ros.evaluation.flops import shapes
from safe_pruner_ros.evaluation.flops.work import Stack
from safe_pruner_ros.evaluation.model_benchmark.random_weights import (
    JOINTS,
    RandomModel,
    count_parameters,
    materialise,
)
from safe_pruner_ros.policies.action_layout import absolute
from safe_pruner_ros.policies.action_statistics import Range
from safe_pruner_ros.policies.deployment import Deployment
from safe_pruner_ros.policies.openvla.images import ImageProcessor
from safe_pruner_ros.policies.openvla.network import NetworkSize, OpenVLANetwork
from safe_pruner_ros.policies.openvla.oft_head import ActionHead, ProprioProjector
from safe_pruner_ros.policies.openvla.oft_policy import OFTModel, OpenVLAOFTPolicy
from safe_pruner_ros.policies.openvla.policy import OpenVLAPolicy
from safe_pruner_ros.policies.openvla.vision import VISION_SIZES, TowerSize, VisionSize
from safe_pruner_ros.policies.policy import Policy


def _llama(
    width: int, mlp_width: int, n_layers: int, n_heads: int, vocabulary: int
) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=mlp_width,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        rms_norm_eps=1e-6,
        attn_implementation='sdpa',
        use_cache=False,
    )


def _openvla_size(size: str) -> NetworkSize:
    if size == 'full':
        vision = VISION_SIZES['dinosiglip-vit-so-224px']
        return NetworkSize(vision, _llama(4096, 11008, 32, 32, 32064))
    if size == 'small':
        # Vision takes a tenth of an unpruned OpenVLA-OFT step, as at full size.
        dino = TowerSize(128, 24, 2, 512, n_registers=4)
        siglip = TowerSize(128, 27, 2, 512)
        return NetworkSize(VisionSize(dino, siglip), _llama(448, 1216, 32, 7, 32064))
    dino, siglip = TowerSize(32, 4, 2, 128, n_registers=4), TowerSize(48, 3, 2, 80)
    return NetworkSize(VisionSize(dino, siglip, 56), _llama(32, 64, 6, 4, 32064))


def _tower_stack(size: TowerSize) -> Stack:
    head = size.width // size.n_heads
    return Stack(
        size.n_blocks - 1, size.width, size.mlp_width, size.n_heads, size.n_heads, head, False
    )


def _llama_stack(config: LlamaConfig) -> Stack:
    return Stack(
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.hidden_size // config.num_attention_heads,
    )


def _shapes_of(size: NetworkSize) -> dict[str, Any]:
    return {
        'decoder': _llama_stack(size.decoder),
        'dino': _tower_stack(size.vision.dino),
        'siglip': _tower_stack(size.vision.siglip),
        'patches': size.vision.grid**2,
    }


def _prompt_of(length: int) -> Callable[[str], tuple[int, ...]]:
    return lambda _: (1, *range(100, 98 + length), 29871)


def _network(
    size: NetworkSize, with_lm_head: bool, device: torch.device, dtype: torch.dtype, seed: int
) -> OpenVLANetwork:
    with torch.device('meta'):
        network = OpenVLANetwork(size, with_lm_head=with_lm_head)
    materialise(network, device, dtype, seed)
    if network.lm_head is not None:  # so that it answers with actions, as a policy does
        rows = network.lm_head.weight
        first = size.vocabulary - size.n_bins
        rows[:first] *= 0.1
        rows[size.vocabulary :] *= 0.1
    network.fill_buffers(device)
    return network


def _half() -> tuple[Any, Any]:
    """Mean or deviation of both towers' pixels."""
    return ((0.5,) * 3, (0.5,) * 3)


def _unit_range(n: int) -> Range:
    return Range(-np.ones(n), np.ones(n), np.ones(n, bool))


def _deployment(views: tuple[str, ...], **changes: Any) -> Deployment:
    return Deployment(views, absolute(JOINTS), 'random', 0.1, **changes)


def random_openvla(size: str, device: torch.device, dtype: torch.dtype, seed: int) -> RandomModel:
    sizes = _openvla_size(size)
    network = _network(sizes, True, device, dtype, seed)
    n_text = round(shapes.LIBERO_PROMPT)
    processor = ImageProcessor(sizes.vision.image_size, _half(), _half())

    def make(method: str, settings: Mapping[str, Any]) -> Policy:
        return OpenVLAPolicy(
            network,
            processor,
            _prompt_of(n_text),  # type: ignore[arg-type]
            _unit_range(7),
            _deployment(('head',)),
            method,
            settings,
        )

    counted = shapes.openvla(n_text, vocabulary=32064, **_shapes_of(sizes))
    return RandomModel(counted, count_parameters(network), make)


def random_openvla_oft(
    size: str, device: torch.device, dtype: torch.dtype, seed: int
) -> RandomModel:
    sizes = _openvla_size(size)
    network = _network(sizes, False, device, dtype, seed)
    width = sizes.decoder.hidden_size
    with torch.device('meta'):
        head, proprio = ActionHead(width, 7), ProprioProjector(7, width)
    for module in (head, proprio):
        materialise(module, device, dtype, seed + 1)
    model = OFTModel(network, head, proprio)
    n_text = round(shapes.LIBERO_PROMPT)
    processor = ImageProcessor(sizes.vision.image_size, _half(), _half())

    def make(method: str, settings: Mapping[str, Any]) -> Policy:
        return OpenVLAOFTPolicy(
            model,
            processor,
            _prompt_of(n_text),  # type: ignore[arg-type]
            _unit_range(7),
            _unit_range(7),
            _deployment(('head', 'wrist'), chunk_size=8, proprioception=JOINTS),
            method,
            settings,
        )

    counted = shapes.openvla_oft(n_text, n_proprio=7, **_shapes_of(sizes))
    return RandomModel(counted, count_parameters(network, head, proprio), make)
