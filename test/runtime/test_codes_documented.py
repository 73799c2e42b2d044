"""Who sees a code in /diagnostics finds it in docs/codes.md."""

from __future__ import annotations

import re
from pathlib import Path

from safe_pruner_ros.runtime.codes import Code
from safe_pruner_ros.runtime.command_guard import FAULT_CODES

CODES = Path(__file__).parents[2] / 'docs' / 'codes.md'


def test_every_code_has_one_entry() -> None:
    found = re.findall(r'^- \*\*`([A-Z_]+)`\*\* \(([^)]+)\):', CODES.read_text(), re.MULTILINE)
    names = [name for name, _ in found]
    assert sorted(names) == sorted(set(names)), 'an entry is there twice'
    assert {code.value for code in Code} - set(names) == set(), 'codes without an entry'
    faults = {name for name, effect in found if 'FAULT' in effect}
    assert {code.value for code in FAULT_CODES} <= faults
