"""A lower bound of latency on named GPUs: per operation max(arithmetic, weights read), in bf16.

Nothing but weights is moved, nothing waits to be launched, and every kernel reaches the peak; real
steps take 1.2 to 2 times as long. Peaks are dense bf16 with float32 accumulation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from safe_pruner_ros.evaluation.flops.work import Work

BYTES_PER_WEIGHT = 2


@dataclass(frozen=True)
class Gpu:
    """``tflops`` 1e12 FLOP/s, ``gb_s`` 1e9 byte/s, and where NVIDIA publishes them."""

    name: str
    tflops: float
    gb_s: float
    source: str

    def seconds(self, operations: Iterable[Work]) -> float:
        """One after the other."""
        return sum(
            max(
                2 * work.macs / (self.tflops * 1e12),
                BYTES_PER_WEIGHT * work.weights / (self.gb_s * 1e9),
            )
            for work in operations
        )


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu('rtx3090', 71.0, 936.0, 'NVIDIA Ampere GA102 GPU Architecture whitepaper'),
        Gpu('rtx4090', 165.2, 1008.0, 'NVIDIA Ada GPU Architecture whitepaper'),
        Gpu('rtx5090', 209.5, 1792.0, 'NVIDIA RTX Blackwell GPU Architecture whitepaper'),
        Gpu('a100', 312.0, 2039.0, 'NVIDIA A100 80GB SXM data sheet'),
        Gpu('h100', 989.4, 3350.0, 'NVIDIA H100 SXM data sheet'),
        Gpu('h200', 989.4, 4800.0, 'NVIDIA H200 SXM data sheet'),
        # Data sheets of the modules give sparse 8-bit and 4-bit peaks; dense bf16 follows by
        # halving once for sparsity and once for each doubling of the width.
        Gpu('orin64', 42.5, 204.8, 'Jetson AGX Orin 64GB data sheet: 170 sparse INT8 TOPS (GPU)'),
        Gpu('thor', 258.75, 273.0, 'Jetson T5000 data sheet: 2070 sparse FP4 TFLOPS'),
    )
}


def get_gpu(name: str) -> Gpu:
    try:
        return GPUS[name]
    except KeyError:
        raise ValueError(f'unknown GPU {name!r}; choose from {list(GPUS)}') from None
