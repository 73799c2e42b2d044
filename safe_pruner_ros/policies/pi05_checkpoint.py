"""Reads a pi0.5 checkpoint in either official layout, strictly, without a second copy in memory.

- openpi (`examples/convert_jax_model_to_pytorch.py`): ``model.safetensors`` and ``config.json``
  with action_dim, action_horizon, paligemma_variant, action_expert_variant. safetensors drops one
  of two tied tensors, so the text embedding is there as ``paligemma.lm_head.weight`` only.
- lerobot: the same names behind ``model.``; ``config.json`` has type "pi05", chunk_size,
  max_action_dim, num_inference_steps.

Both may carry the ``vision_model.`` level of older transformers, which version 5 dropped.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from safe_pruner_ros.policies.pi05_config import VARIANTS, Pi05Config
from safe_pruner_ros.policies.pi05_model import Pi05

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

# Options of lerobot under which the same weights mean another computation.
_LEROBOT_USUAL = {
    'use_visual_memory': False,
    'use_proprioceptive_memory': False,
    'min_period': 4e-3,
    'max_period': 4.0,
}


def read_config(folder: Path, base: Pi05Config | None = None) -> Pi05Config:
    """Sizes from ``config.json``; what it does not say comes from ``base`` (full size)."""
    path = folder / 'config.json'
    if not path.is_file():
        raise FileNotFoundError(
            f'no config.json in {folder}; a pi0.5 checkpoint is a folder with model.safetensors '
            "and config.json, from openpi's convert_jax_model_to_pytorch.py or from lerobot"
        )
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f'{path} is not readable JSON: {error}') from error
    kind = values.get('type', 'pi05')
    if kind != 'pi05':
        raise ValueError(f'{path} describes a {kind!r} policy, expected "pi05"')
    modes = values.get('normalization_mapping', {})
    other = {name: mode for name, mode in modes.items() if name in ('STATE', 'ACTION')}
    if set(other.values()) - {'QUANTILES'}:
        raise ValueError(f'{path} normalises {other}; only QUANTILES is implemented for pi0.5')
    changed = {
        k: values[k] for k, usual in _LEROBOT_USUAL.items() if values.get(k, usual) != usual
    }
    if changed:
        raise ValueError(
            f'{path} was trained with {changed}, which is not implemented; take a checkpoint with '
            f'{ {name: _LEROBOT_USUAL[name] for name in changed} }'
        )
    base = base or Pi05Config()
    size = values.get('image_resolution', [base.vision.image_size] * 2)
    if not isinstance(size, list) or len(size) != 2 or size[0] != size[1]:
        raise ValueError(f'{path}: image_resolution must be two equal numbers, got {size}')
    return replace(
        base,
        vision=replace(base.vision, image_size=size[0]),
        prefix=_variant(path, values, 'paligemma_variant', base.prefix),
        expert=_variant(path, values, 'action_expert_variant', base.expert),
        action_dim=values.get('action_dim', values.get('max_action_dim', base.action_dim)),
        action_horizon=values.get('action_horizon', values.get('chunk_size', base.action_horizon)),
        n_denoising_steps=values.get('num_inference_steps', base.n_denoising_steps),
        framework='lerobot' if 'type' in values else 'openpi',
    )


def _variant(path: Path, values: dict[str, Any], entry: str, default: Any) -> Any:
    name = values.get(entry)
    if name is None:
        return default
    if name not in VARIANTS:
        raise ValueError(f'{path}: {entry} {name!r} is unknown; choose from {sorted(VARIANTS)}')
    return VARIANTS[name]


def load_model(
    folder: Path,
    base: Pi05Config | None = None,
    device: str | torch.device = 'cpu',
    dtype: torch.dtype = torch.float32,
) -> Pi05:
    """The network of a checkpoint folder, in eval mode.

    The file is mapped, not read; each tensor is moved and converted by itself, so the weights are
    in memory once. Raises FileNotFoundError, or ValueError naming every tensor that is missing,
    unexpected, of another shape or not finite.
    """
    config = read_config(folder, base)
    path = folder / 'model.safetensors'
    if not path.is_file():
        raise FileNotFoundError(
            f'no model.safetensors in {folder}; openpi publishes JAX parameters: convert them '
            'with its examples/convert_jax_model_to_pytorch.py'
        )
    with torch.device('meta'):
        model = Pi05(config)
    own = model.state_dict()
    target = torch.device(device)
    _check_memory(path, model, target, dtype)
    state: dict[str, torch.Tensor] = {}
    try:
        with safe_open(path, framework='pt') as file:
            names = _names_by_own(list(file.keys()))
            _check_names(path, own, names)
            _check_shapes(path, own, {n: file.get_slice(s).get_shape() for n, s in names.items()})
            for name, stored in names.items():
                state[name] = file.get_tensor(stored).to(target, dtype)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f'{path} is not a readable safetensors file (copied in part?): {error}'
        ) from error
    bad = [name for name, value in state.items() if not torch.isfinite(value).all()]
    if bad:
        raise ValueError(f'{path} holds NaN or infinite weights in {bad}; copy it anew')
    model.load_state_dict(state, strict=True, assign=True)
    model.rebuild_constants(target)
    return model.eval().requires_grad_(False)


def _check_memory(path: Path, model: Pi05, device: torch.device, dtype: torch.dtype) -> None:
    """Raise ValueError before anything is moved when the weights cannot fit on the GPU."""
    if device.type != 'cuda':
        return
    needed = sum(value.numel() for value in model.parameters()) * dtype.itemsize
    free, _ = torch.cuda.mem_get_info(device)
    if free < needed:
        raise ValueError(
            f'{path} needs {needed / 1e9:.2f} GB on {device} as {dtype}, {free / 1e9:.2f} GB are '
            "free; end other programs there or use device 'cpu'"
        )


def _names_by_own(stored: list[str]) -> dict[str, str]:
    """Our parameter name -> name in the file; names of no meaning to us map from themselves."""
    names: dict[str, str] = {}
    for full in stored:
        name = full.removeprefix('model.')
        if name in _UNUSED:
            continue
        if name == _TIED_EMBEDDING:
            names.setdefault(_EMBEDDING, full)
            continue
        for theirs, ours in _PREFIXES:
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
                break
        names[name] = full
    return names


def _check_names(path: Path, own: dict[str, Any], names: dict[str, str]) -> None:
    missing = sorted(set(own) - set(names))
    unexpected = sorted(names[name] for name in set(names) - set(own))
    if missing or unexpected:
        raise ValueError(
            f'{path} is not a pi0.5 checkpoint of this size: {len(missing)} tensors missing '
            f'{missing}, {len(unexpected)} unexpected {unexpected}'
        )


def _check_shapes(path: Path, own: dict[str, Any], shapes: dict[str, list[int]]) -> None:
    wrong = [
        f'{name} {list(shapes[name])} instead of {list(value.shape)}'
        for name, value in own.items()
        if list(value.shape) != list(shapes[name])
    ]
    if wrong:
        raise ValueError(f'{path} does not fit config.json: {"; ".join(wrong)}')
