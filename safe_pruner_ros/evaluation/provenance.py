"""Where a number comes from: which command, code, weights and machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open


def run_facts() -> dict[str, Any]:
    """Date, command line, commit and machine of this process, for the record it writes."""
    return {
        'date': datetime.now(timezone.utc).isoformat(timespec='seconds'),
        'command': shlex.join(['safe-pruner', *sys.argv[1:]]),
        'commit': git_commit(),
        'machine': machine(),
    }


def git_commit(folder: Path | None = None) -> str:
    """Commit of the source tree, '+dirty' with uncommitted changes; 'unknown' outside git."""
    folder = folder or Path(__file__).resolve().parent
    commit = _git(folder, 'rev-parse', 'HEAD')
    if not commit:
        return 'unknown'
    changed = _git(folder, 'status', '--porcelain', '--untracked-files=no')
    return commit[:12] + ('+dirty' if changed else '')


def _git(folder: Path, *arguments: str) -> str:
    command = ['git', '-C', str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ''
    return done.stdout.strip() if done.returncode == 0 else ''


def file_sha256(path: Path) -> str:
    """First 16 hex digits of a file's SHA-256."""
    found = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(1 << 22):
            found.update(block)
    return found.hexdigest()[:16]


def folder_sha256(folder: Path) -> str:
    """The same of a folder: names and contents of all files in it, but for hidden ones, which
    tools leave there. Two models trained into one place, one after the other, differ."""
    names = sorted(path.relative_to(folder) for path in folder.rglob('*') if path.is_file())
    manifest = [
        [name.as_posix(), file_sha256(folder / name)]
        for name in names
        if not any(part.startswith('.') for part in name.parts)
    ]
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()[:16]


def training_seed(checkpoint: Path) -> int | None:
    """The seed an embedded policy was trained with, from its metadata; None where it says none."""
    try:
        with safe_open(checkpoint, framework='numpy') as file:
            recipe = json.loads((file.metadata() or {}).get('recipe', '{}'))
        return int(recipe['seed'])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None


def machine() -> dict[str, str | int]:
    """What a latency depends on beside the code."""
    return {
        'cpu': _cpu_model(),
        'cores': os.cpu_count() or 0,
        'system': f'{platform.system()} {platform.release()}',
        'python': platform.python_version(),
        **{name: _version(name) for name in ('torch', 'transformers', 'mujoco', 'numpy')},
    }


def _cpu_model() -> str:
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
