import math

import pytest
import torch

from safe_pruner_ros.core.catalog import build_pruner
from safe_pruner_ros.core.correspondence import ReferenceTokens, match_tokens
from safe_pruner_ros.core.pruner import KeyframeReason, SaliencyRequest, StepAttention
from safe_pruner_ros.core.safe_pruner import SafePruner, SafePrunerConfig
from safe_pruner_ros.core.tokens import Span, TokenLayout, ViewGrid

OTHER = torch.linspace(1, 0, 20) ** 8  # attention of another subtask


@pytest.fixture
def make(layout, fake_decoder, n_layers):
    def build(**settings):
        settings = {'retention_ratio': 0.3, **settings}
        return fake_decoder(SafePruner(SafePrunerConfig(**settings), n_layers), layout)

    return build


def action(layer):
    return SaliencyRequest(layer, 'action')


# -- what is measured -----------------------------------------------------------------------------


def test_the_paper_measures_its_third_layer_and_first_plus_final_two(make):
    pruner = make().pruner
    assert pruner.shallow_requests == (action(2),)
    assert pruner.deep_requests == (action(0), action(6), action(7))


def test_the_code_looks_for_the_shift_at_layer_0_with_the_last_token(make):
    pruner = make(variant='code').pruner
    assert pruner.shallow_requests == (action(2), SaliencyRequest(0, 'last'))
    assert pruner.deep_requests == (SaliencyRequest(0, 'last'), action(7))


def test_deep_layers_count_from_the_end_and_once(make):
    assert make(deep_layers=(-1, 7, -3)).pruner.deep_requests == (action(7), action(5))


# -- the numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize('variant', ['paper', 'code'])
@pytest.mark.parametrize('norm', ['none', 'l1', 'minmax', 'zscore'])
def test_pruned_step_equals_the_equations_written_out(make, layout, variant, norm):
    weight = {'alpha': 0.3} if variant == 'paper' else {'deep_weight': 0.6}
    decoder = make(variant=variant, norm=norm, similarity_threshold=0.0, **weight)
    decoder.step(0)
    features = torch.randn(20, 16, generator=torch.Generator().manual_seed(9))
    early = torch.rand(20, generator=torch.Generator().manual_seed(10))
    plan = decoder.step(1, features=features, saliency={action(2): early})

    match = match_tokens(features, ReferenceTokens.of(decoder.features, layout)).keyframe_index
    first = action(0) if variant == 'paper' else SaliencyRequest(0, 'last')
    layers = [first, action(6), action(7)] if variant == 'paper' else [first, action(7)]

    def scaled(values):
        low, high, n = min(values), max(values), len(values)
        mean = math.fsum(values) / n
        spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / n)
        return {
            'none': lambda v: v,
            'l1': lambda v: v / math.fsum(values),
            'minmax': lambda v: (v - low) / (high - low),
            'zscore': lambda v: (v - mean) / spread,
        }[norm]

    now = scaled(early.tolist())
    forecasts = [[float(decoder.saliency[r][j]) for j in match] for r in layers]
    fused = []
    for i in range(20):
        deep = math.fsum(scaled(row)(row[i]) for row in forecasts) / len(layers)
        now_i = now(float(early[i]))
        fused.append(0.3 * now_i + 0.7 * deep if variant == 'paper' else now_i + 0.6 * deep)
    assert torch.allclose(plan.fused, torch.tensor(fused), atol=1e-5)
    best = sorted(sorted(range(20), key=lambda i: -fused[i])[:6])
    assert plan.retained.visual_index.tolist() == best

    shift = action(2) if variant == 'paper' else first
    current = early if variant == 'paper' else decoder.saliency[first]
    expected = torch.cosine_similarity(current, decoder.saliency[shift][match], dim=0)
    assert plan.attention_similarity == pytest.approx(float(expected), abs=1e-6)


