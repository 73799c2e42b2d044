"""OpenVLA-OFT at a tiny size: equal to plain torch on the official tensors, and strict."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.openvla_oft import (
    CHUNK,
    CPU,
    JOINTS,
    VIEWS,
    observation,
    policy,
)
from helpers.shared_network import assert_lanes_equal_separate_loads

from safe_pruner_ros.core.catalog import METHODS, accepted_settings, build_pruner
from safe_pruner_ros.core.tokens import ViewGrid
from safe_pruner_ros.policies.action_layout import ActionDimension, ActionLayout, absolute
from safe_pruner_ros.policies.graphed_decoder import use_graphs
from safe_pruner_ros.policies.openvla.oft_policy import (
    OFTModel,
    load_oft_model,
    oft_layout,
)
from safe_pruner_ros.policies.pruned_decoder import run_pruned
from safe_pruner_ros.types import ArmState, Observation


@pytest.fixture(scope='module')
def model(openvla_tiny: SimpleNamespace) -> OFTModel:
    return load_oft_model(openvla_tiny.oft, CPU, torch.float32, openvla_tiny.vision_sizes)


def pixels_of(tiny: SimpleNamespace, seen: Observation) -> torch.Tensor:
    views = []
    for image in seen.images.values():
        rgb = torch.from_numpy(image.rgb).permute(2, 0, 1).float() / 255
        towers = zip(tiny.means, tiny.stds, strict=True)
        views.append(
            torch.cat(
                [
                    (rgb - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
                    for mean, std in towers
                ]
            )
        )
    return torch.stack(views)


IDS = torch.tensor([[1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 15, 8, 16, 18, 12, 13, 4, 29871]])


def reference_embeddings(tiny: SimpleNamespace, seen: Observation) -> torch.Tensor:
    reference = tiny.reference
    state = torch.from_numpy((2 * (seen.state.positions + 1) / 2.5 - 1).astype(np.float32))
    text, end = reference.embed(IDS), reference.embed(torch.tensor([[2]]))
    visual = reference.visual(pixels_of(tiny, seen))
    token = reference.proprio(state[None])[None]
    blank = torch.zeros(1, CHUNK * 7, text.shape[2])
    return torch.cat([text[:, :1], visual, token, text[:, 1:], blank, end], dim=1)


def reference_hidden(
    tiny: SimpleNamespace,
    embeddings: torch.Tensor,
    *,
    causal: bool = False,
    masked: list[int] | None = None,
    masked_from: int = 0,
) -> torch.Tensor:
    """Every layer with an explicit mask, every token kept; keys ``masked`` are invisible from
    layer ``masked_from`` on."""
    llama, length = tiny.reference.llama(), embeddings.shape[1]
    mask = torch.zeros(length, length)
    if causal:
        mask = torch.full_like(mask, -torch.inf).triu(1)
    cos_sin = llama.rotary_emb(embeddings, torch.arange(length)[None])
    hidden = embeddings
    for index, layer in enumerate(llama.layers):
        if index == masked_from and masked:
            mask[:, masked] = -torch.inf
        hidden = layer(hidden, attention_mask=mask[None, None], position_embeddings=cos_sin)
    return llama.norm(hidden)


def physical(tiny: SimpleNamespace, actions: torch.Tensor) -> np.ndarray:
    q01 = np.array([-0.5 - 0.1 * k for k in range(7)])
    q99 = np.array([0.5 + 0.2 * k for k in range(7)])
    targets = 0.5 * (actions.double().numpy() + 1) * (q99 - q01 + 1e-8) + q01
    targets[:, 6] = actions[:, 6].double().numpy()
    return targets


# -- exactness ------------------------------------------------------------------------------------


def test_vision_equals_timms_vision_transformers(
    openvla_tiny: SimpleNamespace, model: OFTModel
) -> None:
    pixels = pixels_of(openvla_tiny, observation())
    expected = openvla_tiny.reference.visual(pixels)
    got = model.network.encode_images(pixels)
    assert got.shape == (1, 2 * openvla_tiny.n_patches, 32)
    assert (got - expected).abs().max() < 5e-5
    swapped = torch.cat([pixels[:, 3:], pixels[:, :3]], dim=1)  # SigLIP first would be wrong
    assert (model.network.encode_images(swapped) - expected).abs().max() > 1e-2


def test_actions_equal_the_reference_and_the_read_out_is_one_row_early(
    openvla_tiny: SimpleNamespace,
) -> None:
    seen = observation()
    hidden = reference_hidden(openvla_tiny, reference_embeddings(openvla_tiny, seen))[0]
    n, n_action = len(hidden), CHUNK * 7
    head = openvla_tiny.reference.action_head
    expected = physical(openvla_tiny, head(hidden[n - 2 - n_action : n - 2]))
    got = policy(openvla_tiny, 'unpruned').predict(seen).chunk
    assert got.positions.shape == (CHUNK, 7) and got.joint_names == JOINTS
    np.testing.assert_allclose(got.positions, expected, atol=5e-5)
    placeholders = physical(openvla_tiny, head(hidden[n - 1 - n_action : n - 1]))
    assert np.abs(got.positions - placeholders).max() > 1e-2


def test_a_causal_mask_gives_other_actions(
    openvla_tiny: SimpleNamespace,
) -> None:
    seen = observation()
    embeddings = reference_embeddings(openvla_tiny, seen)
    hidden = reference_hidden(openvla_tiny, embeddings, causal=True)[0]
    rows = hidden[len(hidden) - 2 - CHUNK * 7 : len(hidden) - 2]
    causal = physical(openvla_tiny, openvla_tiny.reference.action_head(rows))
    got = policy(openvla_tiny, 'unpruned').predict(seen).chunk.positions
    assert np.abs(got - causal).max() > 1e-2


def test_lanes_on_one_network_answer_as_separate_loads(openvla_tiny: SimpleNamespace) -> None:
    assert_lanes_equal_separate_loads(
        lambda method, settings: policy(openvla_tiny, method, settings=settings),
        lambda lane: lane.model.network,
        [observation(seed=seed // 2) for seed in range(5)],
    )


def test_graphs_are_not_shared(openvla_tiny: SimpleNamespace) -> None:
    """Their inputs and outputs live at fixed addresses: one policy at a time."""
    first = policy(openvla_tiny)
    use_graphs(first, capture=lambda function, inputs: pytest.fail('nothing runs here'))
    second = first.with_pruner('unpruned')
    assert first.run_decoder is not None and second.run_decoder is None
    assert second.encode_images == second.model.network.encode_images


@pytest.mark.parametrize('method', METHODS)
def test_retention_one_equals_unpruned_bit_for_bit(
    openvla_tiny: SimpleNamespace, method: str
) -> None:
    wanted = {'retention_ratio': 1.0, 'similarity_threshold': 0.0}
    settings = {k: v for k, v in wanted.items() if k in accepted_settings(method)}
    tested = policy(openvla_tiny, method, settings=settings)
    full = policy(openvla_tiny, 'unpruned')
    for seed in range(4):  # until the methods that begin with full steps choose what to keep
        a, b = tested.predict(observation(seed=seed)), full.predict(observation(seed=seed))
        assert np.array_equal(a.chunk.positions, b.chunk.positions)
    assert not a.trace.is_key_timestep and not a.trace.fallback


def test_vla_cache_answers_alike_while_nothing_moves(openvla_tiny: SimpleNamespace) -> None:
    settings = {'retention_ratio': 0.25, 'relevant_share': 0.0, 'schedule': 'uniform'}
    cached = policy(openvla_tiny, 'vla_cache', settings=settings)
    full = policy(openvla_tiny, 'unpruned').predict(observation())
    for step in range(3):
        got = cached.predict(observation())
        np.testing.assert_allclose(got.chunk.positions, full.chunk.positions, atol=1e-4)
        assert got.trace.n_retained == (8 if step else 32)


# VLA-Cache lets nothing leave: it reuses keys and values of earlier steps.
PRUNERS = [name for name in METHODS if name not in ('unpruned', 'vla_cache')]


@pytest.mark.parametrize(
    ('method', 'queries'), [('fastv', 'readout'), *((name, 'placeholders') for name in PRUNERS)]
)
def test_leaving_equals_being_masked(
    openvla_tiny: SimpleNamespace, model: OFTModel, method: str, queries: str
) -> None:
    views = tuple(ViewGrid(view, 4, 4) for view in VIEWS)
    layout = oft_layout(views, IDS.shape[1], CHUNK * 7, has_proprio=True, queries=queries)
    settings = {'retention_ratio': 0.25, 'pruning_layer': 3}
    if 'similarity_threshold' in accepted_settings(method):
        settings['similarity_threshold'] = 0.0
    pruner = build_pruner(method, openvla_tiny.n_layers, **settings)
    for step in range(8):  # some methods look at several timesteps before they prune
        embeddings = reference_embeddings(openvla_tiny, observation(seed=step))
        out, actions = model.decode(embeddings, layout, pruner, instruction_key='x', step=step)
        kept = set(out.kept_positions.tolist())
        masked = sorted(set(range(layout.tokens.length)) - kept)
        if masked:
            break
    assert len(masked) == 24
    hidden = reference_hidden(openvla_tiny, embeddings, masked=masked, masked_from=3)[0]
    rows = hidden[layout.readout.start : layout.readout.stop]
    assert (out.rows(layout.readout) - rows).abs().max() < 5e-5
    expected = openvla_tiny.reference.action_head(rows)
    assert (actions - expected).abs().max() < 5e-5
    unpruned = reference_hidden(openvla_tiny, embeddings)[0]
    assert (unpruned[layout.readout.start : layout.readout.stop] - rows).abs().max() > 1e-2


def test_layout_is_that_of_the_paper() -> None:
    """512 visual tokens, LIBERO's mean prompt of 28.5 tokens: 598.5 in all."""
    views = tuple(ViewGrid(view, 16, 16) for view in VIEWS)
    layout = oft_layout(views, 28, 56, has_proprio=True)
    n = layout.tokens.length
    assert n == 598
    assert (layout.readout.start, layout.readout.stop) == (n - 58, n - 2)
    assert (layout.tokens.action.start, layout.tokens.action.stop) == (n - 57, n - 1)
    assert layout.tokens.text.start == 514 and layout.tokens.text.stop == n - 57
    assert layout.tokens.query_positions('prefill') == slice(0, n - 57)
    assert oft_layout(views, 28, 56, has_proprio=False).tokens.length == 597


