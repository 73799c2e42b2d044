"""pi0.5 at a tiny size against a plain reference that masks instead of dropping."""

from __future__ import annotations

import math
import zlib
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.pi05_folder import characters
from helpers.shared_network import assert_lanes_equal_separate_loads
from torch import nn
from transformers.models.gemma.modeling_gemma import apply_rotary_pos_emb, repeat_kv

from safe_pruner_ros.core.catalog import METHODS, accepted_settings
from safe_pruner_ros.core.pruner import StepAttention
from safe_pruner_ros.policies.action_layout import absolute
from safe_pruner_ros.policies.action_statistics import Range
from safe_pruner_ros.policies.deployment import Deployment
from safe_pruner_ros.policies.pi05.config import GemmaSize, Pi05Config, VisionSize
from safe_pruner_ros.policies.pi05.expert import euler_times, time_embedding
from safe_pruner_ros.policies.pi05.images import resize_with_pad
from safe_pruner_ros.policies.pi05.model import Pi05
from safe_pruner_ros.policies.pi05.policy import Pi05Policy
from safe_pruner_ros.policies.pi05.prompt import PromptEncoder
from safe_pruner_ros.policies.pi05.statistics import Statistics
from safe_pruner_ros.policies.policy import PolicyOutputError
from safe_pruner_ros.types import ArmState, CameraImage, Observation

CONFIG = Pi05Config(
    prefix=GemmaSize(32, 6, 64, n_heads=4, head_dim=8),
    expert=GemmaSize(16, 6, 32, n_heads=4, head_dim=8),
    vision=VisionSize(24, 2, 48, n_heads=2, image_size=56),
    vocabulary_size=128,
    action_dim=8,
    action_horizon=3,
    n_denoising_steps=3,
)
VIEWS = ('head', 'wrist')
JOINTS = ('a', 'b', 'c')
# float32 sums in another order: up to 1.5e-5 apart between CPUs with and without AVX-512.
ROUNDING = {'atol': 5e-5, 'rtol': 1e-5}


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    torch.set_num_threads(1)


def filled(model: nn.Module) -> nn.Module:
    """Every weight from a generator seeded by its name, sharp enough that errors show."""
    for name, value in model.state_dict().items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        fan_in = value[0].numel() if value.ndim > 1 else 16
        value.copy_(torch.randn(value.shape, generator=generator) * 1.5 / math.sqrt(fan_in))
    return model.eval()


@pytest.fixture(scope='module')
def model() -> Pi05:
    with torch.no_grad():
        return filled(Pi05(CONFIG)).requires_grad_(False)


def identity() -> Range:
    n = len(JOINTS)
    return Range(-np.ones(n), np.ones(n), np.ones(n, bool))


ROBOT = Deployment(VIEWS, absolute(JOINTS), '', 0.1, 2, prompt='state')


def policy(model, method='unpruned', robot=ROBOT, **settings) -> Pi05Policy:
    prompt = PromptEncoder(characters(), robot.prompt)
    return Pi05Policy(model, prompt, Statistics(identity(), identity()), robot, method, settings)


def observation(seed: int = 0, instruction: str = 'pick it') -> Observation:
    rng = np.random.default_rng(seed)
    images = {
        name: CameraImage(rng.integers(0, 256, (56, 56, 3), dtype=np.uint8), name, 7)
        for name in ('head', 'wrist')
    }
    return Observation(images, ArmState(np.array([0.1, -0.2, 0.3]), JOINTS, 7), instruction, 7)