def test_saliency_follows_things_that_move(make):
    """Deep attention sat on token 4; its feature is now at 15, and nothing else tells."""
    decoder = make(retention_ratio=0.05, similarity_threshold=0.0)
    decoder.saliency = dict.fromkeys(decoder.saliency, torch.full((20,), 0.01))
    decoder.saliency[action(7)] = decoder.saliency[action(7)].clone()
    decoder.saliency[action(7)][4] = 0.5
    decoder.step(0)
    moved = decoder.features.clone()
    moved[[4, 15]] = decoder.features[[15, 4]]
    assert decoder.step(1).retained.visual_index.tolist() == [4]
    assert decoder.step(2, features=moved).retained.visual_index.tolist() == [15]


def test_equal_weights_rank_like_the_released_fusion(make):
    paper = make(variant='paper', deep_layers=(-1,), alpha=0.5)
    code = make(variant='code', deep_layers=(-1,), deep_weight=1.0)
    for decoder in (paper, code):
        decoder.step(0)
    kept = [d.step(1).retained.visual_index.tolist() for d in (paper, code)]
    assert kept[0] == kept[1]


def test_alpha_1_is_early_saliency_alone_and_alpha_0_forecast_alone(make):
    for alpha, term in ((1.0, 'early'), (0.0, 'forecast')):
        decoder = make(alpha=alpha)
        decoder.step(0)
        plan = decoder.step(1)
        assert torch.allclose(plan.fused, getattr(plan, term))


# -- key timesteps --------------------------------------------------------------------------------


def test_first_step_is_a_keyframe_and_the_next_is_not(make):
    decoder = make()
    first, second, third = decoder.step(0), decoder.step(1), decoder.step(2)
    assert first.keyframe is KeyframeReason.FIRST_STEP and first.retained is None
    assert math.isnan(first.attention_similarity)
    assert second.keyframe is None and len(second.retained) == 6
    assert second.attention_similarity == pytest.approx(1.0)
    assert [p.steps_since_keyframe for p in (first, second, third)] == [0, 1, 2]


@pytest.mark.parametrize('variant', ['paper', 'code'])
def test_attention_shift_is_a_boundary_and_renews_the_keyframe(make, variant):
    decoder = make(variant=variant)
    decoder.step(0)
    shift = {action(2): OTHER, SaliencyRequest(0, 'last'): OTHER}
    plan = decoder.step(1, saliency=shift)
    assert plan.keyframe is KeyframeReason.SUBTASK_BOUNDARY and plan.retained is None
    assert plan.attention_similarity < 0.92
    assert decoder.step(2, saliency=shift).keyframe is None
    assert decoder.step(3).keyframe is KeyframeReason.SUBTASK_BOUNDARY


def test_the_threshold_decides(make):
    for threshold, reason in ((0.0, None), (1.0, KeyframeReason.SUBTASK_BOUNDARY)):
        decoder = make(similarity_threshold=threshold)
        decoder.step(0)
        assert decoder.step(1, saliency={action(2): OTHER}).keyframe is reason


def test_another_instruction_is_a_keyframe(make):
    decoder = make()
    decoder.step(0)
    plan = decoder.step(1, instruction_key='place it')
    assert plan.keyframe is KeyframeReason.INSTRUCTION_CHANGED
    assert decoder.step(2, instruction_key='place it').keyframe is None


def test_another_set_of_views_is_a_keyframe(make):
    decoder = make()
    decoder.step(0)
    views = (ViewGrid('head', 4, 3), ViewGrid('wrist', 2, 4))  # as many tokens, other places
    layout = TokenLayout(views, Span(1, 21), Span(21, 25), Span(26, 29), 30)
    assert decoder.step(1, layout=layout).keyframe is KeyframeReason.LAYOUT_CHANGED
    assert decoder.step(2, layout=layout).keyframe is None


def test_fewer_visual_tokens_are_a_keyframe_not_a_crash(make):
    decoder = make()
    decoder.step(0)
    layout = TokenLayout((ViewGrid('head', 3, 4),), Span(1, 13), Span(13, 17), Span(18, 21), 22)
    decoder.saliency = {request: value[:12] for request, value in decoder.saliency.items()}
    features = decoder.features[:12]
    plan = decoder.step(1, layout=layout, features=features)
    assert plan.keyframe is KeyframeReason.LAYOUT_CHANGED
    assert len(decoder.step(2, layout=layout, features=features).retained) == 4


