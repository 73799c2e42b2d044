"""Method name -> pruner. The only place where methods are strings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from safe_pruner_ros.core.baselines.divprune import DivPrune, DivPruneConfig
from safe_pruner_ros.core.baselines.fastv import FastV, FastVConfig
from safe_pruner_ros.core.baselines.random_pruner import RandomPruner, RandomPrunerConfig
from safe_pruner_ros.core.baselines.sparsevlm import SparseVLM
from safe_pruner_ros.core.baselines.specprune_vla import SpecPrune, SpecPruneConfig
from safe_pruner_ros.core.baselines.unpruned import Unpruned, UnprunedConfig
from safe_pruner_ros.core.baselines.vla_cache import VLACache, VLACacheConfig
from safe_pruner_ros.core.baselines.vla_pruner import VLAPruner, VLAPrunerConfig
from safe_pruner_ros.core.diverse_forecast import DiverseForecast, DiverseForecastConfig
from safe_pruner_ros.core.pruner import Pruner
from safe_pruner_ros.core.safe_pruner import SafePruner, SafePrunerConfig
from safe_pruner_ros.core.score_pruner import ScorePrunerConfig
from safe_pruner_ros.core.setting_kinds import canonical_settings
from safe_pruner_ros.core.settings import causal_defaults


@dataclass(frozen=True)
class _Entry:
    pruner: Callable[[Any, int], Pruner]
    config: type[Any]


_CATALOG = {
    'unpruned': _Entry(Unpruned, UnprunedConfig),
    'random': _Entry(RandomPruner, RandomPrunerConfig),
    'fastv': _Entry(FastV, FastVConfig),
    'sparsevlm': _Entry(SparseVLM, ScorePrunerConfig),
    'divprune': _Entry(DivPrune, DivPruneConfig),
    'vla_cache': _Entry(VLACache, VLACacheConfig),
    'vla_pruner': _Entry(VLAPruner, VLAPrunerConfig),
    'specprune_vla': _Entry(SpecPrune, SpecPruneConfig),
    'safe_pruner': _Entry(SafePruner, SafePrunerConfig),
    'diverse_forecast': _Entry(DiverseForecast, DiverseForecastConfig),
}

METHODS = tuple(_CATALOG)


def _entry(method: str) -> _Entry:
    try:
        return _CATALOG[method]
    except KeyError:
        raise ValueError(f'unknown pruning method {method!r}; choose from {METHODS}') from None


def alike(method: str) -> tuple[str, ...]:
    """``method`` first, then those that share its settings: SAFE-Pruner and what is built on it.

    What is chosen for one of them (norm, scopes, tau) is as good a guess for the other.
    """
    if not issubclass(_entry(method).config, SafePrunerConfig):
        return (method,)
    family = [
        name for name, entry in _CATALOG.items() if issubclass(entry.config, SafePrunerConfig)
    ]
    return method, *(name for name in family if name != method)


def accepted_settings(method: str) -> tuple[str, ...]:
    """Names of the settings that `build_pruner` takes for ``method``."""
    return tuple(field.name for field in fields(_entry(method).config))


def resolved_settings(
    method: str, settings: Mapping[str, Any], *, causal: bool = False
) -> dict[str, Any]:
    """All settings that ``method`` runs with: ``settings``, and its defaults for the rest, which
    may be others on a ``causal`` decoder (`settings.LAST_IF_CAUSAL`).

    Raises ValueError for an unknown method or setting, a value out of range or of the wrong kind.
    """
    return asdict(_config(method, settings, causal))


def checked_settings(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` in the types of the method's config class, one form for equal values.

    Raises ValueError for an unknown method or setting, or a value of the wrong kind.
    """
    accepted = accepted_settings(method)
    unknown = sorted(set(settings) - set(accepted))
    if unknown:
        raise ValueError(f'method {method!r} has no setting {unknown}; it takes {list(accepted)}')
    try:
        return canonical_settings(_entry(method).config, settings)
    except ValueError as error:
        raise ValueError(f'method {method!r}: {error}') from None


def _config(method: str, settings: Mapping[str, Any], causal: bool) -> Any:
    checked = checked_settings(method, settings)
    config = _entry(method).config
    return config(**{**(causal_defaults(config) if causal else {}), **checked})


def build_pruner(method: str, n_layers: int, *, causal: bool = False, **settings: Any) -> Pruner:
    """A fresh pruner for a decoder of ``n_layers`` layers; ``causal``: a token sees itself and
    earlier ones only.

    ``settings`` are the fields of the method's config class; what is left out takes its default.
    Raises ValueError for an unknown method, an unknown setting, a value out of range or of the
    wrong kind.
    """
    pruner = _entry(method).pruner(_config(method, settings, causal), n_layers)
    pruner.method = method
    return pruner
