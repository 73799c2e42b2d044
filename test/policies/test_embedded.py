"""The embedded policy: same function as its plain forward pass, and clear refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.shared_network import assert_lanes_equal_separate_loads
from safetensors.torch import load_file, save_file

from safe_pruner_ros.policies.embedded import EmbeddedPolicy, load_weights, save_weights
from safe_pruner_ros.policies.embedded_model import (
    EmbeddedConfig,
    EmbeddedVLA,
    TrainedTask,
)
from safe_pruner_ros.policies.instructions import encode_words
from safe_pruner_ros.policies.patches import image_patches
from safe_pruner_ros.policies.policy import InstructionError, PolicyOutputError
from safe_pruner_ros.types import ArmState, CameraImage, Observation

VIEWS = ('head', 'left_wrist', 'right_wrist')
JOINTS = ('a', 'b', 'grip')
CONFIG = EmbeddedConfig(
    VIEWS,
    JOINTS,
    ('grip',),
    ('<pad>', 'put', 'the', 'red', 'blue', 'block', 'in', 'tray'),
    width=32,
    mlp_width=48,
    n_layers=5,
    n_heads=4,
    vision_width=16,
)


def model() -> EmbeddedVLA:
    torch.manual_seed(0)
    return EmbeddedVLA(CONFIG).eval()


def observation(
    instruction: str = 'put the red block in the tray', seed: int = 0, size: int = 256
) -> Observation:
    rng = np.random.default_rng(seed)
    images = {
        name: CameraImage(rng.integers(0, 256, (size, size, 3), dtype=np.uint8), name, 7)
        for name in VIEWS
    }
    return Observation(images, ArmState(np.array([0.1, -0.2, 0.3]), JOINTS, 7), instruction, 7)


def policy(method: str = 'safe_pruner', **settings: object) -> EmbeddedPolicy:
    return EmbeddedPolicy(model(), method, settings)


def test_lanes_on_one_network_answer_as_separate_loads() -> None:
    seen = [observation(seed=seed // 2) for seed in range(5)]
    assert_lanes_equal_separate_loads(
        lambda method, settings: policy(method, **settings), lambda lane: lane.model, seen
    )


def test_unpruned_equals_the_plain_forward_pass() -> None:
    network, seen = model(), observation()
    pixels = torch.stack([torch.from_numpy(seen.images[v].rgb) for v in VIEWS])
    with torch.inference_mode():
        visual = network.vision(pixels.permute(0, 3, 1, 2).float() / 255)
        joints = torch.from_numpy(seen.state.positions.astype(np.float32))[None]
        words = torch.from_numpy(encode_words(seen.instruction, CONFIG))[None]
        hidden = network.decode_full(
            network.embed(visual.reshape(1, CONFIG.n_visual, -1), joints, words)
        )
        expected = network.actions(hidden[:, network.layout.query_positions('action')], joints)
    chunk = policy('unpruned').predict(seen).chunk.positions
    np.testing.assert_allclose(chunk[:, :2], expected[0, :, :2].numpy(), atol=1e-6)


def test_retention_one_equals_unpruned_bit_for_bit() -> None:
    kept, full = policy(retention_ratio=1.0, similarity_threshold=0.0), policy('unpruned')
    for seed in range(3):
        a, b = kept.predict(observation(seed=seed)), full.predict(observation(seed=seed))
        assert np.array_equal(a.chunk.positions, b.chunk.positions)


def test_the_network_is_bidirectional() -> None:
    """With a causal mask the first action slot could not see the end token; it must."""
    network = model()
    embeddings = torch.randn(1, network.layout.length, CONFIG.width)
    changed = embeddings.clone()
    changed[:, -1] += 1
    slot = network.layout.action.start
    with torch.inference_mode():
        a, b = network.decode_full(embeddings), network.decode_full(changed)
    assert (a[0, slot] - b[0, slot]).abs().max() > 1e-4


def test_pruned_step_keeps_the_stated_number_and_a_new_instruction_is_a_keyframe() -> None:
    tested = policy(retention_ratio=0.25, similarity_threshold=0.0)
    first, second = tested.predict(observation()), tested.predict(observation(seed=1))
    assert first.trace.keyframe_reason == 'first step'
    assert first.trace.n_retained == CONFIG.n_visual
    assert second.trace.n_retained == 48 and not second.trace.is_key_timestep
    third = tested.predict(observation('put the blue block in the tray'))
    assert third.trace.keyframe_reason == 'instruction changed'


@pytest.mark.parametrize(
    ('text', 'complaint'),
    [
        ('', 'empty'),
        (' \t\n', 'empty'),
        ('put the purple block in the tray', 'purple'),
        ('put ' * 13, '13 words'),
        ('\x00\x1b[2J', r"\['2j'\]"),
    ],
)
def test_instructions_it_cannot_follow_are_refused(text: str, complaint: str) -> None:
    tested = policy()
    with pytest.raises(InstructionError, match=complaint):
        tested.check_instruction(text)
    with pytest.raises(InstructionError, match=complaint):
        tested.predict(observation(text))


TASKS = (
    TrainedTask('lifting', ('put the {object} in the tray',), ('red block', 'blue block')),
    TrainedTask('sorting', ('the red {object}',), ('block',)),
)


@pytest.mark.parametrize(
    ('text', 'complaint'),
    [
        ('put the tray in the red block', "nearest of its sentences are .*'put the red block in"),
        ('the block red', "trained on 'the block red'.*lifting.*sorting"),
        ('put the red', 'never trained on'),
        ('put the purple block in the tray', r"does not know \['purple'\]"),
    ],
)
def test_known_words_in_a_sentence_of_no_task_are_refused(text: str, complaint: str) -> None:
    config = replace(CONFIG, tasks=TASKS)
    tested = EmbeddedPolicy(EmbeddedVLA(config), 'unpruned')
    for sentence in config.sentences:
        tested.check_instruction(sentence.upper() + '!')
    assert len(config.sentences) == 3
    with pytest.raises(InstructionError, match=complaint):
        tested.check_instruction(text)


def test_live_settings_take_effect_and_bad_ones_change_nothing() -> None:
    tested = policy(retention_ratio=0.25, similarity_threshold=0.0)
    tested.predict(observation())
    tested.update_pruner(retention_ratio=0.5)
    tested.predict(observation())
    assert tested.predict(observation(seed=1)).trace.n_retained == 96
    with pytest.raises(ValueError, match='retention_ratio'):
        tested.update_pruner(retention_ratio=1.4)
    assert tested.predict(observation(seed=2)).trace.n_retained == 96


def test_an_audit_is_the_unpruned_policy_and_leaves_no_trace() -> None:
    audited, alone = policy(retention_ratio=0.2), policy(retention_ratio=0.2)
    for seed in range(4):
        seen = observation(seed=seed)
        pruned = audited.predict(seen)
        unpruned = audited.predict_unpruned(seen)
        assert unpruned.trace.n_retained == unpruned.trace.n_visual
        expected = policy('unpruned').predict(seen).chunk.positions
        assert np.array_equal(unpruned.chunk.positions, expected)
        assert np.array_equal(pruned.chunk.positions, alone.predict(seen).chunk.positions)


def test_case_and_punctuation_do_not_matter() -> None:
    plain = encode_words('put the red block in the tray', CONFIG)
    assert np.array_equal(encode_words('Put the RED block, in the tray!', CONFIG), plain)


def test_a_failed_step_leaves_no_keyframe_behind() -> None:
    tested = policy(retention_ratio=0.25)
    with torch.no_grad():
        tested.model.head[-1].bias[0] = float('nan')
    with pytest.raises(PolicyOutputError, match='NaN'):
        tested.predict(observation())
    with torch.no_grad():
        tested.model.head[-1].bias[0] = 0.0
    assert tested.predict(observation()).trace.keyframe_reason == 'first step'


def test_missing_view_and_wrong_joint_count_are_named() -> None:
    seen = observation()
    partial = {name: seen.images[name] for name in VIEWS[:2]}
    with pytest.raises(ValueError, match='right_wrist'):
        policy().predict(Observation(partial, seen.state, seen.instruction, 7))
    short = ArmState(np.zeros(2), JOINTS[:2], 7)
    with pytest.raises(ValueError, match=r"no measured position of \['grip'\]"):
        policy().predict(Observation(seen.images, short, seen.instruction, 7))


def test_device_auto_finds_one() -> None:
    tested = EmbeddedPolicy(model(), 'unpruned', device='auto')
    assert np.isfinite(tested.predict(observation()).chunk.positions).all()


def test_images_of_another_size_are_resized() -> None:
    output = policy().predict(observation(size=480))
    assert np.isfinite(output.chunk.positions).all()


def test_weights_survive_the_round_trip(tmp_path: Path) -> None:
    network = EmbeddedVLA(replace(CONFIG, tasks=TASKS)).half().float()
    save_weights(network, tmp_path / 'w.safetensors', {'note': 'test'})
    again = load_weights(tmp_path / 'w.safetensors')
    assert again.config == replace(CONFIG, tasks=TASKS)
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_weights_of_unnamed_tasks_follow_any_sentence_of_their_words(tmp_path: Path) -> None:
    """Checkpoints of version 0.1 have no such entry."""
    path, state, metadata = _saved(tmp_path)
    config = {k: v for k, v in CONFIG.as_dict().items() if k != 'tasks'}
    save_file(state, path, {**metadata, 'config': json.dumps(config)})
    loaded = load_weights(path)
    assert loaded.config.tasks == ()
    EmbeddedPolicy(loaded, 'unpruned').check_instruction('put the block red in tray')
    config['tasks'] = [{'name': 'lifting'}]
    save_file(state, path, {**metadata, 'config': json.dumps(config)})
    with pytest.raises(ValueError, match='templates'):
        load_weights(path)


def _saved(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor], dict[str, str]]:
    path = tmp_path / 'w.safetensors'
    save_weights(model(), path, {})
    metadata = {
        'format': 'safe_pruner_ros/embedded/1',
        'config': json.dumps(CONFIG.as_dict()),
    }
    return path, load_file(path), metadata


@pytest.mark.parametrize('keep', [0, 7, 100, 0.5, 0.99])
def test_truncated_weights_are_refused(tmp_path: Path, keep: float) -> None:
    path, _, _ = _saved(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep >= 1 or keep == 0 else keep * len(data))])
    with pytest.raises(ValueError, match='not a readable safetensors file'):
        load_weights(path)


def test_foreign_missing_and_non_finite_weights_are_refused(tmp_path: Path) -> None:
    path, state, metadata = _saved(tmp_path)
    save_file(state, path, {'format': 'pt'})
    with pytest.raises(ValueError, match='not an embedded-policy checkpoint'):
        load_weights(path)
    fewer = {name: value for name, value in state.items() if name != 'slots'}
    save_file(fewer, path, metadata)
    with pytest.raises(ValueError, match=r"missing \['slots'\]"):
        load_weights(path)
    wrong = {**state, 'slots': torch.zeros(2, 2)}
    save_file(wrong, path, metadata)
    with pytest.raises(ValueError, match=r"wrong shape \['slots'\]"):
        load_weights(path)
    poisoned = {**state, 'slots': torch.full_like(state['slots'], float('nan'))}
    save_file(poisoned, path, metadata)
    with pytest.raises(ValueError, match='NaN'):
        load_weights(path)
    with pytest.raises(FileNotFoundError, match='safe-pruner train'):
        load_weights(tmp_path / 'nothing.safetensors')


def test_a_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    canary = tmp_path / 'canary'

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (canary,))  # type: ignore[return-value]

    path = tmp_path / 'w.safetensors'
    torch.save(Payload(), path)
    with pytest.raises(ValueError, match='not a readable safetensors file'):
        load_weights(path)
    assert not canary.exists()


@pytest.mark.parametrize('schedule', ['paper', 'code', 'uniform'])
def test_vla_cache_computes_less_and_answers_alike_while_nothing_moves(schedule: str) -> None:
    cached = policy('vla_cache', retention_ratio=0.25, schedule=schedule)
    expected = policy('unpruned').predict(observation()).chunk.positions
    outputs = [cached.predict(observation()) for _ in range(4)]
    for output in outputs:
        np.testing.assert_allclose(output.chunk.positions, expected, atol=1e-5)
    first, *others = (output.trace for output in outputs)
    assert first.is_key_timestep and first.n_retained == CONFIG.n_visual
    for trace in others:
        computed = [layer.computed for layer in trace.layer_tokens]
        assert {layer.attended for layer in trace.layer_tokens} == {CONFIG.n_visual}
        assert trace.n_retained == round(sum(computed[2:]) / 3)  # layers 0 and 1 never skip
        assert len(trace.retained_index) == computed[-1]
        if schedule == 'uniform':
            assert computed == [192, 192, 48, 48, 48] and trace.n_retained == 48
    moved = cached.predict(observation(seed=1)).trace  # another picture: nothing stands still
    assert moved.n_retained == CONFIG.n_visual and not moved.is_key_timestep


def test_vla_cache_in_pictures_that_change_a_little() -> None:
    """One patch of 32 x 32 px of the head view changes: it alone is computed beside what the
    instruction asks for."""
    seen = observation()
    cached = policy('vla_cache', retention_ratio=0.05, relevant_share=0.0, schedule='uniform')
    cached.predict(seen)
    rgb = seen.images['head'].rgb.copy()
    rgb[32:64, 96:128] = 255 - rgb[32:64, 96:128]
    images = {**seen.images, 'head': CameraImage(rgb, 'head', 7)}
    trace = cached.predict(Observation(images, seen.state, seen.instruction, 7)).trace
    assert 11 in trace.retained_index  # second row, fourth column
    assert trace.n_retained == round(0.05 * CONFIG.n_visual)


def test_patches_lie_where_their_tokens_are() -> None:
    images = torch.arange(2 * 64 * 64 * 3).reshape(2, 64, 64, 3)
    patches = image_patches(images, 4, 2)
    assert patches.shape == (16, 16 * 32 * 3)
    assert torch.equal(patches[8 + 2 * 2 + 1], images[1, 32:48, 32:64].reshape(-1))
    with pytest.raises(ValueError, match='64 x 64 px do not divide into 3 x 2'):
        image_patches(images, 3, 2)


def test_measured_joints_are_read_by_name() -> None:
    seen = observation()
    turned = ArmState(seen.state.positions[::-1].copy(), JOINTS[::-1], 7)
    expected = policy().predict(seen).chunk.positions
    got = policy().predict(replace(seen, state=turned)).chunk.positions
    assert np.array_equal(got, expected)
    other = ArmState(turned.positions, JOINTS, 7)
    assert not np.array_equal(policy().predict(replace(seen, state=other)).chunk.positions, got)
