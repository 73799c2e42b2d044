r"""Instruction and state -> token ids of pi0.5, without padding.

Two prompts are in use (openpi `models/tokenizer.py`, lerobot `policies/pi05/processor_pi05.py`):

- ``'text'``: BOS, the text, and a newline tokenised by itself. openpi's `pi05_libero` was trained
  so (discrete_state_input=False): it does not see the state at all.
- ``'state'``: ``Task: <text>, State: <integers>;\nAction: ``. Every other openpi pi0.5
  configuration, and everything from lerobot.

A checkpoint answers sensibly to the one it was trained with only, and openpi's do not say which.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from safe_pruner_ros.policies.policy import InstructionError

PromptForm = Literal['text', 'state']
PROMPT_FORMS: tuple[PromptForm, ...] = ('text', 'state')

N_STATE_BINS = 256

BOS = 2
# What tells PaliGemma's vocabulary from others with a <bos>: Gemma's 256000 entries, then 1024
# places and 128 codewords (big_vision 1475d53, configs/proj/paligemma/README.md; the first three:
# transformers, `convert_paligemma_weights_to_hf.py`). Files of that script have <image> after
# them, as 257152, for which pi0.5 has no embedding.
IDENTITY = {'<pad>': 0, '<eos>': 1, '<bos>': BOS, '<loc0000>': 256000, '<seg127>': 257151}


def prompt_form(name: str) -> PromptForm:
    """Raises ValueError for what is no form: the wrong one gives wrong actions, never an error."""
    for form in PROMPT_FORMS:
        if name == form:
            return form
    raise ValueError(
        f'prompt must be one of {list(PROMPT_FORMS)}, got {name!r}; no file of a checkpoint says '
        "which: 'text' for openpi's pi05_libero (discrete_state_input=False), 'state' for its "
        'other pi0.5 configurations and for everything from lerobot'
    )


def discretize(state: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """Normalised state [n] -> bins of 2 / 256 from -1 on: 0 to 255, and -1 for what lies below.

    Not clipped from below, as upstream: a state under its 1 % quantile was trained as "-1".
    """
    edges = np.linspace(-1, 1, N_STATE_BINS + 1)[:-1]
    return np.digitize(state, edges).astype(np.int64) - 1


class PromptEncoder:
    """``max_tokens`` is the longest prompt the checkpoint was trained with, ``vocabulary_size``
    the number of its embeddings."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        form: PromptForm,
        max_tokens: int = 200,
        vocabulary_size: int = 257152,
    ) -> None:
        self._tokenizer, self._vocabulary_size = tokenizer, vocabulary_size
        self.form, self._max_tokens = form, max_tokens

    def encode(
        self, instruction: str, state: npt.NDArray[np.floating] | None
    ) -> npt.NDArray[np.int64]:
        """Token ids [T]. ``state``: normalised, read by the form 'state' only.

        Raises InstructionError for an empty instruction, one with a token that has no embedding,
        or one that does not fit; upstream cuts it off instead, and a robot acts on half a
        sentence.
        """
        if self.form == 'text':
            ids = self._prompt(instruction)
        else:
            assert state is not None
            ids = self._prompt(instruction, discretize(state))
        if len(ids) > self._max_tokens:
            raise InstructionError(
                f'the prompt has {len(ids)} tokens, this policy reads {self._max_tokens}; '
                'shorten the instruction'
            )
        return np.array(ids, np.int64)

    def check(self, instruction: str, n_state: int) -> None:
        """Raises InstructionError unless the instruction fits whatever the ``n_state`` values of
        the state: what fits at rest must not hold the arms once a joint takes one more digit."""
        ids = self._prompt(instruction, [self._longest_bin] * n_state)
        if len(ids) > self._max_tokens:
            raise InstructionError(
                f'the prompt can grow to {len(ids)} tokens with the state, this policy reads '
                f'{self._max_tokens}; shorten the instruction'
            )

    @cached_property
    def _longest_bin(self) -> int:
        return max(range(-1, N_STATE_BINS), key=lambda value: len(self._ids(f' {value}')))

    def _prompt(self, instruction: str, bins: Iterable[int] = ()) -> list[int]:
        text = instruction.strip().replace('_', ' ').replace('\n', ' ')
        if not text:
            raise InstructionError('the instruction is empty; say for example "fold the towel"')
        if self.form == 'text':
            ids = [BOS, *self._ids(text), *self._ids('\n')]
        else:
            state = ' '.join(str(value) for value in bins)
            ids = [BOS, *self._ids(f'Task: {text}, State: {state};\nAction: ')]
        foreign = [self._tokenizer.id_to_token(i) for i in ids if i >= self._vocabulary_size]
        if foreign:
            raise InstructionError(
                f'the policy knows no {foreign}; leave it out of the instruction'
            )
        return ids

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def load_tokenizer(folder: Path) -> Tokenizer:
    """``tokenizer.json`` of PaliGemma. FileNotFoundError says where to get it, ValueError refuses
    another one: its words would be read as other words.

    The file may come with padding and truncation of whoever saved it. Padding would be read as
    words here, and truncation would cut the instruction without a word.
    """
    path = folder / 'tokenizer.json'
    if not path.is_file():
        hint = ''
        if (folder / 'tokenizer.model').is_file():
            hint = ' (tokenizer.model is there, but only the tokenizer.json format is read)'
        raise FileNotFoundError(
            f'no tokenizer at {path}{hint}; neither openpi nor lerobot put it into a checkpoint: '
            'copy tokenizer.json of google/paligemma-3b-pt-224 there'
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(f'{path} is not a readable tokenizer file: {error}') from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    found = {token: tokenizer.token_to_id(token) for token in IDENTITY}
    if found != IDENTITY:
        raise ValueError(
            f'{path} is not the tokenizer of PaliGemma: its ids are {found}, expected {IDENTITY}; '
            'copy tokenizer.json of google/paligemma-3b-pt-224 there'
        )
    return tokenizer
