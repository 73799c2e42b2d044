"""One row for each model, method, retention ratio and keyframe share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from safe_pruner_ros.core.catalog import METHODS
from safe_pruner_ros.core.selection import n_retained
from safe_pruner_ros.evaluation.flops.gpus import BYTES_PER_WEIGHT, Gpu
from safe_pruner_ros.evaluation.flops.paper import paper_percent, paper_t
from safe_pruner_ros.evaluation.flops.scoring import check_counted, has_keyframes
from safe_pruner_ros.evaluation.flops.shapes import MODELS, Model
from safe_pruner_ros.evaluation.flops.step import (
    STAGES,
    make_pruner,
    mixed_macs,
    published_macs,
    step_stages,
)

T = 1e12


@dataclass(frozen=True)
class Row:
    """``macs_t`` as the paper counts (decoder's prefill, its tokens), ``paper_t`` the paper's
    figure, whatever its retention ratio was, and ``paper_retention_ratio`` the ratio at which our
    count gives that figure. ``stages_macs_t`` is what runs here, all stages; ``flops_t`` twice
    their sum. All in 1e12, means over key and pruned steps. ``gpu_ms``: `gpus.Gpu.seconds`.
    """

    model: str
    method: str
    retention_ratio: float
    keyframe_share: float
    pruning_layer: int
    n_tokens: int
    n_visual: int
    n_retained: int
    macs_t: float
    paper_t: float | None
    percent_of_unpruned: float
    paper_percent: tuple[float, ...] | None
    paper_retention_ratio: float | None
    stages_macs_t: dict[str, float]
    total_macs_t: float
    flops_t: float
    weights: int
    weight_bytes: int
    gpu_ms: dict[str, float]

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def make_rows(
    models: Sequence[str],
    methods: Sequence[str],
    retention_ratios: Sequence[float],
    keyframe_shares: Sequence[float],
    gpus: Sequence[Gpu] = (),
) -> list[Row]:
    """Unpruned once a model; a method without key timesteps once a ratio, with share 0.

    Raises ValueError for a name that is unknown or a number out of range.
    """
    for kind, given, known in (('model', models, MODELS), ('method', methods, METHODS)):
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise ValueError(f'unknown {kind} {unknown}; choose from {list(known)}')
    for share in keyframe_shares:
        if not 0 <= share <= 1:
            raise ValueError(f'keyframe share must be in [0, 1], got {share}')
    return [
        _row(MODELS[name](), method, ratio, share, gpus)
        for name in models
        for method in methods
        for ratio, share in _cells(method, retention_ratios, keyframe_shares)
    ]


def _cells(
    method: str, ratios: Sequence[float], shares: Sequence[float]
) -> Iterator[tuple[float, float]]:
    check_counted(method)
    for ratio in (1.0,) if method == 'unpruned' else ratios:
        for share in shares if has_keyframes(method) else (0.0,):
            yield ratio, share


def _row(model: Model, method: str, ratio: float, share: float, gpus: Sequence[Gpu]) -> Row:
    published = published_macs(model, method, ratio, share)
    unpruned = published_macs(model, 'unpruned', 1.0, 0.0)
    stages = mixed_macs(model, method, ratio, share)
    figures = paper_percent(model.name, method)
    pruned = step_stages(model, method, ratio, is_key=False)
    key = step_stages(model, method, ratio, is_key=True)

    def latency_ms(gpu: Gpu) -> float:
        seconds = [gpu.seconds(w for s in step.values() for w in s) for step in (pruned, key)]
        return 1e3 * ((1 - share) * seconds[0] + share * seconds[1])

    n_visual, total = model.tokens.visual, sum(stages.values())
    weights = model.parameters
    return Row(
        model=model.name,
        method=method,
        retention_ratio=ratio,
        keyframe_share=share,
        pruning_layer=make_pruner(model, method, ratio).pruning_layer,
        n_tokens=model.tokens.length,
        n_visual=n_visual,
        n_retained=n_visual if method == 'unpruned' else n_retained(n_visual, ratio),
        macs_t=published / T,
        paper_t=paper_t(model.name, method),
        percent_of_unpruned=100 * published / unpruned,
        paper_percent=figures,
        paper_retention_ratio=None if figures is None else _solve(model, method, share, figures),
        stages_macs_t={stage: stages[stage] / T for stage in STAGES},
        total_macs_t=total / T,
        flops_t=2 * total / T,
        weights=weights,
        weight_bytes=BYTES_PER_WEIGHT * weights,
        gpu_ms={gpu.name: latency_ms(gpu) for gpu in gpus},
    )


def _solve(model: Model, method: str, share: float, figures: tuple[float, ...]) -> float | None:
    """The retention ratio at which `published_macs` is the paper's share of its unpruned row; the
    mean of its two figures for CogACT. None where no ratio is."""
    if method == 'unpruned':
        return 1.0
    wanted = sum(figures) / len(figures) / 100 * published_macs(model, 'unpruned', 1.0, 0.0)
    low, high = 1e-6, 1.0
    if not published_macs(model, method, low, share) <= wanted:
        return None
    for _ in range(50):
        middle = (low + high) / 2
        if published_macs(model, method, middle, share) < wanted:
            low = middle
        else:
            high = middle
    return (low + high) / 2
