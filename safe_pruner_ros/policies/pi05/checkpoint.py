"""Reads a pi0.5 checkpoint in either official layout, strictly, without a second copy in memory.

- openpi (`examples/convert_jax_model_to_pytorch.py`): ``model.safetensors`` and ``config.json``
  with action_dim, action_horizon, paligemma_variant, action_expert_variant. safetensors drops one
  of two tied tensors, so the text embedding is there as ``paligemma.lm_head.weight`` only.
  `scripts/train_pytorch.py` leaves the same weights without a ``config.json``: write one.
- lerobot: the same names behind ``model.``; ``config.json`` has type "pi05", chunk_size,
  max_action_dim, num_inference_steps, and names the images in input_features.

Both may carry the ``vision_model.`` level of older transformers, which version 5 dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from safe_pruner_ros.policies.checkpoint_files import (
    check_fit,
    load_strict,
    read_json,
    read_weights,
    whole_number,
)
from safe_pruner_ros.policies.device import check_memory, needed_bytes
from safe_pruner_ros.policies.pi05.config import VARIANTS, Pi05Config
from safe_pruner_ros.policies.pi05.model import Pi05
from safe_pruner_ros.policies.pi05.statistics import check_modes

T = TypeVar('T')

PUBLISHED = Pi05Config()
_PALIGEMMA = 'paligemma_with_expert.paligemma.'
_EXPERT = 'paligemma_with_expert.gemma_expert.'
_PREFIXES = (
    (f'{_PALIGEMMA}model.vision_tower.vision_model.', 'vision_tower.'),
    (f'{_PALIGEMMA}model.vision_tower.', 'vision_tower.'),
    (f'{_PALIGEMMA}model.multi_modal_projector.linear.', 'projector.'),
    (f'{_PALIGEMMA}model.language_model.', 'language_model.'),
    (f'{_EXPERT}model.', 'expert.'),
)
_EMBEDDING = 'language_model.embed_tokens.weight'
_TIED_EMBEDDING = f'{_PALIGEMMA}lm_head.weight'
# The expert inherits a vocabulary from its text model and never reads it.
_UNUSED = (f'{_EXPERT}lm_head.weight', f'{_EXPERT}model.embed_tokens.weight')

# float32 whatever the others are, as both frameworks have them. Into and out of the action expert:
# few weights, and rounding them made a third of the error of bfloat16 actions. All norms of both
# stacks, with the linear maps that set the expert's (openpi 15a9616, `gemma_pytorch.py`; lerobot
# 7427f31, `modeling_pi05.py`): a norm computes in float32 and answers in the type of its input.
_FLOAT32 = (
    *('action_in_proj.', 'action_out_proj.', 'time_mlp_in.', 'time_mlp_out.'),
    *('input_layernorm.', 'post_attention_layernorm.', 'language_model.norm.', 'expert.norm.'),
)
# For a folder of openpi's train_pytorch.py, which says nothing about its sizes.
_TRAIN_PYTORCH = '{"action_dim": 32, "action_horizon": 50}'
# Options of lerobot under which the same weights mean another computation.
_LEROBOT_USUAL = {
    'use_visual_memory': False,
    'use_proprioceptive_memory': False,
    'min_period': 4e-3,
    'max_period': 4.0,
}


def read_config(folder: Path, base: Pi05Config | None = None) -> Pi05Config:
    """Sizes from ``config.json``; what it does not say comes from ``base`` (the published), but
    for the chunk: no weight has its size, and another one gives other actions.

    Raises FileNotFoundError or ValueError with the next move.
    """
    path, values = folder / 'config.json', read_values(folder)
    kind = values.get('type', 'pi05')
    if kind != 'pi05' or 'model_type' in values:
        kind = values.get('model_type', kind)
        raise ValueError(
            f'{path} describes a {kind!r} policy, expected "pi05"; give the folder that openpi\'s '
            'convert_jax_model_to_pytorch.py or lerobot wrote'
        )
    if 'normalization_mapping' in values:
        check_modes(path, values['normalization_mapping'])
    changed = {
        k: values[k] for k, usual in _LEROBOT_USUAL.items() if values.get(k, usual) != usual
    }
    if changed:
        raise ValueError(
            f'{path} was trained with {changed}, which is not implemented; take a checkpoint with '
            f'{ {name: _LEROBOT_USUAL[name] for name in changed} }'
        )
    base = base or PUBLISHED
    size = values.get('image_resolution', [base.vision.image_size] * 2)
    if not isinstance(size, list) or len(size) != 2 or size[0] != size[1]:
        raise ValueError(f'{path}: image_resolution must be two equal numbers, got {size!r:.80}')
    side = {'image_resolution': size[0]}
    dimensions = 'action_dim' if 'action_dim' in values else 'max_action_dim'
    return replace(
        base,
        vision=replace(
            base.vision,
            image_size=whole_number(path, side, 'image_resolution', base.vision.patch_size),
        ),
        prefix=_variant(path, values, 'paligemma_variant', base.prefix),
        expert=_variant(path, values, 'action_expert_variant', base.expert),
        action_dim=whole_number(path, values, dimensions, 1, base.action_dim),
        action_horizon=_horizon(path, values),
        n_denoising_steps=whole_number(
            path, values, 'num_inference_steps', 1, base.n_denoising_steps
        ),
        framework='lerobot' if 'type' in values else 'openpi',
    )


def read_values(folder: Path) -> dict[str, Any]:
    """``config.json`` as it is. FileNotFoundError says who writes none."""
    try:
        return read_json(folder, 'config.json')
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; openpi's scripts/train_pytorch.py writes none: put "
            f'{_TRAIN_PYTORCH} there, with the numbers of its training configuration'
        ) from None


def _horizon(path: Path, values: Mapping[str, Any]) -> int:
    entry = 'action_horizon' if 'action_horizon' in values else 'chunk_size'
    if entry not in values:
        raise ValueError(
            f'{path} must say how many actions the checkpoint gives: action_horizon (openpi) or '
            'chunk_size (lerobot), got neither; set action_horizon to that of the training '
            'configuration (50 unless it says otherwise; pi05_libero: 10)'
        )
    return whole_number(path, values, entry, 1)


def image_names(folder: Path) -> list[str]:
    """Images of the training, as lerobot's config.json names them, any number; openpi's names
    none. Cameras that lerobot only adds to fill a slot (``empty_cameras``) were never seen."""
    inputs = read_values(folder).get('input_features')
    prefix = 'observation.images.'
    features = inputs if isinstance(inputs, dict) else {}
    images = [
        name.removeprefix(prefix)
        for name, feature in features.items()
        if name.startswith(prefix)
        or (isinstance(feature, dict) and feature.get('type') == 'VISUAL')
    ]
    return [name for name in images if not name.startswith('empty_camera_')]


def _variant(path: Path, values: Mapping[str, Any], entry: str, default: T) -> Any | T:
    name = values.get(entry)
    if name is None:
        return default
    if not isinstance(name, str) or name not in VARIANTS:
        raise ValueError(
            f'{path}: {entry} {name!r:.80} is unknown; choose from {sorted(VARIANTS)}'
        )
    return VARIANTS[name]


def check_files(folder: Path, base: Pi05Config | None = None) -> Pi05:
    """The network on the meta device, once the headers of the files say that they fit it.

    Raises as `load_model`, except for weights that are not finite.
    """
    with torch.device('meta'):
        model = Pi05(read_config(folder, base))
    state = _renamed(_read(folder, headers_only=True))
    check_fit(model, state, folder / 'model.safetensors')
    return model


def needed_memory(model: Pi05, device: torch.device, dtype: torch.dtype) -> int:
    """Bytes of weights in ``dtype``, but for those that stay float32, and of a step."""
    n_float32 = sum(
        weight.numel()
        for name, weight in model.named_parameters()
        if any(part in name for part in _FLOAT32)
    )
    extra = n_float32 * (torch.float32.itemsize - dtype.itemsize)
    return needed_bytes([model], device, dtype) + extra


def load_model(
    folder: Path,
    base: Pi05Config | None = None,
    device: str | torch.device = 'cpu',
    dtype: torch.dtype = torch.float32,
) -> Pi05:
    """The network of a checkpoint folder, in eval mode.

    The file is mapped, not read; each tensor is moved and converted by itself, so the weights are
    in memory once. Raises FileNotFoundError, or ValueError naming every tensor that is missing,
    unexpected, of another shape or not finite, or what memory is missing.
    """
    model, target = check_files(folder, base), torch.device(device)
    check_memory(needed_memory(model, target, dtype), target, dtype, str(folder))
    state = _renamed(_read(folder))
    source = folder / 'model.safetensors'
    load_strict(model, state, source, device=target, dtype=dtype, float32=_FLOAT32)
    model.rebuild_constants(target)
    return model.eval()


def _read(folder: Path, *, headers_only: bool = False) -> dict[str, torch.Tensor]:
    try:
        return read_weights(folder, headers_only=headers_only)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f'{error}; openpi publishes JAX parameters: convert them with its '
            'examples/convert_jax_model_to_pytorch.py'
        ) from None


def _renamed(stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """By our parameter names; names of no meaning to us stay, for the refusal."""
    state: dict[str, torch.Tensor] = {}
    for full, tensor in stored.items():
        name = full.removeprefix('model.')
        if name in _UNUSED:
            continue
        if name == _TIED_EMBEDDING:
            state.setdefault(_EMBEDDING, tensor)
            continue
        for theirs, ours in _PREFIXES:
            if name.startswith(theirs):
                state[ours + name.removeprefix(theirs)] = tensor
                break
        else:
            state[name] = tensor
    return state