@pytest.mark.parametrize('n_views', [1, 2, 3])
def test_one_to_three_images(openvla_tiny: SimpleNamespace, n_views: int) -> None:
    views = ('head', 'wrist', 'left')[:n_views]
    tested = policy(
        openvla_tiny,
        settings={'retention_ratio': 0.25, 'similarity_threshold': 0.0},
        views=views,
    )
    tested.predict(observation(views=views))
    second = tested.predict(observation(seed=1, views=views))
    assert second.trace.n_visual == 16 * n_views
    assert second.trace.n_retained == 4 * n_views
    assert set(second.latency_ms) >= {'preprocess', 'vision', 'shallow', 'deep', 'head', 'total'}


def test_bfloat16_stays_close(openvla_tiny: SimpleNamespace) -> None:
    exact = policy(openvla_tiny, 'unpruned').predict(observation()).chunk.positions
    rounded = policy(openvla_tiny, 'unpruned', dtype='bfloat16')
    assert rounded.model.network.dtype is torch.bfloat16
    assert rounded.model.network.decoder.rotary_emb.inv_freq.dtype is torch.float32
    got = rounded.predict(observation()).chunk.positions
    assert 0 < np.abs(got - exact).max() < 0.3


def test_an_audit_is_unpruned_and_leaves_no_trace(openvla_tiny: SimpleNamespace) -> None:
    settings = {'retention_ratio': 0.25, 'similarity_threshold': 0.0}
    audited, alone = (policy(openvla_tiny, settings=settings) for _ in range(2))
    for seed in range(3):
        seen = observation(seed=seed)
        pruned, unpruned = audited.predict(seen), audited.predict_unpruned(seen)
        assert unpruned.trace.n_retained == unpruned.trace.n_visual
        expected = policy(openvla_tiny, 'unpruned').predict(seen).chunk.positions
        assert np.array_equal(unpruned.chunk.positions, expected)
        assert np.array_equal(pruned.chunk.positions, alone.predict(seen).chunk.positions)


