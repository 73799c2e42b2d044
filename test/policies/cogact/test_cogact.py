"""CogACT at a tiny size: equal to plain torch on the official tensors, pruned or not."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.shared_network import assert_lanes_equal_separate_loads
from helpers.tiny_cogact import JOINTS, PERIOD_NS, QUICK, observation, policy

from safe_pruner_ros.core.catalog import METHODS, accepted_settings, build_pruner
from safe_pruner_ros.core.tokens import ViewGrid
from safe_pruner_ros.policies.action_layout import ActionDimension, ActionLayout, absolute
from safe_pruner_ros.policies.action_statistics import Range
from safe_pruner_ros.policies.catalog import CAUSAL
from safe_pruner_ros.policies.cogact.diffusion import DDIMSampler, signal_shares
from safe_pruner_ros.policies.cogact.files import MEAN, STD
from safe_pruner_ros.policies.cogact.policy import (
    cogact_layout,
    read_cognition,
    to_physical,
)
from safe_pruner_ros.policies.policy import InstructionError, PolicyOutputError
from safe_pruner_ros.policies.pruned_decoder import DecoderOutput, run_pruned
from safe_pruner_ros.types import ArmState, Observation

IDS = torch.tensor([[1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 15, 8, 16, 18, 12, 13, 4, 29871]])


def pixels_of(seen: Observation) -> torch.Tensor:
    rgb = torch.from_numpy(seen.images['head'].rgb).permute(2, 0, 1).float() / 255
    towers = [
        (rgb - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        for mean, std in zip(MEAN, STD, strict=True)
    ]
    return torch.cat(towers)[None]


def embeddings_of(tiny: SimpleNamespace, seen: Observation) -> torch.Tensor:
    return tiny.reference.embed(pixels_of(seen), torch.cat([IDS, torch.tensor([[2]])], dim=1))


def physical(tiny: SimpleNamespace, normalised: torch.Tensor) -> np.ndarray:
    clipped = normalised.double().clamp(-1, 1).numpy()
    actions = 0.5 * (clipped + 1) * (tiny.q99 - tiny.q01) + tiny.q01
    actions[:, 6] = clipped[:, 6] >= 0.5
    return actions


# -- exactness ------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_step_equals_plain_torch(cogact_tiny: SimpleNamespace) -> None:
    tested = policy(cogact_tiny)
    tiny, shares = cogact_tiny, np.array(signal_shares())
    for step in range(2):
        seen = observation(seed=step)
        hidden = tiny.reference.hidden(embeddings_of(tiny, seen))
        noise = tested._noise_of(step)[0]
        sampled = tiny.reference.sample(hidden[-1], noise, (50, 0), 1.5, shares)
        got = tested.predict(seen).chunk
        assert got.positions.shape == (16, 7) and got.joint_names == JOINTS
        np.testing.assert_allclose(got.positions, physical(tiny, sampled), atol=5e-5)
        other_row = tiny.reference.sample(hidden[-2], noise, (50, 0), 1.5, shares)
        assert np.abs(got.positions - physical(tiny, other_row)).max() > 1e-2


def test_lanes_on_one_network_answer_as_separate_loads(cogact_tiny: SimpleNamespace) -> None:
    """Each joins its own chunks over time."""
    quick = replace(QUICK, ensemble_horizon=2)
    assert_lanes_equal_separate_loads(
        lambda method, settings: policy(cogact_tiny, method, settings, diffusion=quick),
        lambda lane: lane.model,
        [observation(seed // 2, stamp_ns=seed * PERIOD_NS) for seed in range(5)],
    )


def test_layout_is_that_of_upstream() -> None:
    layout = cogact_layout((ViewGrid('head', 16, 16),), 25)
    assert layout.length == 256 + 25 + 1
    assert (layout.visual.start, layout.visual.stop) == (1, 257)
    assert (layout.text.start, layout.text.stop) == (257, 281)
    assert layout.query_positions('action') == layout.query_positions('last')
    assert layout.query_positions('prefill') == slice(0, layout.length)


@torch.no_grad()
def test_leaving_equals_being_masked(cogact_tiny: SimpleNamespace) -> None:
    tested, seen = policy(cogact_tiny), observation()
    layout = cogact_layout((ViewGrid('head', 4, 4),), IDS.shape[1])
    pruner = build_pruner('fastv', cogact_tiny.n_layers, retention_ratio=0.25, pruning_layer=3)
    visual = tested.model.network.encode_images(pixels_of(seen))
    out, cognition = read_cognition(
        tested.model, visual, IDS, layout, pruner, instruction_key='x', step=0
    )
    masked = tuple(set(range(layout.length)) - set(out.kept_positions.tolist()))
    assert len(masked) == 12
    embeddings = embeddings_of(cogact_tiny, seen)
    expected = cogact_tiny.reference.hidden(embeddings, masked)[-1]
    assert (cognition[0] - expected).abs().max() < 5e-5
    unpruned = cogact_tiny.reference.hidden(embeddings)[-1]
    assert (cognition[0] - unpruned).abs().max() > 1e-2
    all_see_all = cogact_tiny.reference.hidden(embeddings, masked, causal=False)[-1]
    assert (cognition[0] - all_see_all).abs().max() > 1e-2


def test_the_decoder_is_causal(cogact_tiny: SimpleNamespace) -> None:
    """So that FastV asks the cognition token, the last of the prompt."""
    tested, ran = policy(cogact_tiny, 'fastv'), []

    def run(*arguments: object, **how: object) -> DecoderOutput:
        ran.append(how['causal'])
        return run_pruned(*arguments, **how)

    tested.run_decoder = run
    tested.predict(observation())
    assert ran == [True] == [tested.causal] and 'cogact' in CAUSAL
    assert tested._pruner.shallow_requests[0].queries == 'last'


@pytest.mark.parametrize('method', METHODS)
def test_retention_one_equals_unpruned_bit_for_bit(
    cogact_tiny: SimpleNamespace, method: str
) -> None:
    wanted = {'retention_ratio': 1.0, 'similarity_threshold': 0.0}
    settings = {k: v for k, v in wanted.items() if k in accepted_settings(method)}
    tested, full = policy(cogact_tiny, method, settings), policy(cogact_tiny)
    for seed in range(4):  # until the methods that begin with full steps choose what to keep
        a, b = tested.predict(observation(seed)), full.predict(observation(seed))
        assert np.array_equal(a.chunk.positions, b.chunk.positions)
    assert not a.trace.is_key_timestep and not a.trace.fallback


def test_a_pruned_step_keeps_the_stated_number(cogact_tiny: SimpleNamespace) -> None:
    settings = {'retention_ratio': 0.25, 'similarity_threshold': 0.0}
    tested = policy(cogact_tiny, 'safe_pruner', settings)
    first, second = (tested.predict(observation(seed)) for seed in range(2))
    assert first.trace.keyframe_reason == 'first step' and first.trace.n_retained == 16
    assert not second.trace.is_key_timestep and second.trace.n_retained == 4
    stages = {'preprocess', 'vision', 'shallow', 'scoring', 'deep', 'head', 'observe', 'total'}
    assert set(second.latency_ms) == stages
    changed = tested.predict(observation(instruction='pick up the blue block'))
    assert changed.trace.keyframe_reason == 'instruction changed'


@torch.inference_mode()
def test_guidance_batches_the_condition_first(cogact_tiny: SimpleNamespace) -> None:
    """Equals two passes one by one; with the halves exchanged it would not."""
    tested = policy(cogact_tiny)
    dit, noise, shares = tested.model.dit, tested._noise_of(0), np.array(signal_shares())
    cognition = torch.from_numpy(cogact_tiny.golden['cognition'])[None]
    steps, reference = (75, 50, 25, 0), cogact_tiny.reference
    got = DDIMSampler(dit, 4, 2.5).sample(cognition, noise)
    expected = reference.sample(cognition[0], noise[0], steps, 2.5, shares)
    assert (got - expected).abs().max() < 5e-5
    # c + s (u - c) = u + (1 - s) (c - u)
    swapped = reference.sample(cognition[0], noise[0], steps, 1 - 2.5, shares)
    assert (got - swapped).abs().max() > 1e-2
    alone = DDIMSampler(dit, 4, 1.0).sample(cognition, noise)
    unguided = reference.sample(cognition[0], noise[0], steps, 1, shares)
    assert (alone - unguided).abs().max() < 5e-5
    assert (alone - got).abs().max() > 1e-2


def test_bfloat16_keeps_the_action_model_in_float32(cogact_tiny: SimpleNamespace) -> None:
    exact = policy(cogact_tiny).predict(observation()).chunk.positions
    rounded = policy(cogact_tiny, dtype='bfloat16')
    assert rounded.model.network.dtype is torch.bfloat16
    assert rounded.model.network.decoder.rotary_emb.inv_freq.dtype is torch.float32
    assert {p.dtype for p in rounded.model.dit.parameters()} == {torch.float32}
    got = rounded.predict(observation()).chunk.positions
    assert 0 < np.abs(got - exact)[:, :6].max() < 0.2


def test_run_pruned_is_told_that_the_mask_is_causal(
    cogact_tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {}

    def spy(*args: object, **kwargs: object) -> object:
        told.update(kwargs)
        return run_pruned(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr('safe_pruner_ros.policies.openvla.network.run_pruned', spy)
    seen = observation()
    policy(cogact_tiny).predict(seen)
    assert told['causal'] is True and told['observe'] is False
    first = told['patches'][0].reshape(14, 14, 3)
    np.testing.assert_array_equal(first, seen.images['head'].rgb[:14, :14])


# -- noise, episodes ------------------------------------------------------------------------------


def test_an_episode_repeats_and_its_steps_differ(cogact_tiny: SimpleNamespace) -> None:
    tested = policy(cogact_tiny)
    episode = [tested.predict(observation()).chunk.positions for _ in range(3)]
    tested.reset()
    again = [tested.predict(observation()).chunk.positions for _ in range(3)]
    other = policy(cogact_tiny, diffusion=replace(QUICK, seed=1))
    for k in range(3):
        assert np.array_equal(episode[k], again[k])
        assert np.abs(episode[k] - other.predict(observation()).chunk.positions).max() > 1e-2
    assert np.abs(episode[0] - episode[1]).max() > 1e-2
    torch.manual_seed(5)  # nobody else's generator has a say
    tested.reset()
    assert np.array_equal(tested.predict(observation()).chunk.positions, episode[0])


def test_an_audit_repeats_the_step_and_leaves_no_trace(cogact_tiny: SimpleNamespace) -> None:
    joined = replace(QUICK, ensemble_horizon=2)
    pruned = {'retention_ratio': 0.25, 'similarity_threshold': 0.0}
    seen = [observation(k, stamp_ns=k * PERIOD_NS) for k in range(4)]
    for method, settings in (('safe_pruner', pruned), ('unpruned', {})):
        audited = policy(cogact_tiny, method, settings, diffusion=joined)
        alone = policy(cogact_tiny, method, settings, diffusion=joined)
        for each in seen:
            got, expected = audited.predict(each), alone.predict(each)
            assert np.array_equal(got.chunk.positions, expected.chunk.positions)
            audit = audited.predict_unpruned(each)
            assert audit.trace.n_retained == 16
            is_same = np.array_equal(audit.chunk.positions, got.chunk.positions)
            assert is_same == (got.trace.n_retained == 16)


@pytest.mark.parametrize('broken', ['action model', 'decoder'])
def test_nan_stops_the_step_and_leaves_no_trace(cogact_tiny: SimpleNamespace, broken: str) -> None:
    tested = policy(cogact_tiny, 'safe_pruner', diffusion=replace(QUICK, ensemble_horizon=2))
    fresh = policy(cogact_tiny, 'safe_pruner', diffusion=replace(QUICK, ensemble_horizon=2))
    model = tested.model
    weight = {
        'action model': model.dit.final_layer.linear.bias,
        'decoder': model.network.decoder.norm.weight,
    }[broken]
    saved = weight.clone()
    with torch.no_grad():
        weight[3] = float('nan')
    with pytest.raises(PolicyOutputError, match='NaN'):
        tested.predict(observation())
    with torch.no_grad():
        weight.copy_(saved)
    for seed in range(2):
        seen = observation(seed, stamp_ns=seed * PERIOD_NS)
        got, expected = tested.predict(seen), fresh.predict(seen)
        assert got.trace.keyframe_reason == expected.trace.keyframe_reason
        assert np.array_equal(got.chunk.positions, expected.chunk.positions)


# -- actions on the robot -------------------------------------------------------------------------


def test_grippers_are_what_the_statistics_leave_raw() -> None:
    """Wherever they stand, as on two arms; the others are clipped before they get their unit."""
    mask = np.array([True, False, True, False])
    action_range = Range(np.full(4, -2.0), np.full(4, 4.0), mask)
    got = to_physical([[3.0, 0.49, -0.5, 0.5], [-9.0, 7.0, 1.0, -7.0]], action_range)
    np.testing.assert_allclose(got, [[4.0, 0.0, -0.5, 1.0], [-2.0, 1.0, 4.0, 0.0]])


def test_delta_actions_and_the_sense_of_the_gripper(cogact_tiny: SimpleNamespace) -> None:
    plain = policy(cogact_tiny).predict(observation()).chunk.positions
    grip = ActionDimension('grip', scale=-1.0, offset=1.0)  # upstream opens with 1
    layout = ActionLayout((*(ActionDimension(name, 'delta') for name in JOINTS[:6]), grip))
    got = policy(cogact_tiny, actions=layout).predict(observation()).chunk.positions
    np.testing.assert_allclose(got[:, :6], plain[:, :6].cumsum(axis=0))
    np.testing.assert_allclose(got[:, 6], 1 - plain[:, 6])


def test_what_does_not_fit_is_refused_with_both_sides(cogact_tiny: SimpleNamespace) -> None:
    for changes, complaint in [
        ({'views': ('a', 'b')}, 'reads 1 image'),
        ({'proprioception': ('a',)}, 'reads no proprioception'),
        ({'actions': absolute('abc')}, r'7 dimensions.* drives 3 joints'),
        ({'chunk_size': 8}, 'gives 16 actions a query, got chunk_size 8; leave it out'),
        ({'prompt': 'text'}, "'cogact' reads no prompt"),
        ({'statistics_key': 'bridge'}, r"'bridge'; choose from \['fractal20220817_data'\]"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            policy(cogact_tiny, **changes)


def test_bad_observations_are_refused(cogact_tiny: SimpleNamespace) -> None:
    tested, seen = policy(cogact_tiny), observation()
    with pytest.raises(InstructionError, match='empty'):
        tested.check_instruction(' \n')
    with pytest.raises(ValueError, match=r"misses \['head'\]"):
        tested.predict(replace(seen, images={}))
    with pytest.raises(ValueError, match=r"no measured position of \['b', 'c'"):
        tested.predict(replace(seen, state=ArmState(np.zeros(1), ('a',), 7)))
