"""Where the weights of a big policy go, in which precision, and whether they fit there."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}

# Allowance beside the weights, by arithmetic and not measured: 0.16 GB of keys and values
# (OpenVLA, 300 tokens), 0.05 GB of hidden states (OpenVLA-OFT, 600), cuBLAS' workspaces.
WORKING_BYTES = 500_000_000


def choose_device(name: str) -> torch.device:
    """'auto' takes a GPU where there is one. Raises ValueError for a GPU that is not there."""
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"no device is called {name!r}; use 'auto', 'cpu' or 'cuda:0'") from None
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f'device {name!r} asks for a GPU and torch finds {torch.cuda.device_count()}: '
            f"{_why_no_gpu()}; or use 'cpu', or 'auto' for whatever is there"
        )
    return device


def _why_no_gpu() -> str:
    """Why torch does not see the GPU that was asked for, and the next move."""
    version = torch.__version__
    if torch.cuda.device_count():
        return 'they are numbered from cuda:0'
    if torch.version.cuda is None:
        # pip takes any build of the pinned version for the one it wants, so .venv is made anew.
        return (
            f'torch {version} is built without CUDA. Make .venv anew with another build: make '
            'distclean, then make setup TORCH_INDEX_URL=<address> (head of '
            'requirements/common.txt)'
        )
    return (
        f'torch {version} is built for CUDA {torch.version.cuda}, but there is no GPU with a '
        'driver for it. See what nvidia-smi says: its "CUDA Version" must reach that, else update '
        'the driver, or make .venv anew with a build for an older CUDA (make distclean, then make '
        'setup TORCH_INDEX_URL=<address>); is CUDA_VISIBLE_DEVICES set?'
    )


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """'auto' is bfloat16 on a GPU and float32 on a CPU. Raises ValueError for unknown names."""
    if name == 'auto':
        return torch.bfloat16 if device.type == 'cuda' else torch.float32
    if name not in DTYPES:
        raise ValueError(f"dtype must be 'auto' or one of {list(DTYPES)}, got {name!r}")
    return DTYPES[name]


def needed_bytes(modules: Iterable[nn.Module], device: torch.device, dtype: torch.dtype) -> int:
    """Of weights in ``dtype`` (``modules`` may be on the meta device), and what a step needs."""
    n_weights = sum(weight.numel() for module in modules for weight in module.parameters())
    return n_weights * dtype.itemsize + (WORKING_BYTES if device.type == 'cuda' else 0)


def free_bytes(device: torch.device) -> float:
    """What can be allocated now; infinite where nobody says."""
    if device.type == 'cuda':
        gc.collect()  # a policy that was just let go may hang in a cycle
        torch.cuda.empty_cache()  # what torch keeps for itself is not counted as free
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path('/proc/meminfo').read_text().splitlines()
        available = next(line for line in lines if line.startswith('MemAvailable:'))
        return 1024 * int(available.split()[1])
    except (OSError, StopIteration):
        return math.inf


def check_memory(needed: int, device: torch.device, dtype: torch.dtype, what: str) -> str:
    """Call before anything is moved. What is needed and there, in words.

    Raises ValueError with both numbers when ``needed`` bytes do not fit: a GPU would raise in the
    middle of loading, and on a CPU the kernel would kill the process.
    """
    free = free_bytes(device)
    text = (
        f'{what} needs {needed / 1e9:.2f} GB on {device} as {str(dtype).removeprefix("torch.")}, '
        f'{free / 1e9:.2f} GB are free'
    )
    if needed > free:
        other = " or a larger GPU, or device 'cpu'" if device.type == 'cuda' else ''
        raise ValueError(f'{text}; end other programs there, take dtype bfloat16{other}')
    return text


@contextmanager
def memory_errors_told(what: str) -> Iterator[None]:
    """A GPU that runs full all the same is a wrong setting, not a crash."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f'the GPU ran out of memory while loading {what}; end other programs there, or take a '
            f'larger one ({error})'
        ) from error