def test_a_longer_prompt_leaves_the_keyframe_valid(make):
    """Saliency belongs to visual indices; how many text tokens follow does not matter."""
    decoder = make()
    decoder.step(0)
    views = decoder.layout.views
    layout = TokenLayout(views, Span(1, 21), Span(21, 26), Span(27, 30), 31)
    assert decoder.step(1, layout=layout).keyframe is None


def test_a_keyframe_older_than_its_max_age_is_stale(make):
    decoder = make(max_keyframe_age=2)
    reasons = [decoder.step(step).keyframe for step in range(7)]
    first, stale = KeyframeReason.FIRST_STEP, KeyframeReason.STALE
    assert reasons == [first, None, None, stale, None, None, stale]


def test_fixed_interval_replaces_the_boundary_test(make):
    decoder = make(keyframe_interval=3)
    plans = [
        decoder.step(step, saliency={action(2): OTHER * (step % 2) + 0.1}) for step in range(7)
    ]
    first, fixed = KeyframeReason.FIRST_STEP, KeyframeReason.FIXED_INTERVAL
    assert [plan.keyframe for plan in plans] == [first, None, None, fixed, None, None, fixed]
    assert plans[1].attention_similarity < 0.92
    assert math.isnan(decoder.pruner.similarity_threshold)


@pytest.mark.parametrize('variant', ['paper', 'code'])
@pytest.mark.parametrize('scope', ['joint', 'per_view'])
def test_without_forecast_it_is_fastv_with_action_rows(
    make, fake_decoder, layout, n_layers, scope, variant
):
    """The ablation: nothing measured deep, nothing remembered, no key timestep whatever shifts."""
    tested = make(forecast=False, quota_scope=scope, variant=variant, max_keyframe_age=2)
    settings = {'retention_ratio': 0.3, 'queries': 'action', 'quota_scope': scope}
    fastv = fake_decoder(build_pruner('fastv', n_layers, **settings), layout)
    assert tested.pruner.shallow_requests == fastv.pruner.shallow_requests
    assert tested.pruner.deep_requests == ()
    assert math.isnan(tested.pruner.similarity_threshold)
    for step in range(6):
        early = torch.rand(20, generator=torch.Generator().manual_seed(step))
        got, want = (d.step(step, saliency={action(2): early}) for d in (tested, fastv))
        assert got.keyframe is None
        assert got.retained.visual_index.tolist() == want.retained.visual_index.tolist()
    doubt = tested.step(6, saliency={action(2): early * float('nan')})
    assert doubt.retained is None and 'every token kept' in doubt.fallback
    assert tested.pruner._cache.get() is None


@pytest.mark.parametrize('off', [0, None])
def test_age_and_interval_are_off_by_default(make, off):
    decoder = make(max_keyframe_age=off, keyframe_interval=off)
    decoder.step(0)
    assert all(decoder.step(step).keyframe is None for step in range(1, 40))


def test_forced_keyframe_waits_for_a_step_that_ends_well(make):
    decoder = make()
    decoder.step(0)
    decoder.pruner.force_keyframe()
    context = decoder.context(1)
    for _ in range(2):  # planned, but the forward failed: never observed
        assert decoder.pruner.plan(context).keyframe is KeyframeReason.FORCED
    assert decoder.step(2).keyframe is KeyframeReason.FORCED
    assert decoder.step(3).keyframe is None


def test_reset_forgets_the_keyframe_and_the_force(make):
    decoder = make()
    decoder.step(0)
    decoder.pruner.force_keyframe()
    decoder.pruner.reset()
    assert decoder.step(1).keyframe is KeyframeReason.FIRST_STEP
    assert decoder.step(2).keyframe is None


def test_a_step_count_that_starts_again_is_a_new_episode(make):
    decoder = make()
    decoder.step(5)
    assert decoder.step(0).keyframe is KeyframeReason.FIRST_STEP