@torch.no_grad()
def reference(model, tested, seen, step=0, masked_from=99, dropped=()):
    """Three camera slots, the third masked, a prompt padded to 60; every token computed, with
    explicit masks and softmax, full last layer, time MLP in every denoising step.

    From layer ``masked_from`` on the visual tokens ``dropped`` cannot be seen, in the prefix and
    by the actions. Returns actions [A, N] and the mean attention of the action rows to the live
    visual tokens by layer.
    """
    ids = tested._prompt.encode(seen.instruction, seen.state.positions)
    n_view, n_pad = CONFIG.vision.grid**2, 60 - len(ids)
    live = [torch.from_numpy(seen.images[name].rgb.copy()) for name in ('head', 'wrist')]
    pixels = torch.stack([*live, torch.full_like(live[0], 200)]).permute(0, 3, 1, 2) / 255 * 2 - 1
    visual = model.projector(model.vision_tower(pixels).last_hidden_state).flatten(0, 1)
    padded = F.pad(torch.from_numpy(ids), (0, n_pad))
    scale = math.sqrt(CONFIG.prefix.width)
    text = F.embedding(padded, model.language_model.embed_tokens.weight) * scale
    valid = torch.ones(3 * n_view + 60, dtype=torch.bool)
    valid[2 * n_view : 3 * n_view] = False
    valid[len(valid) - n_pad :] = False
    positions = valid.cumsum(0)[None] - 1
    rope = model.language_model.rotary_emb

    def visible(layer):
        keys = valid.clone()
        if layer >= masked_from:
            keys[list(dropped)] = False
        return keys

    hidden, prefix = torch.cat([visual, text])[None], []
    cos_sin = rope(hidden, positions)
    for index, layer in enumerate(model.language_model.layers):
        attention = layer.self_attn
        normed = layer.input_layernorm(hidden)
        key = attention.k_proj(normed)[:, None]
        prefix.append(
            (apply_rotary_pos_emb(key, key, *cos_sin)[1], attention.v_proj(normed)[:, None])
        )
        mask = torch.where(visible(index), 0.0, torch.finfo(torch.float32).min)
        mask = mask.expand(1, 1, len(valid), -1)
        hidden = layer(hidden, attention_mask=mask, position_embeddings=cos_sin)

    actions, maps = tested._noise_of(step), {}
    after = int(valid.sum()) + torch.arange(CONFIG.action_horizon)[None]
    n_live = 2 * n_view
    for time in euler_times(CONFIG.n_denoising_steps):
        embedded = time_embedding(time[None], CONFIG.expert.width)
        condition = F.silu(model.time_mlp_out(F.silu(model.time_mlp_in(embedded))))
        hidden = model.action_in_proj(actions)
        cos_sin = rope(hidden, after)
        for index, layer in enumerate(model.expert.layers):
            attention = layer.self_attn
            normed, gate = adaptive(layer.input_layernorm, hidden, condition)
            query, key, value = (
                project(normed).unflatten(-1, (-1, 8)).transpose(1, 2)
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            query, key = apply_rotary_pos_emb(query, key, *cos_sin)
            key = repeat_kv(torch.cat([prefix[index][0], key], 2), 4)
            value = repeat_kv(torch.cat([prefix[index][1], value], 2), 4)
            keys = F.pad(visible(index), (0, CONFIG.action_horizon), value=True)
            logits = query @ key.transpose(2, 3) / math.sqrt(8)
            weights = logits.masked_fill(~keys, -math.inf).softmax(-1)
            maps.setdefault(index, []).append(weights[0, ..., :n_live].mean((0, 1)))
            attended = (weights @ value).transpose(1, 2).flatten(2)
            hidden = hidden + gate * attention.o_proj(attended)
            normed, gate = adaptive(layer.post_attention_layernorm, hidden, condition)
            hidden = hidden + gate * layer.mlp(normed)
        hidden, _ = adaptive(model.expert.norm, hidden, condition)
        actions = actions - model.action_out_proj(hidden) / CONFIG.n_denoising_steps
    saliency = {layer: torch.stack(rows).mean(0) for layer, rows in maps.items()}
    return actions[0, :, : len(JOINTS)].double().numpy(), saliency


def adaptive(norm, hidden, condition):
    scale, shift, gate = norm.dense(condition).chunk(3, dim=-1)
    normed = F.rms_norm(hidden, hidden.shape[-1:], eps=norm.eps)
    return normed * (1 + scale) + shift, gate


# -- exactness ------------------------------------------------------------------------------------


def test_compact_equals_padded(model):
    """Leaving out the absent camera and the padding changes nothing."""
    tested, seen = policy(model), observation()
    got = tested.predict(seen)
    expected, _ = reference(model, tested, seen)
    np.testing.assert_allclose(got.chunk.positions, expected, **ROUNDING)
    assert got.trace.n_visual == 32


# VLA-Cache lets nothing leave: it reuses keys and values of earlier steps.
PRUNERS = [name for name in METHODS if name not in ('unpruned', 'vla_cache')]


@pytest.mark.parametrize('method', PRUNERS)
def test_leaving_equals_being_masked(model, method):
    """In the prefix from the pruning layer on, and for the actions that read those layers; the
    positions of the actions stay behind the whole prefix."""
    accepted = accepted_settings(method)
    extra = {'similarity_threshold': 0.0} if 'similarity_threshold' in accepted else {}
    tested = policy(model, method, retention_ratio=0.3, **extra)
    for step in range(8):  # some methods look at several timesteps before they prune
        seen = observation(step)
        got = tested.predict(seen)
        if got.trace.n_retained == 10:
            break
    assert got.trace.n_retained == 10
    dropped = set(range(32)) - set(got.trace.retained_index.tolist())
    expected, _ = reference(model, tested, seen, step, tested._pruner.pruning_layer, dropped)
    np.testing.assert_allclose(got.chunk.positions, expected, **ROUNDING)
    unpruned, _ = reference(model, tested, seen, step)
    assert np.abs(expected - unpruned).max() > 1e-3  # the comparison could have failed


def test_lanes_on_one_network_answer_as_separate_loads(model):
    assert_lanes_equal_separate_loads(
        lambda method, settings: policy(deepcopy(model), method, **settings),
        lambda lane: lane.model,
        [observation(seed // 2) for seed in range(5)],
    )


@pytest.mark.parametrize('method', PRUNERS)
def test_retention_one_equals_unpruned_bit_for_bit(model, method):
    extra = (
        {'similarity_threshold': 0.0}
        if 'similarity_threshold' in accepted_settings(method)
        else {}
    )
    tested, full = policy(model, method, retention_ratio=1.0, **extra), policy(model)
    for seed in range(4):  # until the methods that begin with full steps choose what to keep
        a, b = tested.predict(observation(seed)), full.predict(observation(seed))
        assert np.array_equal(a.chunk.positions, b.chunk.positions)
    assert not a.trace.is_key_timestep and not a.trace.fallback


def test_vla_cache_answers_alike_while_nothing_moves(model):
    """The expert reads the whole prefix; a prompt of other length moves no visual token."""
    settings = {'retention_ratio': 0.25, 'relevant_share': 0.0, 'schedule': 'uniform'}
    cached, full = policy(model, 'vla_cache', **settings), policy(model)
    for step in range(3):
        got, want = cached.predict(observation(0)), full.predict(observation(0))
        np.testing.assert_allclose(got.chunk.positions, want.chunk.positions, **ROUNDING)
        assert got.trace.n_retained == (8 if step else 32)
    assert cached.predict(observation(1)).trace.n_retained == 32


def test_layout(model):
    """The rows that stand for the actions close the prompt, and belong to it."""
    for n_rows in (1, 4):
        layout = model.layout(VIEWS, 20, n_rows)
        assert layout.query_positions('action') == slice(52 - n_rows, 52)
        assert layout.query_positions('text') == slice(32, 52)
        assert layout.query_positions('prefill') == slice(0, 52)


def test_action_positions_matter(model):
    """Counting from the shortened prefix instead of the original one would be seen."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(6, 2, 1, 1, 9, 8, generator=generator)
    prefix = [(key, value) for key, value in keys]
    noise, modulations = torch.randn(1, 3, 8, generator=generator), model.modulations()
    a = model.denoise(noise, prefix, 40, modulations)
    b = model.denoise(noise, prefix, 9, modulations)
    assert (a - b).abs().max() > 1e-3


def watch_pruner(tested: Pi05Policy) -> list[StepAttention]:
    """What its pruner observes from here on, step by step."""
    observed, observe = [], tested._pruner.observe
    tested._pruner.observe = lambda *step: (observed.append(step[2]), observe(*step))
    return observed


def test_deep_saliency_is_that_of_the_action_rows(model):
    tested, seen = policy(model, 'safe_pruner', retention_ratio=0.5), observation()
    pruner, observed = tested._pruner, watch_pruner(tested)
    tested.predict(seen)
    _, expected = reference(model, tested, seen)
    layers = [r for r in pruner.deep_requests if r not in pruner.shallow_requests]
    assert [r.layer for r in layers] == [0, 4, 5]
    for request in layers:
        got = observed[0].saliency[request]
        torch.testing.assert_close(got, expected[request.layer], atol=1e-6, rtol=1e-5)


def test_pruned_steps_read_the_action_rows_too(model):
    """Step by step the same quantity, warm-up or not; a token that has left reads 0."""
    tested = policy(model, 'vla_pruner', retention_ratio=0.3, deep_layers=(1, 3, 5))
    pruner, observed = tested._pruner, watch_pruner(tested)
    for step in range(6):
        seen = observation(step)
        kept = tested.predict(seen).trace.retained_index.tolist()
        assert len(kept) == (32 if step < 3 else 10)
        dropped = set(range(32)) - set(kept)
        _, expected = reference(model, tested, seen, step, pruner.pruning_layer, dropped)
        for request in pruner.deep_requests:
            got = observed[step].saliency[request]
            torch.testing.assert_close(got, expected[request.layer], atol=1e-6, rtol=1e-5)


def test_diverse_forecast_remembers_the_action_rows(model):
    """In an episode that starts pruned, and goes on so."""
    settings = {'retention_ratio': 0.3, 'similarity_threshold': 0.0}
    tested = policy(model, 'diverse_forecast', **settings)
    for step in range(3):
        seen = observation(step)
        trace = tested.predict(seen).trace
        kept = trace.retained_index
        assert not trace.is_key_timestep and len(kept) == 10
        dropped = set(range(32)) - set(kept.tolist())
        _, maps = reference(model, tested, seen, step, tested._pruner.pruning_layer, dropped)
        expected = torch.stack([maps[layer] for layer in (0, 4, 5)])[:, kept]
        remembered = tested._pruner._cache.get().saliency[1:, kept]
        torch.testing.assert_close(remembered, expected, atol=1e-6, rtol=1e-5)


# -- as a policy ----------------------------------------------------------------------------------


def test_a_changing_state_in_the_prompt_is_no_new_instruction(model):
    tested = policy(model, 'safe_pruner', retention_ratio=0.5, similarity_threshold=0.0)
    assert tested.predict(observation()).trace.keyframe_reason == 'first step'
    seen = observation(1)
    moved = Observation(seen.images, ArmState(np.array([0.9, 0.8, 0.7]), JOINTS, 8), 'pick it', 8)
    assert not tested.predict(moved).trace.is_key_timestep
    other = tested.predict(observation(2, 'drop it')).trace
    assert other.keyframe_reason == 'instruction changed'


def test_the_state_enters_through_its_prompt_form_only(model):
    seen = observation()
    moved = Observation(seen.images, ArmState(np.array([0.9, 0.8, 0.7]), JOINTS, 7), 'pick it', 7)
    for form, same in (('text', True), ('state', False)):
        robot = replace(ROBOT, prompt=form)
        a, b = (policy(model, robot=robot).predict(o).chunk.positions for o in (seen, moved))
        assert np.array_equal(a, b) == same


def test_a_failed_step_leaves_no_keyframe_behind(model):
    tested = policy(model, 'safe_pruner', retention_ratio=0.5)
    good = tested._modulations
    tested._modulations = good * float('nan')
    with pytest.raises(PolicyOutputError, match='NaN'):
        tested.predict(observation())
    tested._modulations = good
    assert tested.predict(observation()).trace.keyframe_reason == 'first step'


def test_an_audit_has_the_noise_of_its_step_and_leaves_no_trace(model):
    settings = {'retention_ratio': 0.3, 'similarity_threshold': 0.0}
    audited, alone = (policy(model, 'safe_pruner', **settings) for _ in range(2))
    unpruned = policy(model)
    for seed in range(3):
        seen = observation(seed)
        pruned, audit = audited.predict(seen), audited.predict_unpruned(seen)
        assert np.array_equal(audit.chunk.positions, unpruned.predict(seen).chunk.positions)
        assert np.array_equal(pruned.chunk.positions, alone.predict(seen).chunk.positions)


def test_episodes_repeat(model):
    tested = policy(model)
    first = [tested.predict(observation(seed)).chunk.positions for seed in range(2)]
    tested.reset()
    again = [tested.predict(observation(seed)).chunk.positions for seed in range(2)]
    assert np.array_equal(first, again)


def test_missing_view_and_wrong_joint_count_are_named(model):
    tested, seen = policy(model), observation()
    partial = {'head': seen.images['head']}
    with pytest.raises(ValueError, match=r"misses \['wrist'\]"):
        tested.predict(Observation(partial, seen.state, 'pick it', 7))
    with pytest.raises(ValueError, match=r"no measured position of \['c'\]"):
        tested.predict(
            Observation(seen.images, ArmState(np.zeros(2), JOINTS[:2], 7), 'pick it', 7)
        )


def test_images_are_padded_not_stretched():
    wide = np.full((20, 40, 3), 255, np.uint8)
    out = resize_with_pad(wide, 56)
    assert out.shape == (56, 56, 3)
    assert (out[:14] == 0).all() and (out[14:42] == 255).all() and (out[42:] == 0).all()
    square = np.arange(56 * 56 * 3, dtype=np.uint8).reshape(56, 56, 3)
    assert np.array_equal(resize_with_pad(square, 56), square)


def test_measured_joints_are_read_by_name(model):
    seen = observation()
    turned = ArmState(seen.state.positions[::-1].copy(), JOINTS[::-1], 7)
    moved = Observation(seen.images, turned, seen.instruction, 7)
    a, b = (policy(model).predict(o).chunk.positions for o in (seen, moved))
    assert np.array_equal(a, b)
