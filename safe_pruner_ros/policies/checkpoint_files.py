"""Files of a checkpoint folder -> tensors and facts. Strict and safe; for every big policy.

Weights are memory-mapped safetensors; OpenVLA-OFT's head and proprioception files are torch
pickles and are read with ``weights_only=True``, which runs no code of theirs.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

SINGLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Raises FileNotFoundError or ValueError naming the file."""
    path = folder / name
    if not path.is_file():
        there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else 'no such folder'
        raise FileNotFoundError(
            f'{folder} has no {name} ({there}); give the folder of an official checkpoint'
        )
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path} is not readable JSON: {error}') from error
    if not isinstance(content, dict):
        raise ValueError(f'{path} must hold a JSON object, got {type(content).__name__}')
    return content


def whole_number(
    path: Path, values: Mapping[str, Any], key: str, low: int, default: int | None = None
) -> int:
    """``values[key]`` of the file ``path``, or ``default`` where the key is not there. Raises
    ValueError unless it is an integer of at least ``low``: JSON has 2.5, NaN, "10" and true."""
    number = values.get(key, default)
    if isinstance(number, bool) or not isinstance(number, int) or number < low:
        raise ValueError(
            f'{path}: {key} must be a whole number of at least {low}, got {number!r:.80}; take '
            'the file from the checkpoint anew, or set it to that of the training'
        )
    return number


def read_weights(folder: Path, *, headers_only: bool = False) -> dict[str, torch.Tensor]:
    """All tensors of the sharded (or single) safetensors of ``folder``, memory-mapped; with
    ``headers_only`` empty ones of the same shapes on the meta device.

    Raises FileNotFoundError for a shard that is not there; ValueError for an unreadable shard, one
    that does not hold what the index promises, or a single file beside the shards.
    """
    if not (folder / INDEX).is_file():
        if not (folder / SINGLE).is_file():
            raise FileNotFoundError(
                f'{folder} has neither {INDEX} nor {SINGLE}; give the folder of an official '
                'checkpoint'
            )
        return _read_shard(folder / SINGLE, headers_only)
    weight_map = read_json(folder, INDEX).get('weight_map')
    if not isinstance(weight_map, dict):
        raise ValueError(f'{folder / INDEX} has no "weight_map"; copy it anew')
    shards = sorted({str(shard) for shard in weight_map.values()})
    if (folder / SINGLE).is_file() and shards != [SINGLE]:
        raise ValueError(
            f'{folder} holds two sets of weights, {SINGLE} and {INDEX} with {_short(shards, 3)}; '
            'remove the one that does not belong to the checkpoint (transformers, lerobot and '
            f'openpi load {SINGLE})'
        )
    outside = [shard for shard in shards if Path(shard).name != shard]
    if outside:
        raise ValueError(f'{folder / INDEX} names files outside its folder: {outside}')
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise FileNotFoundError(f'{folder} misses the shards {missing}; copy them there')
    state: dict[str, torch.Tensor] = {}
    for shard in shards:
        state |= _read_shard(folder / shard, headers_only)
    absent, extra = sorted(set(weight_map) - set(state)), sorted(set(state) - set(weight_map))
    if absent or extra:
        raise ValueError(
            f'{folder / INDEX} and its shards disagree: missing {absent}, unexpected {extra}'
        )
    return state


def _read_shard(path: Path, headers_only: bool) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework='pt') as file:
            names = list(file.keys())
            if headers_only:
                shapes = {name: file.get_slice(name).get_shape() for name in names}
                return {n: torch.empty(shape, device='meta') for n, shape in shapes.items()}
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f'{path} is not a readable safetensors file (copied in part?): {error}'
        ) from error


def read_component(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """A state dict that OFT saves beside the model, e.g. ``action_head--150000_checkpoint.pt``.

    The ``module.`` prefix of distributed training is taken off. Raises FileNotFoundError, or
    ValueError when there are several, or when the file is no plain state dict.
    """
    files = sorted(folder.glob(f'{name}--*_checkpoint.pt'))
    if not files:
        raise FileNotFoundError(
            f'{folder} has no {name}--<step>_checkpoint.pt; an OpenVLA-OFT checkpoint brings it'
        )
    if len(files) > 1:
        raise ValueError(
            f'{folder} has several {name} files {[f.name for f in files]}; leave the one that '
            'belongs to its weights'
        )
    state = read_torch_file(files[0])
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(f'{files[0]} must hold a dictionary of tensors')
    return {str(key).removeprefix('module.'): value for key, value in state.items()}


def read_torch_file(path: Path) -> Any:
    """A torch pickle of tensors in plain containers, memory-mapped; nothing else is ever run.

    Raises ValueError for a damaged file or one that holds more.
    """
    try:
        return torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(
            f'{path} is refused: it is damaged or holds more than tensors ({error})'
        ) from error


def check_fit(
    model: nn.Module,
    state: Mapping[str, torch.Tensor],
    source: Path,
    unexpected: Sequence[str] = (),
) -> None:
    """Raise ValueError naming the tensors of ``state`` that are missing, unexpected or of a
    wrong shape for ``model``; both may be on the meta device.

    ``unexpected`` are names in the file that already found no place.
    """
    own = model.state_dict()
    missing = sorted(set(own) - set(state))
    extra = sorted({*unexpected, *(set(state) - set(own))})
    shapes = [
        f'{name} is {list(state[name].shape)}, expected {list(own[name].shape)}'
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    if missing or extra or shapes:
        raise ValueError(
            f'{source} does not fit the network its config describes: missing {_short(missing)}, '
            f'unexpected {_short(extra)}, wrong shape {_short(shapes)}; is it a checkpoint of '
            'another policy, or one that still needs merging or converting?'
        )


def _short(names: Sequence[str], limit: int = 20) -> str:
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return f'{list(names[:limit])}{more}'


def load_strict(
    model: nn.Module,
    state: Mapping[str, torch.Tensor],
    source: Path,
    *,
    unexpected: Sequence[str] = (),
    device: torch.device,
    dtype: torch.dtype,
    float32: tuple[str, ...] = (),
) -> None:
    """Fill ``model`` (which may be on the meta device); each weight is copied at most once.
    Weights whose names contain one of ``float32`` are float32, the others ``dtype``.

    Raises ValueError as `check_fit`, and for weights that are not finite; the model is then as
    before.
    """
    check_fit(model, state, source, unexpected)
    placed = {
        name: value.to(device, torch.float32 if any(part in name for part in float32) else dtype)
        for name, value in state.items()
    }
    bad = [name for name, value in placed.items() if not _is_finite(value)]
    if bad:
        raise ValueError(f'{source} holds NaN or infinite weights in {bad}; copy it anew')
    model.load_state_dict(placed, assign=True)
    model.requires_grad_(False)


def _is_finite(value: torch.Tensor) -> bool:
    """Without `torch.isfinite`'s copy of the tensor; NaN is both minimum and maximum."""
    ends = torch.stack(torch.aminmax(value)) if value.numel() else value
    return bool(torch.isfinite(ends).all())
