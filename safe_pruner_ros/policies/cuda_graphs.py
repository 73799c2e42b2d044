"""A function of tensors as CUDA graphs, one for each set of shapes: its kernels launch at once.

A new graph is replayed and compared with its eager function before it is used. Its inputs and
outputs live at fixed addresses until the next replay. Knows nothing of CUDA but `CudaCapture`:
tests pass a stand-in that keeps the addresses fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch

Tensors = tuple[torch.Tensor, ...]
Function = Callable[..., Tensors]

WARM_UP_RUNS = 3  # cuBLAS and autotuners allocate in their first runs, which a graph must not


@dataclass(frozen=True)
class Captured:
    """Write ``inputs`` in place, call ``replay``, read ``outputs``; the addresses never change."""

    inputs: Tensors
    replay: Callable[[], None]
    outputs: Tensors


Capture = Callable[[Function, Tensors], Captured]


class CudaCapture:
    """Captures into one memory pool, where a graph may put its outputs into the scratch space of
    one captured before it. So: replay one at a time, within a policy step in the order of capture,
    and have read all outputs when the next step begins."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Function, inputs: Tensors) -> Captured:
        side: Any = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_RUNS):
                function(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads (cameras, ROS) may allocate meanwhile without breaking the capture.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode='thread_local'):
            outputs = function(*inputs)
        return Captured(inputs, graph.replay, outputs)


class GraphedFunction:
    """``function`` of tensors to tensors, captured once for each set of shapes."""

    def __init__(self, function: Function, capture: Capture, tolerance: float = 1e-2) -> None:
        """``tolerance``: largest difference of a replay from eager, relative to the largest value
        of an output."""
        self._function, self._capture, self._tolerance = function, capture, tolerance
        self._captured: dict[Hashable, Captured] = {}

    def __len__(self) -> int:
        return len(self._captured)

    def __call__(self, *inputs: torch.Tensor) -> Tensors:
        """Valid until the next call with inputs of these shapes."""
        key = tuple((tuple(value.shape), value.dtype) for value in inputs)
        captured = self._captured.get(key)
        if captured is None:
            captured = self._capture(self._function, tuple(value.clone() for value in inputs))
            self._check(captured, inputs)
            self._captured[key] = captured
        _write(captured.inputs, inputs)
        captured.replay()
        return captured.outputs

    def _check(self, captured: Captured, inputs: Tensors) -> None:
        """Raise RuntimeError when a replay differs from the eager function."""
        expected = [value.clone() for value in self._function(*inputs)]
        for value in captured.outputs:
            if value.is_floating_point():
                value.fill_(float('nan'))  # what the replay does not write shows
        _write(captured.inputs, inputs)
        captured.replay()
        for number, (found, eager) in enumerate(zip(captured.outputs, expected, strict=True)):
            found, eager = found.float(), eager.float()
            error = float((found - eager).abs().max()) if eager.numel() else 0.0
            largest = float(eager.abs().max()) if eager.numel() else 0.0
            if not error <= self._tolerance * largest:  # NaN in both is left to the policy
                if torch.equal(found.isnan(), eager.isnan()) and bool(eager.isnan().any()):
                    continue
                raise RuntimeError(
                    f'output {number} of a CUDA graph differs from eager by {error:.3g} (largest '
                    f'value {largest:.3g}); run without graphs and report this'
                )


def _write(static: Tensors, given: Tensors) -> None:
    torch._foreach_copy_(list(static), list(given))
