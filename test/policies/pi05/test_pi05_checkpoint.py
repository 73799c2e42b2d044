"""Folders as openpi and lerobot leave them: loaded strictly, and refused with the next move."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pi05_folder import LEROBOT_MODES, SHARED, official, write
from helpers.tiny_pi05 import TINY_PI05
from safetensors.torch import load_file, save_file

from safe_pruner_ros.policies.action_layout import ActionDimension, ActionLayout, absolute
from safe_pruner_ros.policies.catalog import build_policy
from safe_pruner_ros.policies.deployment import Deployment
from safe_pruner_ros.policies.pi05.checkpoint import load_model, needed_memory, read_config
from safe_pruner_ros.policies.pi05.config import Pi05Config
from safe_pruner_ros.policies.pi05.model import Pi05
from safe_pruner_ros.policies.pi05.policy import backend
from safe_pruner_ros.types import ArmState, CameraImage, Observation

ROBOT = Deployment(
    ('head',),
    ActionLayout(
        (ActionDimension('a', 'delta_from_state'), ActionDimension('grip', gripper=True)),
    ),
    '',
    0.05,
    2,
    prompt='state',
)


@pytest.fixture(scope='module')
def model() -> Pi05:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return Pi05(TINY_PI05).eval()


# -- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize('layout', ['openpi', 'lerobot'])
def test_both_layouts_load_and_act(tmp_path, model, layout):
    folder = write(tmp_path, model, layout)
    loaded = load_model(folder, TINY_PI05)
    own = model.state_dict()
    assert set(loaded.state_dict()) == set(own)
    assert all(torch.equal(own[name], value) for name, value in loaded.state_dict().items())
    assert not [n for n, b in loaded.named_buffers() if b.device.type == 'meta']

    tested = backend.build(folder, ROBOT, 'fastv', {'pruning_layer': 2}, base=TINY_PI05)
    assert tested.spec.joint_names == ('a', 'grip') and tested.spec.chunk_size == 3
    image = CameraImage(np.full((40, 30, 3), 90, np.uint8), 'head', 5)
    state = ArmState(np.array([0.3, 0.5]), ('a', 'grip'), 5)
    output = tested.predict(Observation({'head': image}, state, 'open it', 5))
    assert output.chunk.positions.shape == (3, 2) and output.trace.n_retained == 1
    assert np.isfinite(output.chunk.positions).all()


def test_bfloat16_acts_alike_and_keeps_its_frequencies_exact(tmp_path, model):
    folder = write(tmp_path, model)
    image = CameraImage(np.full((28, 28, 3), 90, np.uint8), 'head', 5)
    seen = Observation(
        {'head': image}, ArmState(np.array([0.3, 0.5]), ('a', 'grip'), 5), 'open it', 5
    )
    chunks = []
    for dtype in ('float32', 'bfloat16'):
        robot = replace(ROBOT, dtype=dtype)
        tested = backend.build(folder, robot, 'safe_pruner', {'pruning_layer': 2}, base=TINY_PI05)
        assert tested.model.projector.weight.dtype == getattr(torch, dtype)
        assert tested.model.language_model.rotary_emb.inv_freq.dtype == torch.float32
        chunks.append(tested.predict(seen).chunk.positions)
        tested.predict(seen)
    np.testing.assert_allclose(*chunks, atol=0.1)


def test_norms_stay_float32_as_upstream_has_them(tmp_path, model):
    """With the maps that set the expert's: what the times do to it is then exact."""
    loaded = load_model(write(tmp_path, model), TINY_PI05, dtype=torch.bfloat16)
    exact = {name for name, w in loaded.named_parameters() if w.dtype == torch.float32}
    layers = ('language_model.layers.0.', 'expert.layers.3.')
    for name in ('input_layernorm', 'post_attention_layernorm'):
        assert any(w.startswith(layers[0] + name) for w in exact)
        assert any(w.startswith(layers[1] + name) and 'dense' in w for w in exact)
    assert {'language_model.norm.weight', 'expert.norm.dense.weight'} <= exact
    assert not [name for name in exact if 'self_attn' in name or 'mlp.' in name]
    assert not [name for name in exact if name.startswith(('vision_tower', 'projector'))]
    with torch.inference_mode():
        assert torch.equal(loaded.modulations(), model.modulations())
    n_bytes = sum(w.numel() * w.element_size() for w in loaded.parameters())
    assert needed_memory(loaded, torch.device('cpu'), torch.bfloat16) == n_bytes


