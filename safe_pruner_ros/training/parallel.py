"""Data parallelism over processes on one machine, one thread each.

Two OpenMP threads of one process collapse when the cores are busy; one process a core with an
all-reduce keeps its pace (docs/experiments.md). On a GPU one process is enough.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def launch(worker: Callable[..., None], processes: int, *args: object) -> None:
    """Run ``worker(rank, processes, *args)`` in ``processes`` processes of one gloo group."""
    os.environ.setdefault('KMP_BLOCKTIME', '0')
    if processes == 1:
        worker(0, 1, *args)
        return
    mp.start_processes(
        _start,
        args=(worker, processes, _free_port(), args),
        nprocs=processes,
        start_method='spawn',
    )


def _start(
    rank: int, worker: Callable[..., None], processes: int, port: int, args: tuple[object, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=processes
    )
    try:
        worker(rank, processes, *args)
    finally:
        dist.destroy_process_group()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return int(probe.getsockname()[1])


def share(total: int, rank: int, processes: int) -> int:
    """How many of ``total`` fall to ``rank``; the shares of all ranks sum to ``total``."""
    return (rank + 1) * total // processes - rank * total // processes


def average_gradients(module: torch.nn.Module, processes: int) -> None:
    """Gradients of all processes -> their mean, in one flat all-reduce."""
    if processes == 1:
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= processes
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()


def average_buffers(module: torch.nn.Module, processes: int) -> None:
    """Running statistics of all processes -> their mean."""
    if processes == 1:
        return
    for buffer in module.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= processes