# -- doubt ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), 0.0])
@pytest.mark.parametrize('variant', ['paper', 'code'])
@pytest.mark.parametrize('when', [0, 1])
def test_unusable_early_saliency_keeps_every_token_and_stores_nothing(make, bad, variant, when):
    for request in make(variant=variant).pruner.shallow_requests:
        decoder = make(variant=variant)
        for step in range(when):
            decoder.step(step)
        before = decoder.pruner._cache.get()
        plan = decoder.step(when, saliency={request: torch.full((20,), bad)})
        assert plan.retained is None
        assert plan.keyframe is KeyframeReason.SALIENCY_INVALID
        assert plan.fallback
        assert decoder.pruner._cache.get() is before


def test_fused_saliency_that_overflows_keeps_every_token(make):
    """Each term is in order; their weighted sum is not, and infinities cannot be ranked."""
    decoder = make(variant='code', deep_weight=1e39)
    decoder.step(0)
    kept = decoder.pruner._cache.get()
    plan = decoder.step(1)
    assert plan.retained is None and plan.keyframe is KeyframeReason.SALIENCY_INVALID
    assert plan.fallback == 'fused saliency is not finite: every token kept'
    assert decoder.pruner._cache.get() is kept


def test_doubt_comes_before_every_other_reason(make):
    decoder = make()
    nan = {action(2): torch.full((20,), float('nan'))}
    assert decoder.step(0, saliency=nan).keyframe is KeyframeReason.SALIENCY_INVALID
    decoder.step(1)
    decoder.pruner.force_keyframe()
    plan = decoder.step(2, saliency=nan, instruction_key='else')
    assert plan.keyframe is KeyframeReason.SALIENCY_INVALID


def test_unusable_features_keep_every_token_and_are_not_stored(make):
    decoder = make()
    broken = decoder.features.clone()
    broken[3, 2] = float('nan')
    assert 'features' in decoder.step(0, features=broken).fallback
    assert decoder.step(1).keyframe is KeyframeReason.FIRST_STEP
    assert 'features' in decoder.step(2, features=broken).fallback
    assert decoder.step(3).keyframe is None


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), 0.0])
def test_unusable_deep_saliency_is_never_stored(make, bad):
    decoder = make()
    broken = {action(7): torch.full((20,), bad)}
    assert decoder.step(0, saliency=broken).keyframe is KeyframeReason.FIRST_STEP
    assert decoder.step(1).keyframe is KeyframeReason.FIRST_STEP
    kept = decoder.pruner._cache.get()
    decoder.step(2, saliency={**broken, action(2): OTHER})
    assert decoder.pruner._cache.get() is kept


def test_a_key_timestep_that_measured_too_little_is_an_error(make):
    decoder = make()
    context = decoder.context(0)
    plan = decoder.pruner.plan(context)
    with pytest.raises(ValueError, match='must measure every request'):
        decoder.pruner.observe(context, plan, StepAttention(context.shallow))
    assert decoder.step(1).keyframe is KeyframeReason.FIRST_STEP


# -- memory ---------------------------------------------------------------------------------------


def test_the_cache_holds_visual_rows_and_copies(make):
    """The caller may reuse its buffers: what is remembered does not change with them."""
    decoder = make()
    decoder.step(0)
    keyframe = decoder.pruner._cache.get()
    assert keyframe.reference.unit_features.shape == (20, 16)
    assert keyframe.saliency.shape == (4, 20)
    features, saliency = keyframe.reference.unit_features.clone(), keyframe.saliency.clone()
    decoder.features.zero_()
    for value in decoder.saliency.values():
        value.zero_()
    assert torch.equal(keyframe.reference.unit_features, features)
    assert torch.equal(keyframe.saliency, saliency)


def test_pruned_steps_do_not_change_the_cache(make):
    decoder = make()
    decoder.step(0)
    keyframe = decoder.pruner._cache.get()
    for step in range(1, 5):
        assert decoder.step(step).retained is not None
    assert decoder.pruner._cache.get() is keyframe


def test_per_view_quota_and_match(make):
    decoder = make(quota_scope='per_view', match_scope='per_view', similarity_threshold=0.0)
    decoder.step(0)
    features = torch.randn(20, 16, generator=torch.Generator().manual_seed(9))
    index = decoder.step(1, features=features).retained.visual_index
    assert (index < 12).sum() == 4 and (index >= 12).sum() == 2