def test_a_new_instruction_is_a_keyframe_and_reset_forgets(openvla_tiny: SimpleNamespace) -> None:
    tested = policy(openvla_tiny, settings={'similarity_threshold': 0.0})
    tested.predict(observation())
    changed = tested.predict(observation('pick up the blue block'))
    assert changed.trace.keyframe_reason == 'instruction changed'
    tested.reset()
    assert tested.predict(observation()).trace.keyframe_reason == 'first step'


def test_delta_actions_start_at_the_measured_joints(openvla_tiny: SimpleNamespace) -> None:
    seen = observation()
    plain = policy(openvla_tiny, 'unpruned').predict(seen).chunk.positions
    for semantics, moved in (('delta', plain.cumsum(axis=0)), ('delta_from_state', plain)):
        arm = tuple(ActionDimension(name, semantics) for name in JOINTS[:6])
        layout = ActionLayout((*arm, ActionDimension('grip')))
        got = policy(openvla_tiny, 'unpruned', actions=layout).predict(seen).chunk.positions
        np.testing.assert_allclose(got[:, :6], seen.state.positions[:6] + moved[:, :6])
        np.testing.assert_allclose(got[:, 6], plain[:, 6])


def test_proprioception_arrives_in_the_units_of_the_checkpoint(
    openvla_tiny: SimpleNamespace,
) -> None:
    """A checkpoint that counts openness sees openness, and its answer is turned back."""
    closedness = observation()
    openness = closedness.state.positions.copy()
    openness[6] = 1 - openness[6]
    plain = policy(openvla_tiny, 'unpruned')
    answer = plain.predict(
        replace(closedness, state=ArmState(openness, JOINTS, 7))
    ).chunk.positions
    grip = ActionDimension('grip', scale=-1.0, offset=1.0)
    layout = ActionLayout((*absolute(JOINTS[:6]).dimensions, grip))
    turned = policy(openvla_tiny, 'unpruned', actions=layout).predict(closedness).chunk.positions
    np.testing.assert_allclose(turned[:, :6], answer[:, :6])
    np.testing.assert_allclose(turned[:, 6], 1 - answer[:, 6])
    assert np.abs(plain.predict(closedness).chunk.positions - answer).max() > 1e-3


