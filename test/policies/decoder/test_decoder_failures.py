"""A decoder run that fails, or does not fit, leaves nothing behind and says why."""

import pytest
import torch
from helpers.tiny_llama import POSITIONS, WIDTH, build, embeddings_of, llama, run

from safe_pruner_ros.core.catalog import build_pruner
from safe_pruner_ros.core.pruner import KeyframeReason, StepContext
from safe_pruner_ros.policies.policy import PolicyOutputError


class Recorder:
    """Stands between decoder and pruner and writes down what reaches it."""

    def __init__(self, pruner):
        self.pruner, self.observed, self.contexts = pruner, 0, []

    def __getattr__(self, name):
        return getattr(self.pruner, name)

    def plan(self, context: StepContext):
        assert not torch.is_grad_enabled()
        self.contexts.append(context)
        return self.pruner.plan(context)

    def observe(self, *args):
        self.observed += 1
        self.pruner.observe(*args)


class Broken(torch.nn.Module):
    """A last layer that fails once, after everything was planned."""

    training = False

    def __init__(self, layer, failure):
        super().__init__()
        self.layer, self.failure, self.armed = layer, failure, True
        self.self_attn, self.input_layernorm = layer.self_attn, layer.input_layernorm
        self.eval()

    def forward(self, hidden, **kwargs):
        if self.armed and self.failure is not None:
            self.armed = False
            raise self.failure
        out = self.layer(hidden, **kwargs)
        if self.armed:
            self.armed = False
            out = out.clone()
            out[0, -1, 0] = float('inf')
        return out


@pytest.mark.parametrize('when', [0, 1])
@pytest.mark.parametrize('failure', [RuntimeError('CUDA out of memory'), None])
def test_a_failed_step_never_was(when, failure):
    """Raised in a deep layer (or infinite at the end), with a keyframe forced: the pruner's state
    is that of before, and the next good step is what it would have been."""
    model = llama()
    pruner, untouched = Recorder(build('safe_pruner')), build('safe_pruner')
    for step in range(when):
        run(model, pruner, step), run(model, untouched, step)
    pruner.force_keyframe(), untouched.force_keyframe()
    keyframe, observed = pruner._cache.get(), pruner.observed
    layers = [*model.layers[:-1], Broken(model.layers[-1], failure)]
    expected = PolicyOutputError if failure is None else RuntimeError
    with pytest.raises(expected):
        run(model, pruner, when, layers=layers)
    assert pruner._cache.get() is keyframe
    assert pruner.observed == observed
    for step in (when + 1, when + 2):
        got, want = run(model, pruner, step, layers=layers), run(model, untouched, step)
        assert got.plan.keyframe is want.plan.keyframe
        assert torch.equal(got.hidden, want.hidden)


def test_not_observed_until_the_caller_says_so(model):
    pruner = Recorder(build('safe_pruner'))
    out = run(model, pruner, 0, observe=False)
    assert pruner.observed == 0 and pruner._cache.get() is None
    assert run(model, pruner, 1, observe=False).plan.keyframe is KeyframeReason.FIRST_STEP
    pruner.observe(out.context, out.plan, out.attention)
    assert run(model, pruner, 1).plan.keyframe is None


def test_nan_that_enters_late_keeps_every_token_and_stops_the_step():
    """NaN in the images: planned without pruning, then refused, never stored."""
    model, pruner = llama(), Recorder(build('safe_pruner'))
    run(model, pruner, 0)
    broken = embeddings_of(1)
    broken[0, 4] = float('nan')
    with pytest.raises(PolicyOutputError, match='policy step 1'):
        run(model, pruner, 1, embeddings=broken)
    assert pruner.pruner.plan(pruner.contexts[-1]).fallback
    assert run(model, pruner, 2).plan.keyframe is None


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'embeddings': torch.zeros(1, 29, WIDTH)}, r'must be \[1, 30, D\].*got \[1, 29, 32\]'),
        ({'embeddings': torch.zeros(2, 30, WIDTH)}, r'got \[2, 30, 32\]'),
        ({'position_ids': POSITIONS[0]}, r'position_ids must be \[1, 30\], got \[30\]'),
        ({'pruner': build_pruner('random', 32, pruning_layer=9)}, 'n_layers=len'),
    ],
)
def test_what_does_not_fit_is_named(model, changes, message):
    with pytest.raises(ValueError, match=message):
        run(model, **{'pruner': build('fastv'), **changes})


def test_training_mode_and_unknown_attention_are_refused():
    model = llama()
    with pytest.raises(ValueError, match='model.eval'):
        run(model.train(), build('fastv'))
    model.eval().config._attn_implementation = 'flex_attention'
    with pytest.raises(ValueError, match="'flex_attention'.*'sdpa' or 'eager'"):
        run(model, build('fastv'))
