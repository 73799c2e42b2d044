"""Prompts of pi0.5: their forms, what fits, and what a tokenizer file may not change."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.pi05_folder import characters
from helpers.tiny_pi05 import TINY_PI05
from helpers.tokenizer_file import move_token

from safe_pruner_ros.policies.action_layout import absolute
from safe_pruner_ros.policies.action_statistics import Range
from safe_pruner_ros.policies.deployment import Deployment
from safe_pruner_ros.policies.pi05.files import Pi05Files
from safe_pruner_ros.policies.pi05.model import Pi05
from safe_pruner_ros.policies.pi05.policy import Pi05Policy
from safe_pruner_ros.policies.pi05.prompt import (
    PromptEncoder,
    discretize,
    load_tokenizer,
    prompt_form,
)
from safe_pruner_ros.policies.pi05.statistics import Statistics
from safe_pruner_ros.policies.policy import InstructionError

ROBOT = Deployment(('head',), absolute('abc'), '', 0.1, 2, prompt='state')


def test_prompt_forms():
    tokenizer = characters()
    state = np.array([-1.01, -1.0, 0.0, 0.999, 7.0])
    assert discretize(state).tolist() == [-1, 0, 128, 255, 255]
    ids = PromptEncoder(tokenizer, 'state').encode(' pick_the\ncup ', state[1:3])
    assert ids[0] == 2
    text = ''.join(tokenizer.id_to_token(i) for i in ids[1:])
    assert text == 'Task: pick the cup, State: 0 128;\nAction: '
    ids = PromptEncoder(tokenizer, 'text').encode('pick', None)
    assert ''.join(tokenizer.id_to_token(i) for i in ids) == '<bos>pick\n'
    with pytest.raises(InstructionError, match='empty'):
        PromptEncoder(tokenizer, 'text').encode(' \n', None)
    with pytest.raises(InstructionError, match='7 tokens, this policy reads 6'):
        PromptEncoder(tokenizer, 'text', 6).encode('push!', None)


def test_a_prompt_form_must_be_said():
    for name in ('', 'openpi'):
        with pytest.raises(ValueError, match=f'got {name!r}; no file of a checkpoint says'):
            prompt_form(name)


def test_a_lerobot_checkpoint_has_the_state_in_its_prompt(tmp_path):
    characters().save(str(tmp_path / 'tokenizer.json'))

    def form(prompt: str, **config: object) -> str:
        (tmp_path / 'config.json').write_text(json.dumps({'chunk_size': 3, **config}))
        return Pi05Files(tmp_path, replace(ROBOT, prompt=prompt)).prompt.form

    assert (form('text'), form('state')) == ('text', 'state')
    assert form('state', type='pi05') == 'state'
    with pytest.raises(ValueError, match=r"from lerobot.*always hold.*'text'; set prompt: state"):
        form('text', type='pi05')


@pytest.mark.parametrize(('padded_to', 'n_state'), [(0, 3), (5, 5)])
def test_an_instruction_that_passes_fits_every_state(padded_to, n_state):
    """At rest the state here takes one digit a joint, in motion up to three."""
    unit = Range(np.zeros(3), np.ones(3), np.ones(3, bool))
    robot = replace(ROBOT, prompt_state_dim=padded_to)
    around = len('Task: , State: ;\nAction: ') + 1 + 4 * n_state - 1  # BOS, three digits, spaces
    prompt = PromptEncoder(characters(), 'state', around + 20)
    tested = Pi05Policy(Pi05(TINY_PI05), prompt, Statistics(unit, unit), robot, 'unpruned')
    assert len(prompt.encode('x' * 22, np.full(n_state, -1.0))) < around + 20
    with pytest.raises(InstructionError, match=rf'can grow to {around + 21} tokens.*; shorten'):
        tested.check_instruction('x' * 21)
    tested.check_instruction('x' * 20)
    rng = np.random.default_rng(0)
    states = [np.full(3, value) for value in (-9.0, 0.0, 1.0, 9.0)]
    for positions in [*states, *rng.uniform(-0.5, 1.5, (50, 3))]:
        prompt.encode('x' * 20, tested._prompt_state(positions))
    with pytest.raises(InstructionError, match='empty'):
        tested.check_instruction(' \n')


@pytest.mark.parametrize('saved_with', ['padding', 'truncation', 'both'])
def test_what_a_tokenizer_was_saved_with_changes_no_prompt(tmp_path, saved_with):
    plain, saved = characters(), characters()
    if saved_with != 'truncation':
        saved.enable_padding(length=64, pad_id=0, pad_token='<pad>')
    if saved_with != 'padding':
        saved.enable_truncation(8)
    saved.save(str(tmp_path / 'tokenizer.json'))
    state = np.array([0.5, -0.5])
    for form in ('text', 'state'):
        expected = PromptEncoder(plain, form).encode('pick the cup', state)
        ids = PromptEncoder(load_tokenizer(tmp_path), form).encode('pick the cup', state)
        assert ids.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ('token', 'id_there'), [('<bos>', None), ('<bos>', 1000), ('<loc0000>', None), ('<pad>', 999)]
)
def test_another_tokenizer_is_refused(tmp_path, token, id_there):
    """Gemma's has no places; what merely has a <bos> gave prompts, and words for other words."""
    path = tmp_path / 'tokenizer.json'
    characters().save(str(path))
    move_token(path, token, id_there)
    complaint = f"not the tokenizer of PaliGemma: .*'{token}': {id_there}.* expected .*; copy tok"
    with pytest.raises(ValueError, match=complaint):
        load_tokenizer(tmp_path)


def test_a_token_without_an_embedding_is_no_word(tmp_path):
    """transformers adds <image> behind PaliGemma's last word; on a GPU it would end the node."""
    content = json.loads(characters().to_str())
    content['model']['vocab']['<image>'] = 257152
    flags = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False)
    content['added_tokens'] = [{'id': 257152, 'content': '<image>', 'special': True, **flags}]
    (tmp_path / 'tokenizer.json').write_text(json.dumps(content))
    for form in ('text', 'state'):
        prompt = PromptEncoder(load_tokenizer(tmp_path), form)
        prompt.check('look', 1)
        for instruction in ('look <image>', '<image>'):
            with pytest.raises(InstructionError, match=r"knows no \['<image>'\]; leave it out"):
                prompt.check(instruction, 1)
