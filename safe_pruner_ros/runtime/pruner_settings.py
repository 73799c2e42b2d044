"""Which settings a pruning method runs with: the one answer for node, demo, replay, evaluate,
benchmark and preflight.

What a policy file or a parameter states counts for the file's own method and for those that are
like it (`core/catalog.py`); what nobody stated is the method's own default in core/.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from safe_pruner_ros.core.catalog import accepted_settings, alike, resolved_settings
from safe_pruner_ros.runtime.config import ConfigError, PrunerConfig


def for_method(pruner: PrunerConfig, method: str) -> PrunerConfig:
    """``pruner`` with another method: as it is for one that is alike, else with nothing but the
    ratio, because what was chosen for one method says nothing about another.

    Raises ConfigError for an unknown method.
    """
    try:
        is_alike = method in alike(pruner.method)
        accepted_settings(method)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if is_alike:
        return replace(pruner, method=method)
    return PrunerConfig(method=method, retention_ratio=pruner.retention_ratio)


def stated_settings(pruner: PrunerConfig, method: str = '') -> dict[str, Any]:
    """What ``pruner`` states for ``method`` ('': its own), as `build_pruner` takes it.

    Raises ConfigError for an unknown method.
    """
    chosen = for_method(pruner, method or pruner.method)
    return chosen.settings(accepted_settings(chosen.method))


def effective_settings(
    pruner: PrunerConfig, method: str = '', *, causal: bool = False
) -> dict[str, Any]:
    """`stated_settings` and the method's own defaults for the rest, on a ``causal`` decoder or
    another. Raises ValueError for a value that the method refuses."""
    chosen = method or pruner.method
    return resolved_settings(chosen, stated_settings(pruner, method), causal=causal)
