"""What may be an instruction. Refusing is safe: without an instruction the arms hold."""

from __future__ import annotations

import unicodedata

from safe_pruner_ros.runtime.codes import Code, Reason

# Unicode categories no sentence needs: control, surrogate (broken UTF-8), private, unassigned.
_REFUSED_CATEGORIES = {'Cc', 'Cs', 'Co', 'Cn'}


def clean_instruction(text: str, max_chars: int) -> str | Reason:
    """``text`` with spaces collapsed and invisible format characters removed, or why not."""
    if len(text) > max_chars:
        return Reason(
            Code.INSTRUCTION_REFUSED,
            f'the instruction has {len(text)} characters, at most {max_chars} are accepted; '
            f'shorten it',
        )
    text = ' '.join(text.split())
    text = ''.join(char for char in text if unicodedata.category(char) != 'Cf')
    found = {char for char in text if unicodedata.category(char) in _REFUSED_CATEGORIES}
    bad = sorted(f'U+{ord(char):04X}' for char in found)
    if bad:
        return Reason(
            Code.INSTRUCTION_REFUSED,
            f'the instruction has characters that cannot be printed: {bad[:5]}; send plain UTF-8',
        )
    text = unicodedata.normalize('NFC', text).strip()
    if not text:
        return Reason(
            Code.INSTRUCTION_EMPTY,
            'the instruction is empty; send a sentence such as "put the red block in the tray"',
        )
    return text
