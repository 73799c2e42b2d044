"""Methods as one writes them: 'fastv', 'fastv@0.25', 'safe_pruner:tau=0.9,deep_layers=0,-1'."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from safe_pruner_ros.core.catalog import METHODS, accepted_settings, checked_settings

# The papers' symbols, for those who read one beside the command line.
SYMBOLS = {
    'tau': 'similarity_threshold',
    'lambda': 'deep_weight',
    'S': 'deep_layers',
    'K': 'pruning_layer',
}
PUBLISHED = 'published'


@dataclass(frozen=True)
class MethodSpec:
    """``settings`` are changes to where the method starts from: the policy file's values for its
    method, or with ``published`` the defaults in core/. ``retention_ratio``: its own, None: those
    that the others run at."""

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    published: bool = False
    retention_ratio: float | None = None

    @property
    def variant(self) -> str:
        """One spelling for equal specs: full names, in order. It names the variant in results."""
        parts = [PUBLISHED] if self.published else []
        parts += [f'{name}={_text(self.settings[name])}' for name in sorted(self.settings)]
        return f'{self.method}:{",".join(parts)}' if parts else self.method


def parse_method(text: str) -> MethodSpec:
    """'NAME', 'NAME@RATIO', 'NAME:SETTING=VALUE,...' or 'NAME@RATIO:SETTING=VALUE,...'; a first
    part 'published' leaves the policy file out.

    Values as in `parse_value`; a part without '=' goes on with the value before it, so that
    'deep_layers=0,-1,alpha=1' is two settings. Raises ValueError for an unknown method or setting,
    or a value of the wrong kind.
    """
    name, colon, rest = (part.strip() for part in text.partition(':'))
    method, at, ratio = (part.strip() for part in name.partition('@'))
    if method not in METHODS:
        raise ValueError(f'unknown pruning method {method!r}; choose from {METHODS}')
    parts = rest.split(',') if colon else []
    published = bool(parts) and parts[0].strip() == PUBLISHED
    settings = _parse_parts(parts[published:], text)
    return MethodSpec(
        method, _checked(method, settings), published, _ratio(method, ratio, text) if at else None
    )


def split_methods(words: Sequence[str]) -> list[str]:
    """Words of a command line -> methods: a word without settings may hold several, by commas.

    Raises ValueError for one that is there twice.
    """
    names = [
        name.strip() for word in words for name in ([word] if ':' in word else word.split(','))
    ]
    names = [name for name in names if name]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f'given twice: {repeated}')
    return names


def parse_ratios(words: Sequence[str]) -> list[float]:
    """Words of --retention -> ratios, separated by commas or spaces. Raises ValueError."""
    names = split_methods(words)
    try:
        return [float(ratio) for ratio in names]
    except ValueError as error:
        given = ' '.join(words)
        raise ValueError(f'--retention takes numbers like 0.3,0.1, got {given!r}') from error


def parse_value(text: str) -> Any:
    """A Python literal (also None), else the text itself."""
    text = text.strip()
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def parse_settings(assignments: Sequence[str]) -> dict[str, Any]:
    """['similarity_threshold=0.5', 'fastv.pruning_layer=4'] -> {name: value}.

    Values as in `parse_value` ('norm=l1', 'deep_layers=0,-2,-1').
    """
    settings: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = (part.strip() for part in assignment.partition('='))
        if not equals or not name:
            raise ValueError(f'--set takes name=value, got {assignment!r}')
        owner, dot, short = name.rpartition('.')
        name = owner + dot + SYMBOLS.get(short, short)
        if name in settings:
            raise ValueError(f'--set {name} is given twice')
        settings[name] = _value_of(name, text)
    return settings


def _parse_parts(parts: Sequence[str], text: str) -> dict[str, Any]:
    values: dict[str, str] = {}
    name = ''
    for part in parts:
        before, equals, after = (piece.strip() for piece in part.partition('='))
        if equals and before:
            name = SYMBOLS.get(before, before)
            if name in values:
                raise ValueError(f'{name} is given twice in {text!r}')
            values[name] = after
        elif name and not equals and before:
            values[name] += f',{before}'
        else:
            raise ValueError(
                f'a method with settings is written NAME:SETTING=VALUE,..., got {text!r}'
            )
    return {name: _value_of(name, value) for name, value in values.items()}


def _ratio(method: str, ratio: str, text: str) -> float:
    if 'retention_ratio' not in accepted_settings(method):
        raise ValueError(f'method {method!r} has no retention ratio, got {text!r}')
    try:
        value = float(ratio)
    except ValueError:
        raise ValueError(f'a method at a ratio is written NAME@RATIO, got {text!r}') from None
    check_ratio(value)
    return value


def check_ratio(ratio: float) -> None:
    if not 0 < ratio <= 1:  # NaN is neither
        raise ValueError(
            f'retention must be in (0, 1], got {ratio}; 0.3 keeps 30 % of the visual tokens'
        )


def _value_of(name: str, text: str) -> Any:
    value = parse_value(text)
    is_one_layer = name.rpartition('.')[2] == 'deep_layers' and isinstance(value, int)
    return (value,) if is_one_layer else value


def _checked(method: str, settings: dict[str, Any]) -> dict[str, Any]:
    if 'retention_ratio' in settings:
        raise ValueError(
            f'retention_ratio is no setting of a method here; use --retention or {method}@RATIO'
        )
    return checked_settings(method, settings)


def _text(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return ','.join(map(_text, value))
    is_whole = isinstance(value, float) and value.is_integer()
    return str(int(value)) if is_whole else str(value)  # 1.0 as one writes it: 1
