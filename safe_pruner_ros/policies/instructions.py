"""Instruction -> word ids of the embedded policy. Unknown words are refused, never guessed."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from safe_pruner_ros.policies.embedded_model import EmbeddedConfig
from safe_pruner_ros.policies.policy import InstructionError


def encode_words(instruction: str, config: EmbeddedConfig) -> npt.NDArray[np.int64]:
    """Word ids [max_words], padded with 0. Case, punctuation and spacing do not matter.

    Raises InstructionError for an empty or too long instruction and for words that the policy was
    never trained on: acting on half an instruction moves an arm to the wrong object.
    """
    words = re.findall(r'[^\W_]+', instruction.lower())
    if not words:
        raise InstructionError(
            'the instruction is empty; say for example "put the red block in the tray"'
        )
    if len(words) > config.max_words:
        raise InstructionError(
            f'the instruction has {len(words)} words, the policy reads {config.max_words}; '
            f'shorten it'
        )
    lookup = {word: index for index, word in enumerate(config.vocabulary)}
    unknown = [word for word in words if word not in lookup]
    if unknown:
        raise InstructionError(
            f'the embedded policy does not know {unknown}; its words are '
            f'{sorted(config.vocabulary[1:])}'
        )
    ids = np.zeros(config.max_words, np.int64)
    ids[: len(words)] = [lookup[word] for word in words]
    return ids
