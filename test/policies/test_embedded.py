"""The embedded policy: same function as its plain forward pass, and clear refusals."""

from __future__ import annotations

import threading
from dataclasses import replace
from time import sleep
from typing import Any

import numpy as np
import pytest
import torch
from helpers.shared_network import assert_lanes_equal_separate_loads
from helpers.tiny_embedded import CONFIG, JOINTS, TASKS, VIEWS, model, observation, policy

from safe_pruner_ros.core.catalog import METHODS, accepted_settings
from safe_pruner_ros.core.tokens import QueryGroup, TokenLayout
from safe_pruner_ros.policies.embedded import EmbeddedPolicy
from safe_pruner_ros.policies.embedded_model import (
    EmbeddedVLA,
)
from safe_pruner_ros.policies.instructions import encode_words
from safe_pruner_ros.policies.patches import image_patches
from safe_pruner_ros.policies.policy import InstructionError, PolicyOutputError
from safe_pruner_ros.types import ArmState, CameraImage, Observation


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


@pytest.mark.parametrize('method', [m for m in METHODS if m != 'unpruned'])
def test_retention_one_equals_unpruned_bit_for_bit(method: str) -> None:
    extra = (
        {'similarity_threshold': 0.0}
        if 'similarity_threshold' in accepted_settings(method)
        else {}
    )
    tested, full = policy(method, retention_ratio=1.0, **extra), policy('unpruned')
    for seed in range(4):  # until the methods that begin with full steps choose what to keep
        a, b = tested.predict(observation(seed=seed)), full.predict(observation(seed=seed))
        assert np.array_equal(a.chunk.positions, b.chunk.positions)
    assert not a.trace.is_key_timestep and not a.trace.fallback


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


@pytest.mark.parametrize('method', ['sparsevlm', 'specprune_vla', 'vla_cache', 'fastv'])
def test_who_asks_the_text_asks_its_words_and_no_padding(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, set[int]] = {}
    positions = TokenLayout.query_positions

    def watched(layout: TokenLayout, group: QueryGroup) -> slice:
        rows = positions(layout, group)
        asked.setdefault(group, set()).add(rows.stop - rows.start)
        return rows

    monkeypatch.setattr(TokenLayout, 'query_positions', watched)
    tested = policy(method, **({'queries': 'text'} if method == 'fastv' else {}))
    for seed in range(2):
        tested.predict(observation('put the red block in the tray', seed))
    assert asked['text'] == {7}


def test_an_instruction_has_as_many_text_rows_as_words() -> None:
    network, words = model(), encode_words('put the blue block in the tray', CONFIG)
    layout = CONFIG.layout(7)
    embeddings = network.embed(
        torch.zeros(1, CONFIG.n_visual, CONFIG.vision_width),
        torch.zeros(1, 3),
        torch.from_numpy(words)[None],
    )
    rows = embeddings[0, layout.query_positions('text')]
    assert torch.equal(rows, network.words(torch.from_numpy(words[:7])))
    assert (layout.action, layout.length) == (network.layout.action, network.layout.length)


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


def test_changes_from_two_threads_both_count(monkeypatch) -> None:
    """A parameter and the latency budget may change the pruner at the same time."""
    tested = policy('safe_pruner', retention_ratio=0.25, similarity_threshold=0.0)
    build, threads = tested._build_pruner, []

    def slowly(settings: Any) -> Any:
        if not threads:  # the other change comes in the middle of the first one
            change = {'similarity_threshold': 0.5}
            threads.append(threading.Thread(target=tested.update_pruner, kwargs=change))
            threads[0].start()
            threads[0].join(0.3)
        return build(settings)

    monkeypatch.setattr(tested, '_build_pruner', slowly)
    tested.update_pruner(retention_ratio=0.5)
    threads[0].join(10.0)
    assert tested._settings == {'retention_ratio': 0.5, 'similarity_threshold': 0.5}


REMEMBERING = {
    'safe_pruner': {'similarity_threshold': 0.0},
    'diverse_forecast': {'similarity_threshold': 0.0},
    'vla_pruner': {'warm_up_steps': 0},
    'specprune_vla': {},
    'vla_cache': {'schedule': 'uniform', 'static_threshold': -1.0, 'relevant_share': 0.0},
}


@pytest.mark.parametrize('method', [m for m in METHODS if m != 'unpruned'])
def test_a_live_change_starts_the_memory_anew_with_a_full_step(method: str) -> None:
    tested = policy(method, retention_ratio=0.25, **REMEMBERING.get(method, {}))

    def counts(n_steps: int) -> list[int]:
        steps = [tested.predict(observation(seed=seed)).trace for seed in range(n_steps)]
        assert not any(step.fallback for step in steps)
        assert all(step.is_key_timestep == (step.n_retained == 192) for step in steps)
        return [step.n_retained for step in steps]

    start = counts(3)
    assert start[1:] == [48, 48]
    tested.update_pruner(retention_ratio=0.5)
    first = 192 if method in REMEMBERING else 96
    assert counts(3) == [first, 96, 96]
    tested.force_keyframe()  # somebody looked away: that must not get lost
    tested.update_pruner(retention_ratio=0.25)
    assert counts(2) == [first if method in REMEMBERING else 48, 48]
    tested.update_pruner(retention_ratio=0.25)
    tested.reset()  # an episode begins as the method begins it
    assert counts(3) == start


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


def test_what_the_method_remembers_is_part_of_its_latency(monkeypatch) -> None:
    tested = policy(retention_ratio=0.25)
    observe = tested._pruner.observe

    def slowly(*args: object) -> None:
        sleep(0.02)
        observe(*args)

    monkeypatch.setattr(tested._pruner, 'observe', slowly)
    latency = tested.predict(observation()).latency_ms
    assert latency['observe'] >= 20
    assert latency['total'] >= 20 + latency['vision'] + latency['shallow'] + latency['deep']


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


@pytest.mark.parametrize('schedule', ['paper', 'code', 'uniform'])
def test_vla_cache_computes_less_and_answers_alike_while_nothing_moves(schedule: str) -> None:
    settings = {'retention_ratio': 0.25, 'relevant_share': 0.0, 'schedule': schedule}
    cached = policy('vla_cache', **settings)
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