def test_full_size_has_the_parameters_of_pi05():
    with torch.device('meta'):
        network = Pi05(Pi05Config())
    count = {
        name: sum(value.numel() for value in part.parameters()) / 1e9
        for name, part in network.named_children()
    }
    assert round(count['vision_tower'], 3) == 0.412
    assert round(count['language_model'], 3) == 2.509  # 1.982 layers + 0.527 embedding
    assert round(count['expert'], 3) == 0.428  # 0.311 layers + 0.117 adaRMS
    assert round(sum(count.values()), 3) == 3.353


def test_too_little_gpu_memory_is_told_before_loading(tmp_path, model, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (1000, 2000))
    with pytest.raises(ValueError, match=r'needs 0\.50 GB on cuda as bfloat16, 0\.00 GB'):
        load_model(write(tmp_path, model), TINY_PI05, 'cuda', torch.bfloat16)


def test_constants_are_those_of_a_fresh_network(tmp_path, model):
    loaded = load_model(write(tmp_path, model), TINY_PI05)
    buffers = dict(loaded.named_buffers())
    for name, value in model.named_buffers():
        assert torch.equal(buffers[name], value), name


def test_the_untied_embedding_and_flat_vision_names_load_too(tmp_path, model):
    folder = write(tmp_path, model)
    state = official(model)
    embedding = state[f'{SHARED}paligemma.lm_head.weight']
    state[f'{SHARED}paligemma.model.language_model.embed_tokens.weight'] = embedding.clone()
    flat = {
        name.replace('vision_tower.vision_model.', 'vision_tower.'): v for name, v in state.items()
    }
    save_file(flat, folder / 'model.safetensors')
    loaded = load_model(folder, TINY_PI05)
    assert torch.equal(loaded.language_model.embed_tokens.weight, embedding)


@pytest.mark.parametrize('keep', [0, 7, 0.5, 0.99])
def test_truncated_weights_are_refused(tmp_path, model, keep):
    path = write(tmp_path, model) / 'model.safetensors'
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep >= 1 or keep == 0 else keep * len(data))])
    with pytest.raises(ValueError, match='not a readable safetensors file'):
        load_model(tmp_path, TINY_PI05)


def test_foreign_weights_are_refused_by_name(tmp_path, model):
    path = write(tmp_path, model) / 'model.safetensors'
    state = load_file(path)
    pi0 = {name.replace('time_mlp_in', 'action_time_mlp_in'): v for name, v in state.items()}
    save_file(pi0, path)
    with pytest.raises(ValueError, match=r"missing \['time_mlp_in.bias', 'time_mlp_in.weight'\]"):
        load_model(tmp_path, TINY_PI05)
    with pytest.raises(ValueError, match=r"unexpected \['action_time_mlp_in.bias'"):
        load_model(tmp_path, TINY_PI05)
    save_file({**state, 'action_in_proj.bias': torch.zeros(5)}, path)
    with pytest.raises(ValueError, match=r'action_in_proj.bias is \[5\], expected \[8\]'):
        load_model(tmp_path, TINY_PI05)
    poisoned = torch.full_like(state['action_in_proj.bias'], float('nan'))
    save_file({**state, 'action_in_proj.bias': poisoned}, path)
    with pytest.raises(ValueError, match=r"NaN or infinite weights in \['action_in_proj.bias'\]"):
        load_model(tmp_path, TINY_PI05)