def test_grippers_are_clipped_and_may_be_binary() -> None:
    layout = ActionLayout(
        (
            ActionDimension('left', gripper=True),
            ActionDimension('right', scale=-1.0, offset=1.0, gripper=True, binary=True),
        )
    )
    got = layout.targets(np.array([[1.2, 0.7], [-0.1, 0.2]]), np.zeros(2))
    np.testing.assert_array_equal(got, [[1, 0], [0, 1]])
    with pytest.raises(ValueError, match='binary is for grippers'):
        ActionDimension('elbow', binary=True)


def test_run_pruned_is_told_that_all_see_all_and_is_shown_the_pictures(
    openvla_tiny: SimpleNamespace, model: OFTModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {}

    def spy(*args: object, **kwargs: object) -> object:
        told.update(kwargs)
        return run_pruned(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr('safe_pruner_ros.policies.openvla.network.run_pruned', spy)
    seen = observation()
    policy(openvla_tiny).predict(seen)
    assert told['causal'] is False
    grid, patches = 4, told['patches']
    last = seen.images[VIEWS[-1]].rgb
    assert patches.shape == (len(VIEWS) * grid**2, 14 * 14 * 3)
    np.testing.assert_array_equal(patches[-1].reshape(14, 14, 3), last[-14:, -14:])


def test_measured_joints_are_read_by_name(openvla_tiny: SimpleNamespace) -> None:
    """As proprioception, and as where deltas start."""
    seen = observation()
    turned = ArmState(seen.state.positions[::-1].copy(), JOINTS[::-1], 7)
    layout = ActionLayout(tuple(ActionDimension(name, 'delta') for name in JOINTS))
    for actions in (absolute(JOINTS), layout):
        tested = policy(openvla_tiny, 'unpruned', actions=actions)
        a, b = (tested.predict(o).chunk.positions for o in (seen, replace(seen, state=turned)))
        assert np.array_equal(a, b)
