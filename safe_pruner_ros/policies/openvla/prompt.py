"""Instruction -> token ids, as OpenVLA and OpenVLA-OFT were trained."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from safe_pruner_ros.policies.policy import InstructionError

BOS, EOS = 1, 2
EMPTY_WORD = 29871  # Llama's lone space; every training prompt ends with it
# What is fed by number must mean what it meant in training; another vocabulary of 32000 tokens
# fits the network as well.
IDENTITY = {'<s>': BOS, '</s>': EOS, '▁': EMPTY_WORD}
MAX_PROMPT_TOKENS = 256  # an instruction this long is no task of any training set


class PromptEncoder:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, instruction: str) -> tuple[int, ...]:
        """[BOS, prompt .., 29871], T ids. Raises InstructionError."""
        task = instruction.strip()
        if not task:
            raise InstructionError('the instruction is empty; say what the robot is to do')
        prompt = f'In: What action should the robot take to {task.lower()}?\nOut:'
        ids = self._tokenizer.encode(prompt, add_special_tokens=False).ids
        if len(ids) > MAX_PROMPT_TOKENS:
            raise InstructionError(
                f'the prompt has {len(ids)} tokens, more than {MAX_PROMPT_TOKENS}; say it shorter'
            )
        end = () if ids[-1] == EMPTY_WORD else (EMPTY_WORD,)
        return (BOS, *ids, *end)


def read_prompt_encoder(folder: Path) -> PromptEncoder:
    """From tokenizer.json. Raises FileNotFoundError, or ValueError for a file that is none or not
    Llama-2's."""
    path = folder / 'tokenizer.json'
    if not path.is_file():
        raise FileNotFoundError(
            f'{folder} has no tokenizer.json; take it from an official OpenVLA checkpoint (all '
            'share one)'
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ValueError(f'{path} is not a readable tokenizer: {error}') from error
    # A training run saves what it batched with: padding would be read as words, and truncation
    # would cut the instruction in silence.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    found = {token: tokenizer.token_to_id(token) for token in IDENTITY}
    if found != IDENTITY:
        raise ValueError(
            f'{path} is not the tokenizer of OpenVLA and CogACT (Llama-2): its ids are {found}, '
            f'expected {IDENTITY}; take it from an official OpenVLA checkpoint (all share one)'
        )
    return PromptEncoder(tokenizer)