def test_a_pickle_is_refused_and_never_run(tmp_path, model):
    canary = tmp_path / 'canary'

    class Payload:
        def __reduce__(self):
            return (Path.touch, (canary,))

    torch.save(Payload(), write(tmp_path, model) / 'model.safetensors')
    with pytest.raises(ValueError, match='not a readable safetensors file'):
        load_model(tmp_path, TINY_PI05)
    assert not canary.exists()


def test_config_errors_name_the_entry(tmp_path):
    with pytest.raises(FileNotFoundError, match='no config.json'):
        read_config(tmp_path)
    path = tmp_path / 'config.json'
    for values, complaint in (
        ({'type': 'pi0'}, "'pi0' policy"),
        ({'paligemma_variant': 'gemma_9b'}, 'gemma_9b'),
        ({'normalization_mapping': {**LEROBOT_MODES, 'ACTION': 'MEAN_STD'}}, 'only QUANTILES'),
        ({'normalization_mapping': {'STATE': 'QUANTILES'}}, "'ACTION': 'IDENTITY'} .*only QUANT"),
        ({'normalization_mapping': {'ACTION': 'QUANTILES'}}, "{'STATE': 'IDENTITY', .*only QUANT"),
        (
            {'normalization_mapping': {**LEROBOT_MODES, 'VISUAL': 'MEAN_STD'}},
            "images with 'MEAN_STD'; only IDENT",
        ),
        ({'use_visual_memory': True, 'min_period': 4e-3}, r"with {'use_visual_memory': True}"),
        ({'image_resolution': [224, 448]}, 'two equal numbers'),
    ):
        path.write_text(json.dumps(values))
        with pytest.raises(ValueError, match=complaint):
            read_config(tmp_path)
    path.write_text(json.dumps({'paligemma_variant': 'gemma_2b', 'chunk_size': 7}))
    assert read_config(tmp_path).framework == 'openpi'
    lerobot = {'type': 'pi05', 'image_resolution': [448, 448], 'max_period': 4.0}
    path.write_text(json.dumps({'paligemma_variant': 'gemma_2b', 'chunk_size': 7, **lerobot}))
    config = read_config(tmp_path)
    assert (config.action_horizon, config.prefix.depth, config.expert.width) == (7, 18, 1024)
    assert (config.framework, config.vision.image_size) == ('lerobot', 448)


@pytest.mark.parametrize(
    ('change', 'complaint'),
    [
        ({'num_inference_steps': 2.5}, 'num_inference_steps must be a whole number .* got 2.5'),
        ({'num_inference_steps': float('nan')}, 'at least 1, got nan'),
        ({'num_inference_steps': '10'}, "at least 1, got '10'"),
        ({'num_inference_steps': 0}, 'at least 1, got 0'),
        ({'max_action_dim': '32'}, "max_action_dim must be a whole number .* got '32'"),
        ({'max_action_dim': None}, 'max_action_dim .* got None'),
        ({'action_dim': True}, 'action_dim must be a whole number .* got True'),
        ({'chunk_size': 3.0}, 'chunk_size must be a whole number .* got 3.0'),
        ({'image_resolution': ['224', '224']}, "image_resolution must be a whole .* got '224'"),
        ({'image_resolution': 224}, 'two equal numbers, got 224'),
        ({'paligemma_variant': ['gemma_2b']}, r"paligemma_variant \['gemma_2b'\] is unknown"),
        ({'action_expert_variant': {}}, 'action_expert_variant {} is unknown'),
        ({'normalization_mapping': None}, 'must say how STATE and ACTION .* got None'),
        ({'normalization_mapping': []}, r'must say how STATE and ACTION .* got \[\]'),
        ({'normalization_mapping': {'STATE': [], 'ACTION': {}}}, 'only QUANTILES'),
    ],
)
def test_a_malformed_config_is_refused(tmp_path, change, complaint):
    good = {'type': 'pi05', 'chunk_size': 3, 'max_action_dim': 32, 'num_inference_steps': 10}
    path = tmp_path / 'config.json'
    path.write_text(json.dumps(good))
    assert read_config(tmp_path).action_dim == 32
    path.write_text(json.dumps({**good, **change}))
    with pytest.raises(ValueError, match=complaint):
        read_config(tmp_path)


