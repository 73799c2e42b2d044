"""One line of ``episodes.jsonl``: what it must hold, so that no reader has to ask again."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

SHOWN = 60  # characters of a wrong value in a message


class NotAnEpisode(ValueError):
    """The message says what is wrong with the line."""


class NotJson(NotAnEpisode):
    """Not even that: perhaps the beginning of a line whose end was never written."""


def parse_line(raw: bytes) -> dict[str, Any]:
    """The episode of a line, with or without its end. Fields that are not known here may hold
    anything, as those of a newer version do.

    Raises NotJson, or NotAnEpisode for another thing than an object, a field that is missing or
    a value of the wrong kind.
    """
    try:
        record = json.loads(raw)
    except json.JSONDecodeError as error:
        raise NotJson(f'it is no JSON ({error.msg} at character {error.colno})') from None
    except ValueError as error:  # bytes that are no text, numbers with too many digits
        raise NotJson(f'it is no JSON ({error})') from None
    except RecursionError:
        raise NotAnEpisode('it is nested too deeply') from None
    if not isinstance(record, dict):
        raise NotAnEpisode(f'it must be an object, got {shown(record)}')
    if missing := [name for name in _REQUIRED if name not in record]:
        raise NotAnEpisode(f'it lacks {", ".join(missing)}')
    for name, value in record.items():
        wanted, is_right = _KINDS.get(name, _ANYTHING)
        if not is_right(value):
            raise NotAnEpisode(f'{name} must be {wanted}, got {shown(value)}')
    return record


def shown(value: Any) -> str:
    """A value as JSON has it, cut where it is long."""
    text = json.dumps(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + '...'


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_count(value: Any) -> bool:
    """Below 2^63, as numpy counts."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_number(value: Any) -> bool:
    """Python reads NaN, 1e999 and whole numbers that no float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= sys.float_info.max


def _or_null(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or is_right(value)


def _list_of(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_right, value))


_Kind = tuple[str, Callable[[Any], bool]]

_ANYTHING: _Kind = ('anything', lambda value: True)
_TEXT: _Kind = ('text', _is_text)
_FLAG: _Kind = ('true or false', _is_flag)
_OBJECT: _Kind = ('an object', _is_object)
_COUNT: _Kind = ('a whole number from 0', _is_count)
_NUMBER: _Kind = ('a finite number', _is_number)
_MEASURED: _Kind = ('a finite number, or null where nothing was measured', _or_null(_is_number))
_TEXTS: _Kind = ('a list of texts', _list_of(_is_text))
_COUNTS: _Kind = ('a list of whole numbers from 0', _list_of(_is_count))

_REQUIRED: dict[str, _Kind] = {
    'task': _TEXT,
    'method': _TEXT,
    'retention_ratio': _NUMBER,
    'seed': _COUNT,
    'asked_object': ('a whole number from 0, or null', _or_null(_is_count)),
    'success': _FLAG,
}
# A line of an older version lacks some of these.
_KINDS: dict[str, _Kind] = {
    **_REQUIRED,
    'variant': ('text, or null', _or_null(_is_text)),
    'target': _COUNT,
    'instruction': _TEXT,
    'stage': _TEXT,
    'stages': _TEXTS,
    'policy_steps': _COUNT,
    'duration_s': _NUMBER,
    'keyframes': _COUNT,
    'keyframe_steps': _COUNTS,
    'keyframe_reasons': _TEXTS,
    'retained_tokens_mean': _MEASURED,
    'pruning_ratio_mean': _MEASURED,
    'macs_mean': _MEASURED,
    'scoring_macs_mean': _MEASURED,
    'latency_ms_mean': _MEASURED,
    'latency_ms_p50': _MEASURED,
    'latency_ms_key_p50': _MEASURED,
    'latency_ms_pruned_p50': _MEASURED,
    'wall_s': _NUMBER,
    'subtasks': _TEXTS,
    'error': _TEXT,
    'settings': _OBJECT,
    'settings_hash': _TEXT,
    'commit': _TEXT,
    'cpu': _TEXT,
    'config': _OBJECT,
}
