"""Settings of the pruning method. Import them from `config.py`; values: config/policies/*.yaml."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import Field, dataclass, fields
from typing import Any, Literal

from safe_pruner_ros.runtime.config_schema import check_bounds, setting

# "Not set, so the default of the method in core/": ROS parameters know no None.
OWN, OWN_CHOICE = -1, 'default'
_OWN, _OWN_CHOICE = f"{OWN}: the method's own", f"{OWN_CHOICE}: the method's own"
_OWN_ROWS = f'{_OWN_CHOICE}, last where the decoder is causal, else prefill'


@dataclass(frozen=True)
class PrunerConfig:
    """Which pruning method, how much it keeps, and its settings.

    Field names are those of the pruners in core/; `settings` picks the ones a method takes. A
    setting whose own default differs between methods or decoders is OWN or OWN_CHOICE until
    somebody sets it; the others start at the default that all methods share
    (test/runtime/test_pruner_settings.py).
    ``retention_ratio`` is asked of whichever method runs, so that methods compare at one ratio.
    """

    method: str = setting('safe_pruner', 'pruning method; names in core/catalog.py')
    retention_ratio: float = setting(
        0.3, 'share of visual tokens kept from the pruning layer on', '', None, 1.0, 0.0
    )
    pruning_layer: int = setting(
        OWN, f'0-based decoder layer whose input is already pruned; {_OWN}', '', 0, 1000, own=OWN
    )
    variant: Literal['paper', 'code'] = setting(
        'paper', 'SAFE-Pruner as the paper says it, or as its authors released it'
    )
    similarity_threshold: float = setting(
        float(OWN), f'tau: an attention similarity below it makes a key timestep; {_OWN}', '',
        0.0, 1.0, own=OWN,
    )  # fmt: skip
    alpha: float = setting(
        0.5,
        'weight of the early saliency in variant paper; the forecast gets 1 - alpha',
        '',
        0.0,
        1.0,
    )
    deep_weight: float = setting(
        1.0, 'weight of the forecast in variant code, where the early saliency has 1', '', 0.0
    )
    deep_layers: tuple[int, ...] = setting(
        (), 'S: layers whose saliency is forecast, negative from the end; empty: the published'
    )
    norm: Literal['default', 'none', 'l1', 'minmax', 'zscore'] = setting(
        OWN_CHOICE,
        f'brings the saliency terms to one scale before they are added; {_OWN_CHOICE}',
        own=OWN_CHOICE,
    )
    match_scope: Literal['default', 'joint', 'per_view'] = setting(
        OWN_CHOICE,
        f'match a token to the keyframe tokens of all views, or of its own view; {_OWN_CHOICE}',
        own=OWN_CHOICE,
    )
    quota_scope: Literal['default', 'joint', 'per_view'] = setting(
        OWN_CHOICE,
        f'rank tokens over all views, or keep the same share of every view; {_OWN_CHOICE}',
        own=OWN_CHOICE,
    )
    max_keyframe_age: int = setting(
        OWN, f'policy steps after which a keyframe is renewed; 0: never, {_OWN}', '', 0, 100000,
        own=OWN,
    )  # fmt: skip
    keyframe_interval: int = setting(
        0, 'every so many policy steps a key timestep, tau unused; 0: tau decides', '', 0, 100000
    )
    forecast: bool = setting(
        True, 'off: the early saliency alone decides (ablation), no step is a key timestep'
    )
    certain: float = setting(
        0.25,
        'Diverse forecast: share of the kept tokens that saliency alone decides',
        '',
        0.0,
        1.0,
    )
    early_queries: Literal['default', 'prefill', 'action', 'text', 'last'] = setting(
        OWN_CHOICE,
        'Diverse forecast: tokens whose attention is the early saliency and tells its shift; '
        f'{_OWN_ROWS}',
        own=OWN_CHOICE,
    )
    full_first_step: bool = setting(
        False, 'Diverse forecast: the first policy step of an episode runs in full'
    )
    queries: Literal['default', 'last', 'action', 'text', 'prefill'] = setting(
        OWN_CHOICE,
        f'FastV: tokens whose attention ranks the visual ones; {_OWN_ROWS}',
        own=OWN_CHOICE,
    )
    semantic_queries: Literal['default', 'last', 'action', 'text', 'prefill'] = setting(
        OWN_CHOICE,
        f'VLA-Pruner: tokens whose attention is the semantic term; {_OWN_ROWS}',
        own=OWN_CHOICE,
    )
    history_steps: int = setting(
        3, 'VLA-Pruner: policy steps whose action attention is remembered', '', 1, 1000
    )
    history_decay: float = setting(
        0.8, 'VLA-Pruner: weight of a remembered step relative to the one after it', '', 1e-3, 1.0
    )
    warm_up_steps: int = setting(
        3,
        'VLA-Pruner: policy steps run in full until so many are remembered, history_steps at most',
        '',
        0,
        1000,
    )
    change_threshold: float = setting(
        0.986, 'SpecPrune-VLA: a token with a cosine below it has changed', '', -1.0, 1.0
    )
    lookback_steps: int = setting(
        1, 'SpecPrune-VLA: policy steps between the images that are compared', '', 1, 1000
    )
    static_threshold: float = setting(
        0.996, 'VLA-Cache: a token with a cosine of at least this stands still', '', -1.0, 1.0
    )
    relevant_share: float = setting(
        100 / 256,
        'VLA-Cache: share of the tokens that is computed even if it is still',
        '',
        0.0,
        1.0,
    )
    schedule: Literal['paper', 'code', 'uniform'] = setting(
        'code', 'VLA-Cache: how attention entropy tells what each layer skips; uniform: all alike'
    )
    schedule_gain: float = setting(
        1.0, 'VLA-Cache: k of the schedule paper, the one that has it', '', 0.0
    )
    seed: int = setting(0, 'seed of random methods', '', 0, 2**31 - 1)

    def __post_init__(self) -> None:
        check_bounds(self)

    def settings(self, accepted: Collection[str]) -> dict[str, Any]:
        """What to pass to `build_pruner`, given `accepted_settings(method)`; a method's own
        default is left out."""
        values = {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if item.name in accepted and not _is_own(item, getattr(self, item.name))
        }
        if 'deep_layers' in values:
            values['deep_layers'] = self.deep_layers or None
        return values


def _is_own(item: Field[Any], value: Any) -> bool:
    own = item.metadata['own']
    return own is not None and bool(value == own)
