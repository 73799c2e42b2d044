"""The pruned run against plain references: every claim of pruned_decoder's docstring."""

import copy

import pytest
import torch
from helpers.tiny_llama import LAYOUT, N_LAYERS, POSITIONS, build, embeddings_of, llama, run
from transformers import DynamicCache

from safe_pruner_ros.core.catalog import METHODS, accepted_settings
from safe_pruner_ros.core.pruner import KeyframeReason, SaliencyRequest
from safe_pruner_ros.core.tokens import Span, TokenLayout
from safe_pruner_ros.policies.policy import PolicyOutputError
from safe_pruner_ros.policies.pruned_decoder import STAGES


@torch.no_grad()
def plain_run(model, embeddings, causal, masked_from=None, masked=(), maps=None):
    """All tokens through all layers with an explicit mask; the keys ``masked`` cannot be seen from
    layer ``masked_from`` on. Fills ``maps`` with attention maps when asked (eager only)."""
    cos_sin = model.rotary_emb(embeddings, POSITIONS)
    lowest = torch.finfo(embeddings.dtype).min
    mask = torch.zeros(LAYOUT.length, LAYOUT.length)
    if causal:
        mask = torch.full_like(mask, lowest).triu(1)
    hidden = embeddings
    for index, layer in enumerate(model.layers):
        if index == masked_from:
            mask[:, list(masked)] = lowest
        if maps is not None:
            normed = layer.input_layernorm(hidden)
            _, weights = layer.self_attn(normed, cos_sin, mask[None, None])
            maps.append(weights[0])
        hidden = layer(hidden, attention_mask=mask[None, None], position_embeddings=cos_sin)
    return model.norm(hidden)


# -- exactness ------------------------------------------------------------------------------------


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('method', METHODS)
def test_ratio_1_equals_unpruned_bit_for_bit(model, method, causal):
    pruner = build(method, 1.0)
    for step in range(4):  # until the methods that begin with full steps prune
        got = run(model, pruner, step, causal=causal)
        unpruned = run(model, build('unpruned'), step, causal=causal)
        assert torch.equal(got.hidden, unpruned.hidden)
        assert torch.equal(got.kept_positions, POSITIONS[0])
    assert (got.plan.retained is None) == (method == 'unpruned')


@pytest.mark.parametrize('causal', [False, True])
def test_unpruned_equals_plain_layers(model, causal):
    got = run(model, build('unpruned'), causal=causal)
    expected = plain_run(model, embeddings_of(), causal)
    assert torch.allclose(got.hidden, expected, atol=1e-5)


def test_causal_and_bidirectional_differ_and_neither_is_silent(model):
    """With a mask of None, SDPA would be causal and eager would not: whatever is asked must come
    out of both. So the last test's tolerance means something."""
    both = run(model, build('unpruned')).hidden
    causal = run(model, build('unpruned'), causal=True).hidden
    assert (both - causal).abs().max() > 0.1


def test_causal_equals_the_model_itself(model):
    expected = model(inputs_embeds=embeddings_of(), use_cache=False).last_hidden_state
    got = run(model, build('unpruned'), causal=True)
    assert torch.allclose(got.hidden, expected, atol=1e-5)


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('ratio', [0.05, 0.3, 0.7])
@pytest.mark.parametrize('method', [m for m in METHODS if m not in ('unpruned', 'vla_cache')])
def test_leaving_equals_being_masked(model, method, ratio, causal):
    pruner = build(method, ratio)
    for step in range(4):  # until the methods that begin with full steps prune
        got = run(model, pruner, step, causal=causal)
    assert got.plan.retained is not None
    kept = set(got.kept_positions.tolist())
    masked = set(range(LAYOUT.length)) - kept
    assert len(masked) == 20 - round(20 * ratio)
    expected = plain_run(model, embeddings_of(3), causal, pruner.pruning_layer, masked)
    assert torch.allclose(got.hidden, expected[:, got.kept_positions], atol=1e-5)
    for span in (LAYOUT.text, LAYOUT.action):
        rows = expected[0, span.start : span.stop]
        assert torch.allclose(got.rows(span), rows, atol=1e-5)
    unpruned = run(model, build('unpruned'), 3, causal=causal)
    assert (got.rows(LAYOUT.action) - unpruned.rows(LAYOUT.action)).abs().max() > 1e-3


