"""The tokenizer of OpenVLA, OpenVLA-OFT and CogACT: whose it is, and what its file must not do."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.tokenizer_file import move_token
from tokenizers import Tokenizer

from safe_pruner_ros.policies.openvla.prompt import read_prompt_encoder

TASK = 'pick up the red block'


@pytest.fixture
def folder(openvla_tiny: SimpleNamespace, tmp_path: Path) -> Path:
    shutil.copy(openvla_tiny.oft / 'tokenizer.json', tmp_path)
    return tmp_path


def test_saved_padding_and_truncation_do_not_reach_the_prompt(folder: Path) -> None:
    expected = read_prompt_encoder(folder)(TASK)
    assert len(expected) == 19 and expected[-1] == 29871
    path = str(folder / 'tokenizer.json')
    tokenizer = Tokenizer.from_file(path)
    tokenizer.enable_padding(length=40, pad_id=0, pad_token='<unk>')
    tokenizer.save(path)
    assert read_prompt_encoder(folder)(TASK) == expected
    tokenizer.no_padding()
    tokenizer.enable_truncation(8)
    tokenizer.save(path)
    assert read_prompt_encoder(folder)(TASK) == expected
    assert len(tokenizer.encode(TASK * 4).ids) == 8  # the file does cut


@pytest.mark.parametrize(
    ('token', 'id_there'), [('<s>', 7), ('</s>', None), ('▁', 28705), ('▁', None)]
)
def test_another_tokenizer_is_refused(folder: Path, token: str, id_there: int | None) -> None:
    move_token(folder / 'tokenizer.json', token, id_there)
    complaint = (
        f"not the tokenizer of OpenVLA and CogACT .*'{token}': {id_there}.* expected .*"
        'take it from an official OpenVLA checkpoint'
    )
    with pytest.raises(ValueError, match=complaint):
        read_prompt_encoder(folder)
