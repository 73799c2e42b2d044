"""Results of an evaluation on disk: one JSON line an episode, written once, never twice.

A folder holds ``config.json`` (what must not change while episodes are added), ``episodes.jsonl``
and the summaries. A run that was killed leaves at most one broken last line, which the next one
cuts off. Where there is only ``episodes.jsonl.xz``, packed for keeping, a run goes on from that.
"""

from __future__ import annotations

import fcntl
import io
import json
import lzma
import math
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from safe_pruner_ros.evaluation.episode_line import NotAnEpisode, NotJson, parse_line, shown

EpisodeKey = tuple[str, str, float, int, int | None]
Record = Mapping[str, Any]

EPISODES = 'episodes.jsonl'
PACKED = '.xz'


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


def read_episodes(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a JSONL file, packed (.xz) or not; a missing file is an empty one.

    Raises ResultsError for a line that is not an episode, an episode that is there twice, or a
    packed file that cannot be unpacked.
    """
    return _read_lines(path)[0]


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """(episodes, bytes up to the end of the last whole line)."""
    return _parse_lines(_content(path), path) if path.is_file() else ([], 0)


def _parse_lines(content: bytes, path: Path) -> tuple[list[dict[str, Any]], int]:
    records: list[dict[str, Any]] = []
    first: dict[EpisodeKey, int] = {}
    end = 0
    for number, raw in enumerate(io.BytesIO(content), start=1):  # splits at \n only
        if _is_torn(raw):
            break
        try:
            record = parse_line(raw)
        except NotAnEpisode as error:
            raise ResultsError(
                f'line {number} of {path} is not an episode: {error}; delete that line, and '
                '`safe-pruner evaluate` runs its episode again, or leave that file out (evaluate: '
                'choose another --out)'
            ) from None
        key = key_of(record)
        if key in first:
            raise ResultsError(
                f'{path}: lines {first[key]} and {number} are about the same episode {key}; '
                'delete one of them'
            )
        first[key] = number
        records.append(record)
        end += len(raw)
    return records, end


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix != PACKED:
        return content
    try:
        return lzma.decompress(content)
    except lzma.LZMAError as error:
        raise ResultsError(
            f'{path} cannot be unpacked ({error}); fetch it again, or leave it out'
        ) from None


def _is_torn(raw: bytes) -> bool:
    """Was this line cut off by a kill, as if never written? Then it has no end, and what there
    is of it is the beginning of an object. Somebody else's file must not be cut."""
    if raw.endswith(b'\n') or not raw.startswith(b'{'):
        return False
    try:
        parse_line(raw)
    except NotJson:
        return True
    except NotAnEpisode:
        return False
    return True  # all of it but the line's end


class ResultsFolder:
    """A results folder open for adding episodes; a second process that opens it is refused.

    Use as a context manager. ``config`` is compared with the one of earlier runs. Raises
    ResultsError when the folder holds results of something else.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder = folder
        self.path = folder / EPISODES
        self.config = json.loads(to_json(config))
        # What was asked of all methods is in each line's own settings.
        self.config_of_episode = {
            name: value
            for name, value in self.config.items()
            if name not in ('settings', 'configured', 'task')
        }
        self.episodes: list[dict[str, Any]] = []
        self._file: IO[bytes] | None = None
        self._replaced: list[IO[bytes]] = []  # still locked: nobody may take them for the file
        self._keys: set[EpisodeKey] = set()

    def __enter__(self) -> ResultsFolder:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.path.open('ab')
        try:
            self._lock(file)
            self._unpack_into(file)
            self.episodes, end = _read_lines(self.path)
            self._check_episodes()
            self._check_config()
            file.truncate(end)
        except BaseException:
            file.close()
            raise
        self._keys = {key_of(record) for record in self.episodes}
        self._file = file
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            for file in (self._file, *self._replaced):
                file.close()
            self._file, self._replaced = None, []

    def __contains__(self, key: EpisodeKey) -> bool:
        return key in self._keys

    def add(self, record: Record) -> None:
        """Append an episode and make sure that it is on disk."""
        assert self._file is not None, 'open the folder first'
        key = key_of(record)
        if key in self._keys:
            raise ResultsError(f'episode {key} is already in {self.path}')
        line = to_json(record, indent=None).encode()
        episode = parse_line(line)  # what is written can be read
        self._file.write(line + b'\n')
        self._file.flush()
        os.fsync(self._file.fileno())
        self._keys.add(key)
        self.episodes.append(episode)

    def remove(self, keys: Collection[EpisodeKey]) -> None:
        """Take episodes out, so that they can be added anew; the file changes at once or not."""
        assert self._file is not None, 'open the folder first'
        left = [record for record in self.episodes if key_of(record) not in keys]
        if len(left) == len(self.episodes):
            return
        part = self.path.with_name(self.path.name + '.part')
        file = part.open('wb')
        self._lock(file)
        file.writelines(to_json(record, indent=None).encode() + b'\n' for record in left)
        file.flush()
        os.fsync(file.fileno())
        part.replace(self.path)
        self._replaced.append(self._file)
        self._file, self.episodes = file, left
        self._keys = {key_of(record) for record in left}

    def write(self, name: str, content: str | Mapping[str, Any]) -> Path:
        """Write a file beside the episodes, whole or not at all."""
        path = self.folder / name
        text = content if isinstance(content, str) else to_json(content) + '\n'
        write_whole(path, text)
        return path

    def _unpack_into(self, file: IO[bytes]) -> None:
        """What a kill in the middle of this leaves out would only run again."""
        packed = self.path.with_name(self.path.name + PACKED)
        if file.tell() == 0 and packed.is_file():
            content = _content(packed)
            _parse_lines(content, packed)  # refuses what cannot be gone on with
            file.write(content)
            file.flush()

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
        if not self.episodes or not path.is_file():
            self.write(path.name, self.config)
            return
        try:
            before = json.loads(path.read_text())
        except (ValueError, RecursionError):
            raise ResultsError(
                f'{path} is not readable JSON; restore it, or choose another --out'
            ) from None
        if not isinstance(before, dict):
            raise ResultsError(
                f'{path} must hold an object, got {shown(before)}; restore it, or choose another '
                '--out'
            )
        self._refuse_changes(before, self.config)

    def _check_episodes(self) -> None:
        """Also where config.json was lost: each episode knows under what it ran."""
        now = {**self.config_of_episode, 'task': self.config.get('task')}
        for record in self.episodes:
            if 'config' in record:
                self._refuse_changes({**record['config'], 'task': record['task']}, now)

    def _refuse_changes(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        changed = [
            f'{name} was {before.get(name)!r}, now {now.get(name)!r}'
            for name in sorted(set(before) | set(now))
            if before.get(name) != now.get(name)
        ]
        if changed:
            raise ResultsError(
                f'{self.folder} holds episodes of another configuration ({"; ".join(changed)}); '
                'choose another --out, or repeat the old settings'
            )


def write_whole(path: Path, text: str) -> None:
    """Whole or not at all: what was there before stays until all of the new text is written."""
    part = path.with_name(path.name + '.part')
    part.write_text(text)
    part.replace(path)


def to_json(value: Mapping[str, Any], indent: int | None = 2) -> str:
    """Strict JSON: NaN and infinity become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, str) or not isinstance(value, Iterable):
        return None if isinstance(value, float) and not math.isfinite(value) else value
    return [_finite(item) for item in value]
