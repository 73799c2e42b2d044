"""The overlay shows what was kept, at any size, and never fails on odd saliency."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safe_pruner_ros.runtime.overlay import HEAT, KEY_COLOUR, overlay

GREY = np.full((64, 64, 3), 120, np.uint8)


def draw(retained, saliency=None, key=False, rgb=GREY, rows=4, cols=4):
    return overlay(rgb, rows, cols, saliency, np.asarray(retained), key)


def test_upscales_by_an_integer():
    assert draw(np.ones(16, bool)).shape == (320, 320, 3)
    assert overlay(GREY, 4, 4, None, np.ones(16, bool), False, 64).shape == (64, 64, 3)
    wide = np.zeros((36, 1280, 3), np.uint8)
    assert draw(np.ones(16, bool), rgb=wide).shape == wide.shape


def test_pruned_is_dimmed_and_retained_is_clear():
    retained = np.zeros(16, bool)
    retained[5] = True
    picture = draw(retained)
    kept, pruned = picture[120, 120], picture[40, 40]
    assert kept.tolist() == [120, 120, 120]
    assert pruned.tolist() == [42, 42, 42]


def test_tint_grows_with_saliency():
    picture = draw(np.ones(16, bool), np.arange(16.0))
    change = np.abs(picture[40::80, 40::80].reshape(16, 3).astype(int) - 120).sum(axis=1)
    assert change[0] == 0 and change[15] > change[8] > 0


def test_key_timestep_is_marked():
    plain, key = draw(np.ones(16, bool)), draw(np.ones(16, bool), key=True)
    assert key[0, 200].tolist() == KEY_COLOUR.tolist() != plain[0, 200].tolist()
    assert key[8, 8].tolist() == KEY_COLOUR.tolist()
    assert plain[8, 8].tolist() == [120, 120, 120]


def test_lightness_of_the_scale_rises():
    lightness = HEAT @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 10).all()


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match='retained must be'):
        draw(np.ones(15, bool))
    with pytest.raises(ValueError, match='saliency must be'):
        draw(np.ones(16, bool), np.ones(4))
    with pytest.raises(ValueError, match='rgb must be uint8'):
        draw(np.ones(16, bool), rgb=GREY.astype(float))


@given(
    saliency=st.lists(st.floats(width=64), min_size=6, max_size=6),
    retained=st.lists(st.booleans(), min_size=6, max_size=6),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    key=st.booleans(),
)
def test_any_saliency_and_size(saliency, retained, height, width, key):
    rgb = np.zeros((height, width, 3), np.uint8)
    before = rgb.copy()
    with np.errstate(invalid='raise', divide='raise', over='raise'):
        picture = overlay(rgb, 2, 3, np.array(saliency), np.array(retained), key, 40)
    assert picture.dtype == np.uint8 and picture.shape[1] >= 40
    assert picture.shape[0] * width == picture.shape[1] * height
    assert np.array_equal(rgb, before)
