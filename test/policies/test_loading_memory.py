"""Loading keeps each weight in memory once, and says first when a GPU is too small."""

from __future__ import annotations

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from safe_pruner_ros.policies.action_layout import absolute
from safe_pruner_ros.policies.checkpoint_files import load_strict
from safe_pruner_ros.policies.deployment import Deployment
from safe_pruner_ros.policies.device import (
    check_memory,
    choose_device,
    choose_dtype,
    free_bytes,
    memory_errors_told,
)
from safe_pruner_ros.policies.openvla.oft_policy import backend, load_oft_model

CPU = torch.device('cpu')


class LiveBytes(TorchDispatchMode):
    """Bytes that operations allocated and that are still alive; ``peak`` of them. Storages inside
    a mapped file are none of them: the kernel can drop those pages at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {t.untyped_storage()._cdata for t in _tensors((args, kwargs or {}))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            is_new = tensor.device.type != 'meta' and storage._cdata not in inputs | self._known
            if is_new and not _is_mapped(storage.data_ptr()):
                self._known.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(tensor, self._forget, storage._cdata, storage.nbytes())
        return result

    def _forget(self, address: int, n_bytes: int) -> None:
        self._known.discard(address)
        self.now -= n_bytes


def _is_mapped(address: int) -> bool:
    for line in Path('/proc/self/maps').read_text().splitlines():
        span, *_, name = line.split(maxsplit=5) if '/' in line else (line.split()[0], '')
        low, high = (int(end, 16) for end in span.split('-'))
        if low <= address < high:
            return name.endswith(('.safetensors', '.pt'))
    return False


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def weight_bytes(*modules: torch.nn.Module | None) -> list[int]:
    weights = (p for module in modules if module is not None for p in module.parameters())
    return [weight.numel() * weight.element_size() for weight in weights]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_weight_is_copied_at_most_once(
    openvla_tiny: SimpleNamespace, dtype: torch.dtype
) -> None:
    """Mapped files need no copy in their own precision and one in another."""
    with LiveBytes() as live:
        model = load_oft_model(openvla_tiny.oft, CPU, dtype, openvla_tiny.vision_sizes)
    sizes = weight_bytes(model.network, model.head, model.proprio)
    allowed = 0.05 * sum(sizes) + (sum(sizes) if dtype is torch.bfloat16 else 0)
    assert live.peak <= allowed
    assert (live.peak > 0.9 * sum(sizes)) == (dtype is torch.bfloat16)  # it does see copies


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_weights_that_are_not_finite_are_named(tmp_path, value: float) -> None:
    layer = torch.nn.Linear(3, 2)
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    state['bias'][1] = value
    before = layer.weight.clone()
    with pytest.raises(ValueError, match=r"NaN or infinite weights in \['bias'\]; copy it anew"):
        load_strict(layer, state, tmp_path, device=CPU, dtype=torch.float32)
    assert torch.equal(layer.weight, before)


def test_a_gpu_that_is_too_small_is_told_before_loading(
    openvla_tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (250_000_000, 10**9))
    monkeypatch.setattr(
        'safe_pruner_ros.policies.openvla.oft_policy.load_oft_model',
        lambda *_: pytest.fail('loaded'),
    )
    joints = tuple('abcdefg')
    deployment = Deployment(
        ('head',), absolute(joints), '', 0.1, chunk_size=4, proprioception=joints
    )
    words = r'oft needs 0\.50 GB on cuda:0 as bfloat16, 0\.25 GB are free; end other programs'
    with pytest.raises(ValueError, match=words):
        backend.build(
            openvla_tiny.oft,
            deployment,
            'unpruned',
            {},
            device='cuda:0',
            vision_sizes=openvla_tiny.vision_sizes,
        )
    words = 'ran out of memory while loading x; end other programs'
    with pytest.raises(ValueError, match=words), memory_errors_told('x'):
        raise torch.OutOfMemoryError('CUDA out of memory')


def test_too_little_main_memory_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert free_bytes(CPU) > 1e6
    text = check_memory(1000, CPU, torch.float32, 'x')
    assert text.startswith('x needs 0.00 GB on cpu as float32, ') and text.endswith('are free')
    with pytest.raises(ValueError, match='x needs 1000000.00 GB on cpu .* take dtype bfloat16$'):
        check_memory(10**15, CPU, torch.float32, 'x')


def test_devices_and_precisions_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    assert choose_device('auto') == CPU
    assert choose_dtype('auto', CPU) is torch.float32
    assert choose_dtype('auto', torch.device('cuda')) is torch.bfloat16
    assert choose_dtype('float16', CPU) is torch.float16
    for name, complaint in (('cuda:1', 'torch finds 0'), ('gpu', "called 'gpu'")):
        with pytest.raises(ValueError, match=complaint):
            choose_device(name)
    with pytest.raises(ValueError, match="got 'int8'"):
        choose_dtype('int8', CPU)


@pytest.mark.parametrize(
    ('built', 'count', 'words'),
    [
        (False, 0, ['torch 2.9.9+x is built without CUDA', 'make distclean', 'TORCH_INDEX_URL=']),
        (True, 0, ['2.9.9+x is built for CUDA 13.9', 'nvidia-smi', 'CUDA_VISIBLE_DEVICES']),
        (True, 2, ['torch finds 2', 'numbered from cuda:0']),
    ],
)
def test_why_a_gpu_is_not_there(
    monkeypatch: pytest.MonkeyPatch, built: bool, count: int, words: list[str]
) -> None:
    monkeypatch.setattr(torch, '__version__', '2.9.9+x')
    monkeypatch.setattr(torch.version, 'cuda', '13.9' if built else None)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: count)
    with pytest.raises(ValueError, match='asks for a GPU') as error:
        choose_device('cuda:7')
    assert all(word in str(error.value) for word in [*words, "or use 'cpu'"]), error.value


def test_a_shard_may_hold_half_precision(tmp_path) -> None:
    """Official files are bfloat16."""
    from safe_pruner_ros.policies.checkpoint_files import read_weights

    save_file({'a': torch.ones(2, 3, dtype=torch.bfloat16)}, tmp_path / 'model.safetensors')
    assert read_weights(tmp_path)['a'].dtype is torch.bfloat16
    header = read_weights(tmp_path, headers_only=True)['a']
    assert header.is_meta and header.shape == (2, 3)
