"""Which code a record is of."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from safe_pruner_ros.runtime import code_and_machine
from safe_pruner_ros.runtime.code_and_machine import code_commit, git_commit


@pytest.fixture(autouse=True)
def unasked() -> Iterator[None]:
    code_commit.cache_clear()
    yield
    code_commit.cache_clear()


def commit(folder: Path, text: str) -> None:
    (folder / 'file').write_text(text)
    git = ['git', '-C', str(folder), '-c', 'user.name=a', '-c', 'user.email=a@b']
    for command in (['init', '--quiet'], ['add', '.'], ['commit', '--quiet', '-m', text]):
        subprocess.run([*git, *command], check=True)


def test_what_is_committed_later_is_not_the_code_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_and_machine, 'git_commit', lambda: git_commit(tmp_path))
    commit(tmp_path, 'first')
    first = code_commit()
    assert len(first) == 12 and first == git_commit(tmp_path)
    (tmp_path / 'file').write_text('changed')
    assert git_commit(tmp_path) == f'{first}+dirty'
    commit(tmp_path, 'second')
    assert code_commit() == first != git_commit(tmp_path)
