"""Prompts and units against what upstream's own code made of the same text, state and actions.

pi0.5: `PaligemmaTokenizer`, `Normalize`, `Unnormalize` and `AbsoluteActions` of openpi 15a9616;
`Pi05PrepareStateTokenizerProcessorStep` and `NormalizerProcessorStep` of lerobot 7427f31. Its real
tokenizer was not to be had, so one token stands for each character: what is compared is the text,
its beginning and the newline that is a token of its own.

OpenVLA: transformers 4.40.1's LlamaTokenizerFast on Llama-2's sentencepiece model and the lines of
openvla c8f03f4 that build the prompt and append 29871.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE

from safe_pruner_ros.policies.action_layout import ActionDimension, ActionLayout
from safe_pruner_ros.policies.action_statistics import read_range
from safe_pruner_ros.policies.openvla.prompt import read_prompt_encoder
from safe_pruner_ros.policies.pi05.prompt import PromptEncoder
from safe_pruner_ros.policies.pi05.statistics import OPENPI_EPSILON

CHARACTERS = ['<pad>', '<eos>', '<bos>', '\n', *map(chr, range(32, 127))]


@pytest.mark.parametrize(
    ('framework', 'form'), [('openpi', 'text'), ('openpi', 'state'), ('lerobot', 'state')]
)
def test_pi05_prompts(golden: SimpleNamespace, framework: str, form: str) -> None:
    stored = golden.read_json('pi05_text')
    tokenizer = Tokenizer(BPE(vocab={name: i for i, name in enumerate(CHARACTERS)}, merges=[]))
    encoder = PromptEncoder(tokenizer, form)
    theirs = stored[framework]
    for index, text in enumerate(stored['prompts']):
        ids = encoder.encode(text, np.array(theirs['normalised'][index]))
        assert ids.tolist() == theirs[form][index], text


@pytest.mark.parametrize('framework', ['openpi', 'lerobot'])
def test_pi05_units(golden: SimpleNamespace, framework: str) -> None:
    """State to prompt values, which may leave [-1, 1], and network output to actions; and actions
    that count from the state, the last one a gripper that does not."""
    stored = golden.read_json('pi05_text')
    epsilon = OPENPI_EPSILON if framework == 'openpi' else 0.0
    ranges = {name: read_range(stored['stats'], name, 'q99', epsilon) for name in stored['stats']}
    states, theirs = np.array(stored['states']), stored[framework]
    normalised = ranges['state'].normalise(states, clip=False)
    np.testing.assert_allclose(normalised, theirs['normalised'], rtol=1e-12)
    assert np.abs(normalised).max() > 5
    raw = golden.uniform('raw actions', (6, 12))[:, :7] * 1.5
    actions = ranges['actions'].unnormalise(raw)
    np.testing.assert_allclose(actions, theirs['actions'], rtol=1e-12)
    if framework == 'openpi':
        joints = [ActionDimension(str(index), 'delta_from_state') for index in range(6)]
        layout = ActionLayout((*joints, ActionDimension('gripper')))
        targets = layout.targets(actions, states[0])
        np.testing.assert_allclose(targets, theirs['absolute'], rtol=1e-12)


@pytest.mark.weights
def test_openvla_prompts(golden: SimpleNamespace) -> None:
    folder = os.environ.get('OPENVLA_CHECKPOINT')
    if not folder:
        pytest.skip('set OPENVLA_CHECKPOINT to a folder with the official tokenizer.json')
    encode = read_prompt_encoder(Path(folder))
    for task, ids in golden.read_json('openvla_prompts').items():
        assert list(encode(task)) == ids, task