@pytest.mark.parametrize('layout', ['openpi', 'lerobot'])
def test_a_horizon_is_never_guessed(tmp_path, model, layout):
    """No weight has its size: 50 for a fine-tune on 10 would load, and act wrongly."""
    path = write(tmp_path, model, layout) / 'config.json'
    values = json.loads(path.read_text())
    assert read_config(tmp_path).action_horizon == 3
    own = values.pop('action_horizon', None) or values.pop('chunk_size')
    path.write_text(json.dumps(values))
    with pytest.raises(
        ValueError, match='action_horizon .* chunk_size .*got neither; set action_'
    ):
        backend.build(tmp_path, ROBOT, 'unpruned', {}, base=TINY_PI05)
    for wrong in (0, '10', 2.0, None, True):
        path.write_text(json.dumps({**values, 'action_horizon': wrong}))
        with pytest.raises(
            ValueError, match=r'config\.json: action_horizon must be a whole number'
        ):
            read_config(tmp_path, TINY_PI05)
    path.write_text(json.dumps({**values, 'action_horizon': own}))
    assert read_config(tmp_path).action_horizon == 3


def test_a_folder_of_train_pytorch_needs_two_numbers(tmp_path, model):
    """openpi's scripts/train_pytorch.py leaves weights and assets, and no config.json."""
    config = write(tmp_path, model) / 'config.json'
    config.unlink()
    (tmp_path / 'metadata.pt').touch()
    with pytest.raises(FileNotFoundError, match=r'train_pytorch.*"action_horizon": 50} there'):
        backend.build(tmp_path, ROBOT, 'unpruned', {}, base=TINY_PI05)
    said = set()  # in preflight, all the questions that need the file say the same
    for check in backend.files(tmp_path, ROBOT, base=TINY_PI05).checks():
        try:
            check.run()
        except FileNotFoundError as error:
            said.add(str(error))
    assert len(said) == 1
    config.write_text('{"action_dim": 32, "action_horizon": 3}')
    built = backend.build(tmp_path, ROBOT, 'unpruned', {}, base=TINY_PI05)
    assert built.spec.chunk_size == 3


