import pytest

from safe_pruner_ros.core.catalog import checked_settings


@pytest.mark.parametrize('written', ['0,-2,-1', ' 0, -2 ,-1', (0, -2, -1), [0.0, -2, -1]])
def test_layers_mean_the_same_in_every_notation(written):
    """As text they come from YAML, where 0,-2,-1 without brackets is a word."""
    assert checked_settings('safe_pruner', {'deep_layers': written}) == {
        'deep_layers': (0, -2, -1)
    }
    for one in (8, 8.0, '8', (8,)):
        assert checked_settings('vla_cache', {'deep_layers': one}) == {'deep_layers': (8,)}


@pytest.mark.parametrize(
    'written', ['', ',', '0,', '0,x', '0,1.5', '0;1', '[0,1]', 'nan', 'inf', True, (0, True)]
)
def test_what_is_no_list_of_layers_is_named(written):
    with pytest.raises(ValueError, match='deep_layers must be whole numbers like 0,-2,-1, got'):
        checked_settings('safe_pruner', {'deep_layers': written})
