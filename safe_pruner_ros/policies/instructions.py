"""Instruction -> word ids of the embedded policy. What it was not trained on is refused, never
guessed."""

from __future__ import annotations

import difflib
import re

import numpy as np
import numpy.typing as npt

from safe_pruner_ros.policies.embedded_model import EmbeddedConfig
from safe_pruner_ros.policies.policy import InstructionError


def encode_words(instruction: str, config: EmbeddedConfig) -> npt.NDArray[np.int64]:
    """Word ids [max_words], padded with 0. Case, punctuation and spacing do not matter.

    Raises InstructionError for an empty or too long instruction, for words that the policy was
    never trained on, and for known words in a sentence that is none of its tasks': acting on half
    an instruction moves an arm to the wrong object.
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
    sentence = ' '.join(words)
    if config.tasks and sentence not in config.sentences:
        near = difflib.get_close_matches(sentence, sorted(config.sentences), n=3, cutoff=0.0)
        raise InstructionError(
            f'the embedded policy was never trained on {sentence!r}; the nearest of its sentences '
            f'are {near}. Its tasks are {[task.name for task in config.tasks]}'
        )
    ids = np.zeros(config.max_words, np.int64)
    ids[: len(words)] = [lookup[word] for word in words]
    return ids
