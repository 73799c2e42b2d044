"""Settings of episodes on disk, in a form that is equal where what ran is equal.

An older version had fewer settings and may have written 1 for 1.0. What a line does not say came
later, and counts as its default: that is how a new setting keeps old results valid.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from safe_pruner_ros.core.catalog import METHODS, accepted_settings, resolved_settings
from safe_pruner_ros.evaluation.results import Record, ResultsError, to_json
from safe_pruner_ros.policies.catalog import CAUSAL

Settings = dict[str, Any]


def completed_settings(method: str, settings: Mapping[str, Any], *, causal: bool) -> Settings:
    """``settings`` as JSON has them, with the defaults of ``method`` for those that are missing,
    one form for equal values. ``causal`` as in `resolved_settings`.

    A method, setting or value that this version does not know stays as it was written: nobody
    can say what it is equal to.
    """
    complete = dict(settings)
    if method in METHODS:
        complete = resolved_settings(method, {}, causal=causal) | complete
        known = {name: settings[name] for name in accepted_settings(method) if name in settings}
        with suppress(ValueError, TypeError, OverflowError):  # anything may stand in a file
            complete |= resolved_settings(method, known, causal=causal)
    found: Settings = json.loads(to_json(complete))
    return found


def settings_of(record: Record) -> Settings:
    """What an episode ran with, completed."""
    causal = str(record.get('config', {}).get('policy')) in CAUSAL
    return completed_settings(str(record['method']), record.get('settings', {}), causal=causal)


def shared_settings(records: Sequence[Record], name: str) -> Settings:
    """What all episodes of a cell ran with, completed. ``name``: of the cell, for the message.

    Raises ResultsError when they ran with different settings.
    """
    written = {
        json.dumps(record.get('settings', {}), sort_keys=True): record for record in records
    }
    first, *others = (settings_of(record) for record in written.values())
    for other in others:
        if other != first:
            one, another = differences(first, other)
            raise ResultsError(
                f'{name} ran with different settings: {one} and {another}; results of the two do '
                'not belong together, leave one of them out'
            )
    return first


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Settings, Settings]:
    """What is not the same in both, as each has it; left out where it is not there."""
    absent = object()
    names = [k for k in {**before, **after} if before.get(k, absent) != after.get(k, absent)]
    return (
        {name: before[name] for name in names if name in before},
        {name: after[name] for name in names if name in after},
    )