def test_original_position_ids_stay(model):
    """Positions need not be 0..S-1, and the ones left keep theirs."""
    pruner = build('fastv')
    spread = POSITIONS * 3 + 5
    got = run(model, pruner, position_ids=spread)
    again = run(model, build('fastv'), position_ids=POSITIONS)
    seen = []

    def rotary(x, position_ids):
        seen.append(position_ids)
        return model.rotary_emb(x, position_ids)

    watched = run(model, build('fastv'), position_ids=spread, rotary=rotary)
    assert [ids.tolist() for ids in seen] == [spread.tolist()]  # computed once, then gathered
    assert torch.equal(watched.hidden, got.hidden)
    assert not torch.allclose(got.hidden[0, -1], again.hidden[0, -1], atol=1e-3)


@pytest.mark.parametrize('method', [m for m in METHODS if m != 'random'])
def test_the_order_of_visual_tokens_does_not_matter(model, method):
    """Each with its position id: the same tokens stay and the action rows answer the same."""
    order = torch.randperm(20, generator=torch.Generator().manual_seed(5))
    places = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + order, torch.arange(21, 30)])
    settings = {'quota_scope': 'joint'} if 'quota_scope' in accepted_settings(method) else {}
    if method == 'vla_cache':  # all that may be skipped is
        settings |= {'schedule': 'uniform', 'relevant_share': 0.0}
    plain, moved = (build(method, 0.3, **settings) for _ in range(2))
    for step in range(5):
        got = run(model, plain, step)
        shuffled = run(
            model,
            moved,
            step,
            embeddings=embeddings_of(step)[:, places],
            position_ids=POSITIONS[:, places],
        )
        assert torch.allclose(got.rows(LAYOUT.action), shuffled.rows(LAYOUT.action), atol=1e-5)
        assert sorted(places[shuffled.kept_positions].tolist()) == got.kept_positions.tolist()
    assert method == 'unpruned' or len(got.kept_positions) < LAYOUT.length


@pytest.mark.parametrize('pruning_layer', [1, 2, 5])
def test_any_pruning_layer(model, pruning_layer):
    pruner = build('safe_pruner', pruning_layer=pruning_layer)
    run(model, pruner, 0)
    got = run(model, pruner, 1)
    masked = set(range(LAYOUT.length)) - set(got.kept_positions.tolist())
    expected = plain_run(model, embeddings_of(1), False, pruning_layer, masked)
    assert torch.allclose(got.hidden, expected[:, got.kept_positions], atol=1e-5)


# -- saliency -------------------------------------------------------------------------------------


@pytest.mark.parametrize('causal', [False, True])
def test_saliency_equals_rows_of_the_eager_attention_map(causal):
    model = llama('eager')
    groups = ('action', 'last', 'text', 'prefill')
    pruner = build('safe_pruner')
    pruner.shallow_requests = tuple(
        SaliencyRequest(layer, group) for layer in range(3) for group in groups
    )
    pruner.deep_requests = tuple(
        SaliencyRequest(layer, group) for layer in range(N_LAYERS) for group in groups
    )
    got = run(model, pruner, causal=causal, observe=False).attention.saliency
    maps: list[torch.Tensor] = []
    plain_run(model, embeddings_of(), causal, maps=maps)
    assert len(got) == N_LAYERS * 4
    for request, saliency in got.items():
        rows = LAYOUT.query_positions(request.queries)
        expected = maps[request.layer][:, rows, 1:21].mean(dim=(0, 1))
        assert torch.allclose(saliency, expected, atol=1e-6)
        assert saliency.dtype == torch.float32


@pytest.mark.parametrize('causal', [False, True])
def test_saliency_of_pruned_steps_equals_the_map_where_pruned_tokens_are_masked(causal):
    """Requests marked ``on_pruned_steps``, below the cut and behind it; what has left reads 0."""
    model, pruner = llama('eager'), build('fastv')
    requests = [
        SaliencyRequest(layer, group, per_query, on_pruned_steps=True)
        for layer in range(N_LAYERS)
        for group, per_query in (('action', False), ('text', True), ('last', False))
    ]
    pruner.deep_requests = (*requests, SaliencyRequest(4, 'prefill'))
    got = run(model, pruner, causal=causal)
    masked = set(range(LAYOUT.length)) - set(got.kept_positions.tolist())
    assert len(masked) == 14
    maps: list[torch.Tensor] = []
    plain_run(model, embeddings_of(), causal, 3, masked, maps=maps)
    measured = got.attention.saliency
    assert SaliencyRequest(4, 'prefill') not in measured
    for request in requests:
        rows = maps[request.layer][:, LAYOUT.query_positions(request.queries), 1:21]
        expected = rows.mean(dim=0) if request.per_query else rows.mean(dim=(0, 1))
        assert torch.allclose(measured[request], expected, atol=1e-6)
    left = [position - 1 for position in masked]
    assert not measured[SaliencyRequest(4, 'action')][left].any()


