"""`safe-pruner flops`: tables for people, rows for programs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from safe_pruner_ros.evaluation.flops.gpus import GPUS, Gpu, get_gpu
from safe_pruner_ros.evaluation.flops.rows import Row, make_rows
from safe_pruner_ros.evaluation.flops.scoring import METHODS, NOT_COUNTED
from safe_pruner_ros.evaluation.flops.shapes import MODELS
from safe_pruner_ros.evaluation.flops.step import STAGES

NOTES = """\
paper's count: multiply-accumulates of the language model's prefill alone, 4nd^2 + 2n^2d + 3ndm a
  layer, key timesteps counted in; pi0.5 with 968 tokens, 436 of them masked. Its figures stand
  beside every retention ratio; "gives it at" is the ratio at which our count equals the figure.
  SAFE-Pruner's Table 1 in T; Table 2 (CogACT) in % of unpruned, visual matching / variants.
all stages: what this package runs in one policy step, grouped keys and tokens chosen included,
  absent cameras and padding left out; FLOPs are twice the multiply-accumulates.
vla_cache: the most it can skip, when nothing but the kept tokens moves.
roofline: sum over operations of max(FLOPs / peak, bf16 weights / bandwidth); a lower bound."""


def main(
    arguments: argparse.Namespace, retention_ratios: Sequence[float], shares: Sequence[float]
) -> int:
    """``arguments``: models, methods, gpus as lists of names (empty: all), json."""
    gpus = [get_gpu(name) for name in arguments.gpus or GPUS]
    rows = make_rows(
        arguments.models or list(MODELS),
        arguments.methods or list(METHODS),
        retention_ratios,
        shares,
        gpus,
    )
    if arguments.json:
        print(json.dumps([row.as_dict() for row in rows], indent=1))
        return 0
    for name in arguments.models or list(MODELS):
        print(_tables(name, [row for row in rows if row.model == name], gpus))
    print(NOTES)
    if NOT_COUNTED:
        print(f'not counted: {", ".join(NOT_COUNTED)}')
    for gpu in gpus:
        print(f'{gpu.name}: {gpu.tflops:g} TFLOP/s, {gpu.gb_s:g} GB/s ({gpu.source})')
    return 0


def _tables(name: str, rows: Sequence[Row], gpus: Sequence[Gpu]) -> str:
    first = rows[0]
    title = (
        f'## {name}: {first.n_tokens} tokens, {first.n_visual} of them visual; '
        f'{first.weights / 1e9:.3f} B parameters, {first.weight_bytes / 1e9:.2f} GB in bf16\n'
    )
    published = _markdown(
        [
            'method',
            'kept',
            'key steps',
            "paper's count, T",
            'paper, T',
            '%',
            'paper, %',
            'gives it at',
        ],
        [
            [
                *_cell(row),
                f'{row.macs_t:.4g}',
                _number(row.paper_t, '.3f'),
                f'{row.percent_of_unpruned:.1f}',
                ' / '.join(f'{figure:.1f}' for figure in row.paper_percent or ()),
                _number(row.paper_retention_ratio, '.3f'),
            ]
            for row in rows
        ],
    )
    everything = _markdown(
        [
            *('method', 'kept', 'key steps'),
            *(f'{stage}, GMAC' for stage in STAGES),
            'TMAC',
            'TFLOP',
            *(f'{gpu.name}, ms' for gpu in gpus),
        ],
        [
            [
                *_cell(row),
                *(f'{1e3 * row.stages_macs_t[stage]:.4g}' for stage in STAGES),
                f'{row.total_macs_t:.4g}',
                f'{row.flops_t:.4g}',
                *(f'{row.gpu_ms[gpu.name]:.2f}' for gpu in gpus),
            ]
            for row in rows
        ],
    )
    return (
        f'{title}\nAs the paper counts:\n\n{published}\n'
        f'All stages, and the roofline:\n\n{everything}'
    )


def _cell(row: Row) -> list[str]:
    return [
        row.method,
        f'{row.n_retained} ({row.retention_ratio:g})',
        f'{100 * row.keyframe_share:g} %',
    ]


def _number(value: float | None, form: str) -> str:
    return '' if value is None else format(value, form)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ['---', *['---:'] * (len(header) - 1)]
    return ''.join('| ' + ' | '.join(row) + ' |\n' for row in [header, rule, *rows])
