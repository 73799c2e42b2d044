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
    known = {code.value for code in Code}
    assert sorted(names) == sorted(set(names)), 'an entry is there twice'
    assert known - set(names) == set(), 'codes without an entry'
    assert set(names) - known == set(), 'entries of codes that are gone'
    faults = {name for name, effect in found if 'FAULT' in effect}
    assert faults == {code.value for code in FAULT_CODES}
