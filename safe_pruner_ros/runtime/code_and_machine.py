"""Which code a record was made by, and on which machine."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path


def git_commit(folder: Path | None = None) -> str:
    """Commit of the source tree, '+dirty' with uncommitted changes; 'unknown' outside git."""
    folder = folder or Path(__file__).resolve().parent
    commit = _git(folder, 'rev-parse', 'HEAD')
    if not commit:
        return 'unknown'
    changed = _git(folder, 'status', '--porcelain', '--untracked-files=no')
    return commit[:12] + ('+dirty' if changed else '')


@cache
def code_commit() -> str:
    """`git_commit` when this process first asked: what is committed later was not imported."""
    return git_commit()


def _git(folder: Path, *arguments: str) -> str:
    command = ['git', '-C', str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ''
    return done.stdout.strip() if done.returncode == 0 else ''


def machine() -> dict[str, str | int]:
    """What a latency depends on beside the code."""
    return {
        'cpu': cpu_model(),
        'cores': os.cpu_count() or 0,
        'system': f'{platform.system()} {platform.release()}',
        'python': platform.python_version(),
        **{name: _version(name) for name in ('torch', 'transformers', 'mujoco', 'numpy')},
    }


@cache
def cpu_model() -> str:
    """As the system names it, '' where it does not."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ''