def test_what_is_not_there_is_named(tmp_path, model):
    values = {'views': ['head'], 'actions': ['a'], 'period_s': 0.1}
    with pytest.raises(ValueError, match='ships no weights; give the folder'):
        build_policy('pi05', 'unpruned', {}, deployment=values)
    with pytest.raises(FileNotFoundError, match='does not exist; give the folder of a pi05'):
        build_policy('pi05', 'unpruned', {}, '/no/such/folder', deployment=values)
    folder = write(tmp_path, model)
    (folder / 'model.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match='convert_jax_model_to_pytorch'):
        backend.build(folder, ROBOT, 'unpruned', {}, base=TINY_PI05)
    (folder / 'tokenizer.json').rename(folder / 'tokenizer.model')
    with pytest.raises(FileNotFoundError, match='only the tokenizer.json format'):
        backend.build(folder, ROBOT, 'unpruned', {}, base=TINY_PI05)


def test_a_robot_that_does_not_fit_is_refused_before_loading(tmp_path, model, monkeypatch):
    folder = write(tmp_path, model)
    monkeypatch.setattr(
        'safe_pruner_ros.policies.pi05.policy.load_model', lambda *_: pytest.fail('loaded')
    )
    for change, complaint in (
        ({'actions': absolute([f'j{i}' for i in range(40)])}, 'at most 32 dim.*drives 40 joints'),
        ({'actions': absolute('abc')}, 'statistics of the checkpoint have 2 values, .* 3 joints'),
        ({'execution_horizon': 4}, r'in \[1, 3\], the actions in a chunk.* got 4'),
        ({'views': tuple('abcd')}, r'pi05 reads 1 to 3 images, .* views \['),
        ({'statistics_key': 'bridge'}, r"'bridge'; choose from \['lab/robot'\]"),
        ({'prompt': ''}, "'text' for openpi's pi05_libero"),
        ({'chunk_size': 3}, "policy 'pi05' reads no chunk_size, got 3"),
    ):
        with pytest.raises(ValueError, match=complaint):
            backend.build(folder, replace(ROBOT, **change), 'unpruned', {}, base=TINY_PI05)


def test_lerobot_says_how_many_images_it_was_trained_with(tmp_path, model):
    folder = write(tmp_path, model, 'lerobot')
    config = json.loads((folder / 'config.json').read_text())
    features = {f'observation.images.{n}': {} for n in ('front', 'wrist')}
    config['input_features'] = {**features, 'observation.state': {}}
    (folder / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match='pi05 reads 1 to 2 images'):
        backend.build(folder, replace(ROBOT, views=tuple('abc')), 'unpruned', {}, base=TINY_PI05)

    def note(*views: str) -> str:
        files = backend.files(folder, replace(ROBOT, views=views), base=TINY_PI05)
        (check,) = [check for check in files.checks() if check.is_note]
        return check.run()

    assert note('a', 'b') == ''
    assert "had 2 images ['front', 'wrist'], the configuration names ['a']; the" in note('a')
    # What lerobot fills a slot with was never seen, so it is neither missed nor accepted.
    config['input_features']['observation.images.empty_camera_0'] = {}
    (folder / 'config.json').write_text(json.dumps(config))
    assert note('a', 'b') == ''
    with pytest.raises(ValueError, match='pi05 reads 1 to 2 images'):
        backend.build(folder, replace(ROBOT, views=tuple('abc')), 'unpruned', {}, base=TINY_PI05)


def test_lerobot_may_have_more_than_three_cameras(tmp_path, model):
    """It reads every image of input_features (lerobot 7427f31, modeling_pi05.py)."""
    folder = write(tmp_path, model, 'lerobot')
    config = json.loads((folder / 'config.json').read_text())
    names = ['images.head', 'images.left', 'images.right', 'image']
    features = {f'observation.{name}': {'type': 'VISUAL'} for name in names}
    config['input_features'] = {**features, 'observation.state': {'type': 'STATE'}}
    (folder / 'config.json').write_text(json.dumps(config))
    views = tuple('abcd')
    tested = backend.build(folder, replace(ROBOT, views=views), 'fastv', {}, base=TINY_PI05)
    rgb = np.full((40, 30, 3), 90, np.uint8)
    images = {view: CameraImage(rgb, view, 5) for view in views}
    state = ArmState(np.array([0.3, 0.5]), ('a', 'grip'), 5)
    output = tested.predict(Observation(images, state, 'open it', 5))
    n_tokens = TINY_PI05.vision.grid**2
    assert output.trace.n_visual == 4 * n_tokens and np.isfinite(output.chunk.positions).all()
    with pytest.raises(ValueError, match='pi05 reads 1 to 4 images'):
        backend.files(folder, replace(ROBOT, views=tuple('abcde'))).check_deployment()


# -- robot ----------------------------------------------------------------------------------------


def test_delta_scale_and_gripper():
    joints = ActionLayout(
        (
            ActionDimension('a', 'delta_from_state', scale=-2.0, offset=1.0),
            ActionDimension('grip', scale=-1.0, offset=1.0, gripper=True),
        )
    )
    measured = np.array([0.4, 0.25])
    np.testing.assert_allclose(joints.to_checkpoint(measured), [0.3, 0.75])
    still = np.array([[0.0, 0.75], [0.1, -3.0], [0.1, 1.5]])
    np.testing.assert_allclose(joints.targets(still, measured), [[0.4, 0.25], [0.2, 1], [0.2, 0]])
