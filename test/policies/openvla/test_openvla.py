"""OpenVLA at a tiny size: decoding over caches of mixed length equals a full recompute."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.shared_network import assert_lanes_equal_separate_loads

from safe_pruner_ros.core.catalog import METHODS, accepted_settings, build_pruner
from safe_pruner_ros.core.pruner import SaliencyRequest
from safe_pruner_ros.core.tokens import ViewGrid
from safe_pruner_ros.policies.action_layout import absolute
from safe_pruner_ros.policies.deployment import Deployment
from safe_pruner_ros.policies.openvla.network import OpenVLANetwork, read_size
from safe_pruner_ros.policies.openvla.policy import (
    OpenVLAPolicy,
    backend,
    decode_actions,
    ids_to_actions,
    openvla_layout,
)
from safe_pruner_ros.policies.policy import NoActionError, PolicyOutputError
from safe_pruner_ros.types import ArmState, CameraImage, Observation

JOINTS = ('a', 'b', 'c', 'd', 'e', 'f', 'grip')
# VLA-Cache lets nothing leave: it reuses keys and values of earlier steps.
PRUNERS = [name for name in METHODS if name not in ('unpruned', 'vla_cache')]
IDS = torch.tensor([[1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 15, 8, 16, 18, 12, 13, 4, 29871]])


def policy(
    tiny: SimpleNamespace, method: str = 'safe_pruner', **settings: object
) -> OpenVLAPolicy:
    deployment = Deployment(
        ('head',), absolute(JOINTS), tiny.statistics_key, 0.2, dtype='float32', chunk_size=1
    )
    return backend.build(
        tiny.openvla, deployment, method, settings, vision_sizes=tiny.vision_sizes
    )


def observation(seed: int = 0) -> Observation:
    rgb = np.random.default_rng(seed).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    images = {'head': CameraImage(rgb, 'head', 7)}
    return Observation(images, ArmState(np.zeros(7), JOINTS, 7), 'pick up the red block', 7)


@torch.no_grad()
def recompute(
    tiny: SimpleNamespace, embeddings: torch.Tensor, masked: list[int], n_actions: int
) -> list[int]:
    """Greedy ids without a cache: the whole sequence anew for every token, causal, with the keys
    ``masked`` invisible from layer 3 on."""
    llama, state = tiny.reference.llama(), tiny.reference.state
    ids: list[int] = []
    for _ in range(n_actions):
        hidden = torch.cat([embeddings, tiny.reference.embed(torch.tensor([ids]).long())], dim=1)
        length = hidden.shape[1]
        cos_sin = llama.rotary_emb(hidden, torch.arange(length)[None])
        mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
        for index, layer in enumerate(llama.layers):
            if index == 3:
                mask[:, masked] = torch.finfo(torch.float32).min
            hidden = layer(hidden, attention_mask=mask[None, None], position_embeddings=cos_sin)
        last = llama.norm(hidden)[0, -1]
        ids.append(int((state['language_model.lm_head.weight'] @ last).argmax()))
    return ids


def embeddings_of(tiny: SimpleNamespace, tested: OpenVLAPolicy, seed: int) -> torch.Tensor:
    pixels = tested._pixels(tested._pictures(observation(seed)))
    text = tiny.reference.embed(IDS)
    return torch.cat([text[:, :1], tiny.reference.visual(pixels), text[:, 1:]], dim=1)


def test_layout() -> None:
    """The row that acts is the last of the prompt, and one of its rows."""
    layout = openvla_layout((ViewGrid('head', 16, 16),), 28)
    assert layout.query_positions('text') == slice(257, 284)
    assert layout.query_positions('action') == layout.query_positions('last') == slice(283, 284)
    assert layout.query_positions('prefill') == slice(0, 284)


def test_lanes_on_one_network_answer_as_separate_loads(openvla_tiny: SimpleNamespace) -> None:
    assert_lanes_equal_separate_loads(
        lambda method, settings: policy(openvla_tiny, method, **settings),
        lambda lane: lane.network,
        [observation(seed // 2) for seed in range(5)],
    )


@pytest.mark.parametrize('ratio', [None, 0.25, 0.5])
def test_decoding_over_caches_of_mixed_length_equals_a_full_recompute(
    openvla_tiny: SimpleNamespace, ratio: float | None
) -> None:
    tested = policy(openvla_tiny)
    layout = openvla_layout((ViewGrid('head', 4, 4),), IDS.shape[1])
    method = ('unpruned', {}) if ratio is None else ('fastv', {'retention_ratio': ratio})
    seen = set()
    for seed in range(4):
        pruner = build_pruner(method[0], openvla_tiny.n_layers, pruning_layer=3, **method[1])
        embeddings = embeddings_of(openvla_tiny, tested, seed)
        with torch.inference_mode():
            out, ids = decode_actions(
                tested.network, embeddings, layout, pruner, 7, instruction_key='x', step=0
            )
        masked = sorted(set(range(layout.length)) - set(out.kept_positions.tolist()))
        assert len(masked) == (0 if ratio is None else 16 - round(16 * ratio))
        assert ids.tolist() == recompute(openvla_tiny, embeddings, masked, 7)
        seen.add(tuple(ids.tolist()))
    assert len(seen) > 1  # otherwise equality would say little


@pytest.mark.parametrize('method', PRUNERS)
def test_every_method_decodes_as_if_what_left_were_masked(
    openvla_tiny: SimpleNamespace, method: str
) -> None:
    tested, layout = policy(openvla_tiny), openvla_layout((ViewGrid('head', 4, 4),), IDS.shape[1])
    settings = {'retention_ratio': 0.25, 'pruning_layer': 3}
    if 'similarity_threshold' in accepted_settings(method):
        settings['similarity_threshold'] = 0.0
    pruner = build_pruner(method, openvla_tiny.n_layers, **settings)
    n_pruned = 0
    for step in range(8):  # some methods look at several timesteps before they prune
        embeddings = embeddings_of(openvla_tiny, tested, step)
        with torch.inference_mode():
            out, ids = decode_actions(
                tested.network, embeddings, layout, pruner, 7, instruction_key='x', step=step
            )
            pruner.observe(out.context, out.plan, out.attention)
        masked = sorted(set(range(layout.length)) - set(out.kept_positions.tolist()))
        if masked:
            assert len(masked) == 12
            assert ids.tolist() == recompute(openvla_tiny, embeddings, masked, 7)
            n_pruned += 1
        if n_pruned == 2:
            break
    assert n_pruned == 2


@torch.no_grad()
def attention_maps(
    tiny: SimpleNamespace, embeddings: torch.Tensor, ids: torch.Tensor, masked: list[int]
) -> list[torch.Tensor]:
    """[H, S, S] by layer: the prompt and all tokens fed back in one causal pass, with the keys
    ``masked`` invisible from layer 3 on."""
    llama = tiny.reference.llama()
    hidden = torch.cat([embeddings, tiny.reference.embed(ids[None, :-1])], dim=1)
    length = hidden.shape[1]
    cos_sin = llama.rotary_emb(hidden, torch.arange(length)[None])
    mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
    maps = []
    for index, layer in enumerate(llama.layers):
        if index == 3:
            mask[:, masked] = torch.finfo(torch.float32).min
        normed = layer.input_layernorm(hidden)
        maps.append(layer.self_attn(normed, cos_sin, mask[None, None])[1][0])
        hidden = layer(hidden, attention_mask=mask[None, None], position_embeddings=cos_sin)
    return maps


@torch.no_grad()
def test_deep_saliency_is_that_of_the_decoding_stage(openvla_tiny: SimpleNamespace) -> None:
    """Equals the attention maps of the full sequence, rows of the six tokens fed back."""
    tested = policy(openvla_tiny)
    embeddings = embeddings_of(openvla_tiny, tested, 0)
    layout = openvla_layout((ViewGrid('head', 4, 4),), IDS.shape[1])
    pruner = build_pruner('safe_pruner', openvla_tiny.n_layers, pruning_layer=3)
    out, ids = decode_actions(
        tested.network, embeddings, layout, pruner, 7, instruction_key='x', step=0
    )
    maps, n_prompt = attention_maps(openvla_tiny, embeddings, ids, []), layout.length
    assert {request.layer for request in out.attention.saliency} == {0, 2, 4, 5}
    for request, saliency in out.attention.saliency.items():
        is_early = request in pruner.shallow_requests
        rows = slice(n_prompt - 1, n_prompt) if is_early else slice(n_prompt, n_prompt + 6)
        expected = maps[request.layer][:, rows, 1:17].mean(dim=(0, 1))
        assert torch.allclose(saliency, expected, atol=1e-6), request


@torch.no_grad()
def test_a_pruned_step_reads_the_decoding_stage_too(openvla_tiny: SimpleNamespace) -> None:
    """Below the cut every visual key is there; above it those that left read 0."""
    tested, layout = policy(openvla_tiny), openvla_layout((ViewGrid('head', 4, 4),), IDS.shape[1])
    pruner = build_pruner('fastv', openvla_tiny.n_layers, retention_ratio=0.25, pruning_layer=3)
    asked = [
        SaliencyRequest(layer, 'action', per_query, on_pruned_steps=True)
        for layer in (1, 3, 5)
        for per_query in (False, True)
    ]
    pruner.deep_requests = (*asked, SaliencyRequest(4, 'action'))
    embeddings = embeddings_of(openvla_tiny, tested, 0)
    out, ids = decode_actions(
        tested.network, embeddings, layout, pruner, 7, instruction_key='x', step=0
    )
    masked = sorted(set(range(layout.length)) - set(out.kept_positions.tolist()))
    assert len(masked) == 12
    maps, n_prompt = attention_maps(openvla_tiny, embeddings, ids, masked), layout.length
    assert set(out.attention.saliency) == {*asked, *pruner.shallow_requests}  # not layer 4
    for request in asked:
        rows = maps[request.layer][:, n_prompt : n_prompt + 6, 1:17].mean(dim=0)
        expected = rows if request.per_query else rows.mean(dim=0)
        got = out.attention.saliency[request]
        assert got.shape == expected.shape and torch.allclose(got, expected, atol=1e-6), request
        assert (expected == 0).any() == (request.layer >= 3)


def test_skipped_tokens_are_seen_by_the_decoding_stage(openvla_tiny: SimpleNamespace) -> None:
    """VLA-Cache on a picture that stands still: as if every token were computed."""
    tested = policy(
        openvla_tiny, 'vla_cache', retention_ratio=0.25, relevant_share=0.0, schedule='uniform'
    )
    pruner, request = tested._pruner, SaliencyRequest(4, 'action', on_pruned_steps=True)
    pruner.deep_requests = (*pruner.deep_requests, request)
    seen, observe = [], pruner.observe
    pruner.observe = lambda *step: (seen.append(step[2].saliency[request]), observe(*step))
    assert [tested.predict(observation()).trace.n_retained for _ in range(2)] == [16, 4]
    assert torch.allclose(seen[0], seen[1], atol=1e-6) and (seen[1] > 0).all()
    embeddings = embeddings_of(openvla_tiny, tested, 0)
    ids = torch.tensor(recompute(openvla_tiny, embeddings, [], 7))
    n_prompt, maps = embeddings.shape[1], attention_maps(openvla_tiny, embeddings, ids, [])
    expected = maps[4][:, n_prompt : n_prompt + 6, 1:17].mean(dim=(0, 1))
    assert torch.allclose(seen[1], expected, atol=1e-6)


@torch.no_grad()
def test_diverse_forecast_remembers_the_decoding_stage(openvla_tiny: SimpleNamespace) -> None:
    """In an episode that starts pruned, and goes on so."""
    tested, layout = policy(openvla_tiny), openvla_layout((ViewGrid('head', 4, 4),), IDS.shape[1])
    settings = {'retention_ratio': 0.25, 'similarity_threshold': 0.0}
    pruner = build_pruner('diverse_forecast', openvla_tiny.n_layers, **settings)
    for step in range(3):
        embeddings = embeddings_of(openvla_tiny, tested, step)
        out, ids = decode_actions(
            tested.network, embeddings, layout, pruner, 7, instruction_key='x', step=step
        )
        pruner.observe(out.context, out.plan, out.attention)
        assert out.plan.retained is not None
        kept = out.plan.retained.visual_index
        masked = sorted(set(range(layout.length)) - set(out.kept_positions.tolist()))
        maps, n_prompt = attention_maps(openvla_tiny, embeddings, ids, masked), layout.length
        rows = [
            maps[layer][:, n_prompt : n_prompt + 6, 1:17].mean(dim=(0, 1)) for layer in (0, 4, 5)
        ]
        remembered = pruner._cache.get().saliency[1:, kept]
        assert torch.allclose(remembered, torch.stack(rows)[:, kept], atol=1e-6)


def test_unpruned_policy_decodes_the_references_ids(openvla_tiny: SimpleNamespace) -> None:
    tested = policy(openvla_tiny, 'unpruned')
    embeddings = embeddings_of(openvla_tiny, tested, 0)
    ids = torch.tensor(recompute(openvla_tiny, embeddings, [], 7))
    normalised = ids_to_actions(ids, 32000, 256).numpy()
    q01 = np.array([-0.5 - 0.1 * k for k in range(7)])
    q99 = np.array([0.5 + 0.2 * k for k in range(7)])
    expected = 0.5 * (normalised + 1) * (q99 - q01) + q01
    expected[6] = normalised[6]
    got = tested.predict(observation()).chunk.positions
    np.testing.assert_allclose(got, expected[None], atol=1e-12)


def test_token_ids_are_bins_from_the_end_of_the_vocabulary() -> None:
    got = ids_to_actions(torch.tensor([31999, 31998, 31745, 31744, 5, 32063]), 32000, 256)
    width = 2 / 255
    expected = [-1 + width / 2, -1 + 1.5 * width, 1 - width / 2, 1 - width / 2, 1 - width / 2]
    np.testing.assert_allclose(got, [*expected, -1 + width / 2])


@pytest.mark.parametrize('method', METHODS)
def test_retention_one_equals_unpruned_bit_for_bit(
    openvla_tiny: SimpleNamespace, method: str
) -> None:
    wanted = {'retention_ratio': 1.0, 'similarity_threshold': 0.0}
    settings = {k: v for k, v in wanted.items() if k in accepted_settings(method)}
    tested, full = policy(openvla_tiny, method, **settings), policy(openvla_tiny, 'unpruned')
    for seed in range(4):  # until the methods that begin with full steps choose what to keep
        a, b = tested.predict(observation(seed)), full.predict(observation(seed))
        assert np.array_equal(a.chunk.positions, b.chunk.positions)
    assert not a.trace.is_key_timestep and not a.trace.fallback


def test_vla_cache_answers_alike_while_nothing_moves(openvla_tiny: SimpleNamespace) -> None:
    """Decoding goes on over a cache that holds every token in every layer."""
    settings = {'retention_ratio': 0.25, 'relevant_share': 0.0, 'schedule': 'uniform'}
    cached = policy(openvla_tiny, 'vla_cache', **settings)
    full = policy(openvla_tiny, 'unpruned').predict(observation())
    for step in range(3):
        got = cached.predict(observation())
        assert np.array_equal(got.chunk.positions, full.chunk.positions)
        assert got.trace.n_retained == (4 if step else 16)


def test_a_pruned_step_keeps_the_stated_number(openvla_tiny: SimpleNamespace) -> None:
    tested = policy(openvla_tiny, retention_ratio=0.25, similarity_threshold=0.0)
    assert tested.predict(observation()).trace.keyframe_reason == 'first step'
    assert tested.predict(observation(1)).trace.n_retained == 4


@pytest.mark.parametrize('bad', [2, 13, 31743, 32000, 32063])
def test_a_token_that_is_no_action_stops_the_step_and_leaves_no_trace(
    openvla_tiny: SimpleNamespace, bad: int
) -> None:
    """The end of the sentence, a newline, what borders on the actions, padding."""
    settings = {'retention_ratio': 0.25, 'similarity_threshold': 0.0}
    tested, untouched, probe = (policy(openvla_tiny, **settings) for _ in range(3))
    logits: list[torch.Tensor] = []
    probe.network.lm_head.register_forward_hook(lambda *call: logits.append(call[2][0, -1]))
    for seed in range(3):
        probe.predict(observation(seed))
    for seed in range(2):
        assert_steps_alike(tested, untouched, seed)
    head = tested.network.lm_head.weight
    saved, usual = head[bad].clone(), logits[-4].argmax()
    head[bad] = 2 * head[usual]  # likelier than the fourth token of the third answer
    with pytest.raises(NoActionError, match=rf'{bad}.* not all are action tokens \(31744 to 31'):
        tested.predict(observation(2))
    head[bad] = saved
    for seed in range(2, 4):
        assert_steps_alike(tested, untouched, seed)


def assert_steps_alike(a: OpenVLAPolicy, b: OpenVLAPolicy, seed: int) -> None:
    one, two = a.predict(observation(seed)), b.predict(observation(seed))
    assert np.array_equal(one.chunk.positions, two.chunk.positions)
    assert one.trace.keyframe_reason == two.trace.keyframe_reason
    assert np.array_equal(one.trace.retained_index, two.trace.retained_index)


def test_nan_in_the_language_head_stops_the_step(openvla_tiny: SimpleNamespace) -> None:
    tested = policy(openvla_tiny)
    tested.network.lm_head.weight[7] = float('nan')
    with pytest.raises(PolicyOutputError, match='NaN'):
        tested.predict(observation())


@torch.no_grad()
def test_the_full_size_has_the_published_parameters() -> None:
    """On the meta device: 7.541 B in all, less what is never run (a block of each tower, SigLIP's
    norm and pooling head, DINOv2's norm)."""
    size = read_size(
        Path('folder'),
        {
            'model_type': 'openvla',
            'vision_backbone_id': 'dinosiglip-vit-so-224px',
            'text_config': {'vocab_size': 32064, 'pad_token_id': 32000},
        },
    )
    assert size.vocabulary == 32000 and size.decoder.rms_norm_eps == 1e-6
    with torch.device('meta'):
        network = OpenVLANetwork(size, with_lm_head=True)
    parts = {'vision.projector': 0.071e9, 'decoder': 6.607e9, 'lm_head': 0.131e9}
    for name, expected in parts.items():
        count = sum(p.numel() for p in network.get_submodule(name).parameters())
        assert abs(count - expected) < 1e6, (name, count)
    total = sum(p.numel() for p in network.parameters())
    unused_dino, unused_siglip = 12.6e6, 15.2e6 + 15.2e6 + 0.01e6
    assert abs(total + unused_dino + unused_siglip - 7.541e9) < 3e6


def test_more_images_or_proprioception_are_refused(openvla_tiny: SimpleNamespace) -> None:
    tested = policy(openvla_tiny)
    for change, complaint in [
        ({'views': ('a', 'b')}, 'reads 1 image'),
        ({'proprioception': ('a',)}, 'reads no proprioception'),
    ]:
        deployment = replace(tested._deployment, **change)
        with pytest.raises(ValueError, match=complaint):
            backend.build(
                openvla_tiny.openvla,
                deployment,
                'unpruned',
                {},
                vision_sizes=openvla_tiny.vision_sizes,
            )


@pytest.mark.parametrize(
    'part', ['action_head', 'proprio_projector', 'noisy_action_projector', 'vision_backbone']
)
def test_openvla_oft_is_not_run_as_openvla(
    openvla_tiny: SimpleNamespace, tmp_path: Path, part: str
) -> None:
    """The network loads, and acts as it was never trained to."""
    folder = tmp_path / 'checkpoint'
    shutil.copytree(openvla_tiny.openvla, folder)
    deployment = policy(openvla_tiny)._deployment
    sizes = {'vision_sizes': openvla_tiny.vision_sizes}
    backend.build(folder, deployment, 'unpruned', {}, **sizes)
    (folder / f'{part}--latest_checkpoint.pt').touch()
    with pytest.raises(ValueError, match=rf"\['{part}'\]: this is an .* policy 'openvla_oft'"):
        backend.build(folder, deployment, 'unpruned', {}, **sizes)