def test_eager_and_sdpa_measure_and_keep_the_same():
    outputs = []
    for attention in ('eager', 'sdpa'):
        pruner, model = build('safe_pruner'), llama(attention)
        run(model, pruner, 0)
        outputs.append(run(model, pruner, 1))
    first, second = outputs
    assert torch.equal(first.kept_positions, second.kept_positions)
    assert torch.allclose(first.hidden, second.hidden, atol=1e-5)
    assert torch.allclose(first.plan.fused, second.plan.fused, atol=1e-6)


def test_key_timesteps_measure_deep_layers_and_pruned_steps_do_not(model):
    pruner = build('safe_pruner')
    full, pruned = run(model, pruner, 0), run(model, pruner, 1)
    assert full.plan.keyframe is KeyframeReason.FIRST_STEP
    assert {r.layer for r in full.attention.saliency} == {0, 2, 4, 5}
    assert pruned.plan.keyframe is None
    assert {r.layer for r in pruned.attention.saliency} == {2}
    assert pruned.plan.attention_similarity > 0.92


def test_features_default_to_the_visual_embeddings_in_float32():
    pruner, model = build('safe_pruner'), llama(dtype=torch.bfloat16)
    embeddings = embeddings_of().bfloat16()
    out = run(model, pruner, embeddings=embeddings)
    assert out.context.features.dtype == torch.float32
    assert torch.equal(out.context.features, embeddings[0, 1:21].float())
    given = torch.ones(20, 5)
    pruner.reset()
    out = run(model, pruner, embeddings=embeddings, features=given)
    assert torch.equal(out.context.features, given)


# -- good manners ---------------------------------------------------------------------------------


def state_of(model):
    return {
        name: {
            key: value
            for key, value in vars(module).items()
            if key not in ('_parameters', '_buffers', '_modules')
        }
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize('fails', [False, True])
def test_leaves_the_model_as_it_found_it(fails):
    model = llama()
    weights = copy.deepcopy(model.state_dict())
    before = copy.deepcopy({name: repr(value) for name, value in state_of(model).items()})
    pruner = build('safe_pruner')
    for step in range(2):
        embeddings = embeddings_of(step) * (float('nan') if fails else 1.0)
        try:
            run(model, pruner, step, embeddings=embeddings)
        except PolicyOutputError:
            assert fails
    assert {name: repr(value) for name, value in state_of(model).items()} == before
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])


def test_no_graph_is_kept(model):
    embeddings = embeddings_of().requires_grad_()
    pruner = build('safe_pruner')
    out = run(model, pruner, embeddings=embeddings)
    assert not out.hidden.requires_grad
    assert not out.context.features.requires_grad
    with torch.inference_mode():
        run(model, pruner, 1)
    assert run(model, pruner, 2).plan.retained is not None


def test_stages_are_timed(model):
    latency = run(model, build('safe_pruner')).latency_ms
    assert set(latency) == set(STAGES)
    assert all(value > 0 for value in latency.values())


def test_the_same_step_twice_gives_the_same_bits(model):
    first, second = (
        [run(model, pruner, step) for step in range(3)]
        for pruner in (build('safe_pruner'), build('safe_pruner'))
    )
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.hidden, b.hidden)
        assert torch.equal(a.kept_positions, b.kept_positions)


def test_a_cache_is_filled_for_decoding_on(model):
    """OpenVLA's way: shallow layers keep all keys, deep ones only those of retained tokens, and
    new tokens go on at original positions. Equals the causal run that had them from the start."""
    pruner, cache = build('fastv', queries='text'), DynamicCache()
    embeddings, shorter = embeddings_of(), LAYOUT.length - 1
    layout = TokenLayout(LAYOUT.views, LAYOUT.visual, LAYOUT.text, Span(26, 28), shorter)
    out = run(
        model,
        pruner,
        embeddings=embeddings[:, :shorter],
        position_ids=POSITIONS[:, :shorter],
        layout=layout,
        causal=True,
        past_key_values=cache,
    )
    lengths = [cache.get_seq_length(index) for index in range(N_LAYERS)]
    assert lengths == [shorter] * 3 + [shorter - 14] * 3
    hidden = embeddings[:, shorter:]
    cos_sin = model.rotary_emb(hidden, POSITIONS[:, shorter:])
    with torch.no_grad():
        for layer in model.layers:
            hidden = layer(
                hidden, position_embeddings=cos_sin, past_key_values=cache, use_cache=True
            )
        hidden = model.norm(hidden)
    masked = set(range(shorter)) - set(out.kept_positions.tolist())
    expected = plain_run(model, embeddings, True, 3, masked)
    assert torch.allclose(hidden[0, 0], expected[0, -1], atol=1e-5)
