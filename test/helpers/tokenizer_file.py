"""A tokenizer.json that is nearly the right one."""

from __future__ import annotations

import json
from pathlib import Path


def move_token(path: Path, token: str, id_there: int | None) -> None:
    """Call what had ``token``'s id '<other>', and give ``token`` another id; None: it is gone."""
    content = json.loads(path.read_text())
    vocabulary = content['model']['vocab']
    vocabulary['<other>'] = vocabulary.pop(token)
    if id_there is not None:
        vocabulary[token] = id_there
    path.write_text(json.dumps(content))
