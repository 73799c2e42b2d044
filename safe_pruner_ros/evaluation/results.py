"""Results of an evaluation on disk: one JSON line an episode, written once, never twice.

A folder holds ``config.json`` (what must not change while episodes are added), ``episodes.jsonl``
and the summaries. A run that was killed leaves at most one broken last line, which the next one
cuts off.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

EpisodeKey = tuple[str, str, float, int, int | None]
Record = Mapping[str, Any]

REQUIRED = ('task', 'method', 'retention_ratio', 'seed', 'asked_object', 'success')


class ResultsError(ValueError):
    """The results folder cannot be used; the message says what to do."""


def key_of(record: Record) -> EpisodeKey:
    """Which episode a line is about: (task, variant, retention_ratio, seed, asked_object).

    A line without a variant is about the method as it was configured.
    """
    return (
        str(record['task']),
        str(record.get('variant') or record['method']),
        float(record['retention_ratio']),
        int(record['seed']),
        None if record['asked_object'] is None else int(record['asked_object']),
    )


@dataclass(frozen=True)
class _Line:
    number: int
    end: int  # byte offset after the line
    record: dict[str, Any]


def read_episodes(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a JSONL file; a missing file is an empty one.

    Raises ResultsError for a broken line that is not the last, or an episode that is there twice.
    """
    return [line.record for line in _read_lines(path)]


def _read_lines(path: Path) -> list[_Line]:
    if not path.is_file():
        return []
    lines: list[_Line] = []
    first: dict[EpisodeKey, int] = {}
    raw_lines = path.read_bytes().splitlines(keepends=True)
    end = 0
    for number, raw in enumerate(raw_lines, start=1):
        end += len(raw)
        record = _parse(raw)
        if record is None:
            if number == len(raw_lines):  # cut off by a kill: as if never written
                break
            raise ResultsError(
                f'{path}, line {number} is not an episode; delete that line, and the episode '
                'is run again'
            )
        key = key_of(record)
        if key in first:
            raise ResultsError(
                f'{path}: lines {first[key]} and {number} are about the same episode {key}; '
                'delete one of them'
            )
        first[key] = number
        lines.append(_Line(number, end, record))
    return lines


def _parse(raw: bytes) -> dict[str, Any] | None:
    if not raw.endswith(b'\n'):
        return None
    try:
        record = json.loads(raw)
    except ValueError:
        return None
    if not isinstance(record, dict) or any(name not in record for name in REQUIRED):
        return None
    return record


class ResultsFolder:
    """A results folder open for adding episodes; a second process that opens it is refused.

    Use as a context manager. ``config`` is compared with the one of earlier runs. Raises
    ResultsError when the folder holds results of something else.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder = folder
        self.path = folder / 'episodes.jsonl'
        self.config = json.loads(to_json(config))
        # What was asked of all methods is in each line's own settings.
        self.config_of_episode = {
            name: value
            for name, value in self.config.items()
            if name not in ('settings', 'configured', 'task')
        }
        self.episodes: list[dict[str, Any]] = []
        self._file: IO[bytes] | None = None
        self._keys: set[EpisodeKey] = set()

    def __enter__(self) -> ResultsFolder:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.path.open('ab')
        try:
            self._lock(file)
            self._check_config()
            lines = _read_lines(self.path)
            file.truncate(lines[-1].end if lines else 0)
        except BaseException:
            file.close()
            raise
        self.episodes = [line.record for line in lines]
        self._keys = {key_of(record) for record in self.episodes}
        self._file = file
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __contains__(self, key: EpisodeKey) -> bool:
        return key in self._keys

    def add(self, record: Record) -> None:
        """Append an episode and make sure that it is on disk."""
        assert self._file is not None, 'open the folder first'
        key = key_of(record)
        if key in self._keys:
            raise ResultsError(f'episode {key} is already in {self.path}')
        self._file.write(to_json(record, indent=None).encode() + b'\n')
        self._file.flush()
        os.fsync(self._file.fileno())
        self._keys.add(key)
        self.episodes.append(json.loads(to_json(record)))

    def write(self, name: str, content: str | Mapping[str, Any]) -> Path:
        """Write a file beside the episodes, whole or not at all."""
        path = self.folder / name
        text = content if isinstance(content, str) else to_json(content) + '\n'
        part = path.with_name(path.name + '.part')
        part.write_text(text)
        part.replace(path)
        return path

    def _lock(self, file: IO[bytes]) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ResultsError(
                f'another evaluation is writing to {self.folder}; wait for it, or choose another '
                '--out'
            ) from None

    def _check_config(self) -> None:
        path = self.folder / 'config.json'
        if not path.is_file():
            self.write(path.name, self.config)
            return
        try:
            before = json.loads(path.read_text())
        except ValueError:
            raise ResultsError(
                f'{path} is not readable JSON; restore it, or choose another --out'
            ) from None
        changed = [
            f'{name} was {before.get(name)!r}, now {self.config.get(name)!r}'
            for name in sorted(set(before) | set(self.config))
            if before.get(name) != self.config.get(name)
        ]
        if changed:
            raise ResultsError(
                f'{self.folder} holds episodes of another configuration ({"; ".join(changed)}); '
                'choose another --out, or repeat the old settings'
            )


def to_json(value: Mapping[str, Any], indent: int | None = 2) -> str:
    """Strict JSON: NaN and infinity become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, str) or not isinstance(value, Iterable):
        return None if isinstance(value, float) and not math.isfinite(value) else value
    return [_finite(item) for item in value]
