"""Where a number comes from: which command, code, weights and machine."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from safe_pruner_ros.runtime.code_and_machine import git_commit, machine


def run_facts() -> dict[str, Any]:
    """Date, command line, commit and machine of this process, for the record it writes."""
    return {
        'date': datetime.now(timezone.utc).isoformat(timespec='seconds'),
        'command': shlex.join(['safe-pruner', *sys.argv[1:]]),
        'commit': git_commit(),
        'machine': machine(),
    }


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
