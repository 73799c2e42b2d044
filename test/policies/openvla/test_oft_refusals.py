"""What OpenVLA-OFT refuses, before anything moves."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.openvla_oft import (
    HEAD,
    PROPRIO,
    observation,
    policy,
)
from safetensors.torch import load_file, save_file

from safe_pruner_ros.policies.action_layout import absolute
from safe_pruner_ros.policies.openvla.network import read_size
from safe_pruner_ros.policies.policy import InstructionError, PolicyOutputError
from safe_pruner_ros.types import ArmState

# -- what is refused ------------------------------------------------------------------------------


@pytest.fixture
def folder(openvla_tiny: SimpleNamespace, tmp_path: Path) -> Path:
    copy = tmp_path / 'checkpoint'
    shutil.copytree(openvla_tiny.oft, copy)
    return copy


def shard_with(folder: Path, key: str) -> Path:
    index = json.loads((folder / 'model.safetensors.index.json').read_text())
    return folder / index['weight_map'][key]


@pytest.mark.parametrize('key', ['projector.fc2.bias', 'language_model.model.norm.weight'])
def test_missing_and_unexpected_weights_are_named(
    openvla_tiny: SimpleNamespace, folder: Path, key: str
) -> None:
    shard = shard_with(folder, key)
    state = load_file(shard)
    state['vision_backbone.film.weight'] = state.pop(key)
    save_file(state, shard)
    with pytest.raises(ValueError, match=rf"missing \['{key}'\].*\['vision_backbone.film.weight"):
        policy(openvla_tiny, folder=folder)
    index_path = folder / 'model.safetensors.index.json'
    index = json.loads(index_path.read_text())
    index['weight_map']['vision_backbone.film.weight'] = index['weight_map'].pop(key)
    index_path.write_text(json.dumps(index))
    ours = {'projector.fc2.bias': 'vision.projector.fc2.bias'}.get(key, 'decoder.norm.weight')
    with pytest.raises(ValueError, match=rf"missing \['{ours}'\], unexpected .*film.weight"):
        policy(openvla_tiny, folder=folder)


def test_a_missing_or_truncated_shard_is_named(
    openvla_tiny: SimpleNamespace, folder: Path
) -> None:
    shard = folder / 'model-00002-of-00003.safetensors'
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match='00002-of-00003.safetensors is not a readable'):
        policy(openvla_tiny, folder=folder)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"misses the shards \['model-00002"):
        policy(openvla_tiny, folder=folder)


def test_two_sets_of_weights_are_not_chosen_between(
    openvla_tiny: SimpleNamespace, folder: Path
) -> None:
    """transformers would take the single file, which may be from another training."""
    state = {}
    for shard in sorted(folder.glob('model-*.safetensors')):
        state |= load_file(shard)
    save_file(state, folder / 'model.safetensors')
    with pytest.raises(
        ValueError, match=r"two sets of weights, model.safetensors and .* with \['model-00001"
    ):
        policy(openvla_tiny, folder=folder)
    index = {'weight_map': dict.fromkeys(state, 'model.safetensors')}  # some savers write it so
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
    policy(openvla_tiny, folder=folder)
    (folder / 'model.safetensors.index.json').unlink()
    policy(openvla_tiny, folder=folder)


def test_an_index_cannot_lead_out_of_its_folder(
    openvla_tiny: SimpleNamespace, folder: Path
) -> None:
    index_path = folder / 'model.safetensors.index.json'
    index = json.loads(index_path.read_text())
    index['weight_map']['projector.fc1.bias'] = '../other.safetensors'
    index_path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match='outside its folder'):
        policy(openvla_tiny, folder=folder)


def test_a_wrong_shape_is_named(openvla_tiny: SimpleNamespace, folder: Path) -> None:
    state = torch.load(folder / HEAD, weights_only=True)
    state['module.model.fc1.weight'] = torch.zeros(32, 3)
    torch.save(state, folder / HEAD)
    with pytest.raises(ValueError, match=r'model.fc1.weight is \[32, 3\], expected \[32, 224\]'):
        policy(openvla_tiny, folder=folder)


@pytest.mark.parametrize('name', [HEAD, PROPRIO])
def test_a_pickle_with_a_payload_is_refused_and_never_run(
    openvla_tiny: SimpleNamespace, folder: Path, name: str
) -> None:
    canary = folder / 'canary'

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return (Path.touch, (canary,))

    state = torch.load(folder / name, weights_only=True)
    torch.save({**state, 'payload': Payload()}, folder / name)
    with pytest.raises(ValueError, match='more than tensors'):
        policy(openvla_tiny, folder=folder)
    assert not canary.exists()


def test_a_truncated_head_is_refused(openvla_tiny: SimpleNamespace, folder: Path) -> None:
    for keep in (0, 10, 3000):
        data = (openvla_tiny.oft / HEAD).read_bytes()
        (folder / HEAD).write_bytes(data[:keep])
        with pytest.raises(ValueError, match=HEAD):
            policy(openvla_tiny, folder=folder)


def test_missing_files_are_named_with_the_next_move(
    openvla_tiny: SimpleNamespace, folder: Path
) -> None:
    for name, complaint in [
        ('tokenizer.json', 'tokenizer.json; take it from'),
        (HEAD, 'action_head--<step>_checkpoint.pt'),
        ('preprocessor_config.json', 'no preprocessor_config.json'),
        ('config.json', 'no config.json'),
    ]:
        saved = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=complaint):
            policy(openvla_tiny, folder=folder)
        (folder / name).write_bytes(saved)


def test_two_heads_and_foreign_variants_are_refused(
    openvla_tiny: SimpleNamespace, folder: Path
) -> None:
    second = folder / 'action_head--50000_checkpoint.pt'
    shutil.copy(folder / HEAD, second)
    with pytest.raises(ValueError, match='several action_head files'):
        policy(openvla_tiny, folder=folder)
    second.rename(folder / 'vision_backbone--50000_checkpoint.pt')
    with pytest.raises(ValueError, match='FiLM'):
        policy(openvla_tiny, folder=folder)


def test_missing_statistics_key_lists_those_there(openvla_tiny: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match=r"'bridge'; choose from \['libero_spatial_no_noops'\]"):
        policy(openvla_tiny, statistics_key='bridge')


def test_a_foreign_config_is_refused(openvla_tiny: SimpleNamespace, folder: Path) -> None:
    config = json.loads((folder / 'config.json').read_text())
    for change, complaint in [
        ({'model_type': 'llava'}, "model_type is 'llava'"),
        ({'vision_backbone_id': 'clip'}, r"'clip'; supported: \['tiny'\]"),
        ({'llm_backbone_id': 'vicuna-v15-7b'}, r"'vicuna-v15-7b'; supported: 'llama2-7b-pure'"),
    ]:
        (folder / 'config.json').write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=complaint):
            policy(openvla_tiny, folder=folder)


@pytest.mark.parametrize(
    ('change', 'complaint'),
    [
        ({'vision_backbone_id': ['tiny']}, r"vision_backbone_id \['tiny'\]; supported"),
        ({'vision_backbone_id': None}, 'vision_backbone_id None; supported'),
        ({'llm_backbone_id': ['llama2-7b-pure']}, r"llm_backbone_id \['llama2"),
        ({'text_config': [1]}, r'text_config must be an object, got \[1\]'),
        ({'text_config': {'hidden_size': '32'}}, 'text_config does not .*expected int, got str'),
        ({'text_config': {'num_attention_heads': 0}}, 'text_config does not describe a Llama'),
        ({'n_action_bins': 0}, 'n_action_bins must be a whole number of at least 2, got 0'),
        ({'n_action_bins': -3}, 'at least 2, got -3'),
        ({'n_action_bins': '256'}, "at least 2, got '256'"),
        ({'n_action_bins': None}, 'at least 2, got None'),
        ({'n_action_bins': 32000}, 'n_action_bins do not fit below pad_to_multiple_of 64'),
        ({'pad_to_multiple_of': 40000}, 'fit below pad_to_multiple_of 40000 in a .* of 32064'),
        ({'pad_to_multiple_of': 64.0}, 'pad_to_multiple_of must be a whole number .* got 64.0'),
    ],
)
def test_a_malformed_config_is_refused(
    openvla_tiny: SimpleNamespace, change: dict[str, object], complaint: str
) -> None:
    config = json.loads((openvla_tiny.oft / 'config.json').read_text())
    assert read_size(openvla_tiny.oft, config, openvla_tiny.vision_sizes).vocabulary == 32000
    with pytest.raises(ValueError, match=complaint):
        read_size(openvla_tiny.oft, {**config, **change}, openvla_tiny.vision_sizes)


def test_a_robot_of_another_size_is_refused_with_both_sides_named(
    openvla_tiny: SimpleNamespace,
) -> None:
    with pytest.raises(ValueError, match=r"7 dimensions.* drives 3 joints \['a', 'b', 'c'\]"):
        policy(openvla_tiny, actions=absolute('abc'), proprioception=())
    with pytest.raises(ValueError, match='reads 7 numbers of proprioception.*names 2 joints'):
        policy(openvla_tiny, proprioception=('a', 'b'))
    with pytest.raises(ValueError, match='reads 1 to 3 images'):
        policy(openvla_tiny, views=('a', 'b', 'c', 'd'))


def test_proprioception_is_optional_but_never_ignored(
    openvla_tiny: SimpleNamespace, folder: Path
) -> None:
    (folder / PROPRIO).unlink()
    with pytest.raises(ValueError, match='no proprioception projector'):
        policy(openvla_tiny, folder=folder)
    without = policy(openvla_tiny, folder=folder, proprioception=())
    assert np.isfinite(without.predict(observation()).chunk.positions).all()


def test_bad_observations_are_refused(openvla_tiny: SimpleNamespace) -> None:
    tested, seen = policy(openvla_tiny), observation()
    with pytest.raises(InstructionError, match='empty'):
        tested.check_instruction(' \n')
    with pytest.raises(InstructionError, match='say it shorter'):
        tested.predict(replace(seen, instruction='pick ' * 500))
    with pytest.raises(ValueError, match=r"misses \['wrist'\]"):
        tested.predict(observation(views=('head',)))
    with pytest.raises(ValueError, match=r"no measured position of \['b', 'c'"):
        tested.predict(replace(seen, state=ArmState(np.zeros(1), ('a',), 7)))


def test_a_failed_step_leaves_no_keyframe_behind(openvla_tiny: SimpleNamespace) -> None:
    tested = policy(openvla_tiny)
    bias = tested.model.head.model.fc2.bias
    saved = bias.clone()
    bias.fill_(float('nan'))
    with pytest.raises(PolicyOutputError, match='NaN'):
        tested.predict(observation())
    bias.copy_(saved)
    assert tested.predict(observation()).trace.keyframe_reason == 'first step'
