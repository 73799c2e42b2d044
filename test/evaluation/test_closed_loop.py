"""The committed table: from any number of results, each episode once."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest
from helpers.episodes import full_episode as episode
from helpers.episodes import write

from safe_pruner_ros import cli
from safe_pruner_ros.evaluation import plots
from safe_pruner_ros.evaluation.closed_loop import read_results
from safe_pruner_ros.evaluation.palette import COLOURS, GREY, LIGHT_GREY
from safe_pruner_ros.evaluation.plots import draw_keyframes
from safe_pruner_ros.evaluation.results import ResultsError
from safe_pruner_ros.evaluation.success_plots import (
    METHOD_COLOURS,
    draw_rates,
    draw_success,
    method_colours,
)
from safe_pruner_ros.evaluation.summary import summarise


def test_a_packed_file_beside_the_one_that_went_on_from_it(tmp_path: Path) -> None:
    """An episode of the packed file ended in an error and ran again."""
    packed = tmp_path / 'episodes.jsonl.xz'
    failed = json.dumps(episode('fastv', 7, False, error='MemoryError')) + '\n'
    packed.write_bytes(lzma.compress(failed.encode()))
    (tmp_path / 'episodes.jsonl').touch()  # a kill before anything was unpacked
    assert read_results([tmp_path])[0]['error'] == 'MemoryError'
    write(tmp_path / 'episodes.jsonl', [episode('fastv', 7, True), episode('fastv', 8, True)])
    assert [e['seed'] for e in read_results([tmp_path]) if e['success']] == [7, 8]
    assert read_results([packed])[0]['error'] == 'MemoryError'  # named, it is read


def test_table_of_many_results(tmp_path: Path, capsys) -> None:
    seeds = range(900_000, 900_008)
    unpruned = [episode('unpruned', seed, True) for seed in seeds]
    safe = [episode('safe_pruner', seed, seed % 4 > 0, commit='def') for seed in seeds]
    other = [
        episode('fastv', s, False, config={'checkpoint': 'feed', 'training_seed': 1})
        for s in seeds
    ]
    write(tmp_path / 'grid/pick_place/episodes.jsonl', [*unpruned, *safe])
    again = [e | {'commit': 'def', 'latency_ms_p50': 99.0} for e in unpruned[:3]]  # a shared cell
    file = write(tmp_path / 'more.jsonl', [*again, *other])
    out = tmp_path / 'docs/results/closed_loop.json'
    arguments = ['table', str(tmp_path / 'grid'), str(file), '--out', str(out)]
    assert cli.main([*arguments, '--baseline', 'unpruned', 'safe_pruner']) == 0

    cells = json.loads(out.read_text())
    assert [(c['method'], c['training_seed'], c['episodes'], c['successes']) for c in cells] == [
        ('unpruned', 0, 8, 8),
        ('safe_pruner', 0, 8, 6),
        ('fastv', 1, 8, 0),
    ]
    safe_cell = cells[1]
    asked = {
        'task',
        'variant',
        'retention_ratio',
        'retained_tokens_mean',
        'checkpoint',
        'settings',
    }
    assert asked <= set(safe_cell) and safe_cell['keyframe_share'] == 0.2
    assert (safe_cell['seed_first'], safe_cell['seed_last']) == (900_000, 900_007)
    assert safe_cell['commits'] == ['def'] and safe_cell['checkpoint'] == 'cafe'
    assert safe_cell['versus_baseline']['losses'] == 2
    assert len(out.read_text().splitlines()) == len(cells) + 2  # one cell a line
    assert 'training seed' in out.with_suffix('.md').read_text()
    for name in ('success', 'success_tokens', 'success_latency', 'keyframes'):
        assert (out.parent / f'{name}.png').stat().st_size > 5_000
    assert '24 episodes in 3 cells' in capsys.readouterr().out


def test_results_that_disagree_are_refused(tmp_path: Path) -> None:
    first = write(tmp_path / 'a.jsonl', [episode('fastv', 1, True)])
    second = write(tmp_path / 'b.jsonl', [episode('fastv', 1, False)])
    with pytest.raises(ResultsError, match=r"a.jsonl and .*b.jsonl disagree .* \['success'\]"):
        read_results([first, second])
    assert len(read_results([first, first])) == 1
    packed = tmp_path / 'kept/episodes.jsonl.xz'
    packed.parent.mkdir()
    packed.write_bytes(lzma.compress(second.read_bytes()))
    assert [e['success'] for e in read_results([packed.parent])] == [False]
    with pytest.raises(ResultsError, match='disagree'):
        read_results([first, packed.parent])
    second.write_text('{"cut": tr\n' + first.read_text())
    with pytest.raises(ResultsError, match='line 1 of .*b.jsonl is not an episode'):
        read_results([second])
    with pytest.raises(FileNotFoundError, match='no evaluation results at'):
        read_results([tmp_path / 'nowhere'])


def test_times_and_later_fields_are_no_disagreement(tmp_path: Path) -> None:
    times = ('latency_ms_p50', 'latency_ms_mean', 'latency_ms_key_p50', 'latency_ms_pruned_p50')
    old = episode('fastv', 1, True)
    new = old | {name: 99.0 for name in times} | {'scoring_macs_mean': 5.0, 'settings_hash': 'c'}
    first, second = write(tmp_path / 'a.jsonl', [old]), write(tmp_path / 'b.jsonl', [new])
    for paths in ([first, second], [second, first]):
        (found,) = read_results(paths)
        assert found['scoring_macs_mean'] == 5.0  # known to one of them
    other = write(tmp_path / 'c.jsonl', [new | {'scoring_macs_mean': 6.0}])
    with pytest.raises(ResultsError, match='scoring_macs_mean'):
        read_results([second, other])


@pytest.mark.parametrize(
    ('content', 'message'),
    [('', 'holds no episodes; leave it out'), ('no results\n', 'line 1 of .* is not an episode')],
)
def test_a_file_without_episodes_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / 'episodes.jsonl').write_text(content)
    out = tmp_path / 'closed_loop.json'
    out.write_text('committed')
    assert cli.main(['table', str(tmp_path), '--out', str(out)]) == 2
    assert out.read_text() == 'committed'
    with pytest.raises(ResultsError, match=message):
        read_results([tmp_path])


def test_lines_without_configuration_stay_alone(tmp_path: Path) -> None:
    old = [{k: v for k, v in episode('fastv', s, True).items() if k != 'config'} for s in (1, 2)]
    new = [episode('fastv', 3, True)]
    first, second = write(tmp_path / 'a.jsonl', old[:1]), write(tmp_path / 'b.jsonl', old[1:])
    third = write(tmp_path / 'c.jsonl', new)
    assert len(read_results([first])) == 1
    for others in (second, third):
        with pytest.raises(ResultsError, match=r'a.jsonl has 1 lines of an older version'):
            read_results([first, others])
    mixed = write(tmp_path / 'd.jsonl', [*old, *new])
    with pytest.raises(ResultsError, match=r'd.jsonl has 2 lines .* beside lines that do'):
        read_results([mixed])


@pytest.mark.parametrize(
    ('baselines', 'message'),
    [
        (['safe_pruner:tau=0.42'], 'safe_pruner:similarity_threshold=0.42 is not among these'),
        (['unpruned', 'divprune'], 'divprune is not among these results'),
        (['unpruned', 'fastv@0.9'], 'fastv has the ratios 0.2 only'),
    ],
)
def test_a_baseline_that_never_ran_is_refused(tmp_path: Path, baselines, message, capsys) -> None:
    episodes = [episode(m, s, True) for m in ('unpruned', 'fastv', 'safe_pruner') for s in (1, 2)]
    file, out = write(tmp_path / 'a.jsonl', episodes), tmp_path / 'out/closed_loop.json'
    assert cli.main(['table', str(file), '--out', str(out), '--baseline', *baselines]) == 2
    assert message in capsys.readouterr().err and not out.exists()
    good = ['--baseline', 'unpruned', 'fastv@0.2']
    assert cli.main(['table', str(file), '--out', str(out), *good]) == 0
    versus = json.loads(out.read_text())[1]['versus_baseline']
    assert (versus['variant'], versus['retention_ratio']) == ('unpruned', 1.0)
    assert {path.suffix for path in out.parent.iterdir()} == {'.json', '.md', '.png'}


def test_a_plot_that_fails_leaves_the_table_as_it_was(tmp_path: Path, monkeypatch) -> None:
    file = write(tmp_path / 'a.jsonl', [episode('unpruned', 1, True)])
    out = tmp_path / 'closed_loop.json'
    arguments = ['table', str(file), '--out', str(out)]
    assert cli.main(arguments) == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    write(file, [episode('unpruned', 1, False)])
    before[file] = file.read_bytes()

    def broken(*arguments: object) -> None:
        raise KeyError('colour')

    monkeypatch.setattr(plots, 'draw_keyframes', broken)  # the last of them
    with pytest.raises(KeyError):
        cli.main(arguments)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_methods_that_left_the_catalog_are_grey() -> None:
    episodes = [episode(m, s, True) for m in ('unpruned', 'cover_forecast') for s in range(3)]
    figure = draw_rates(summarise(episodes))
    assert figure is not None
    colours = [bars.lines[0].get_color() for bars in figure.axes[0].containers]
    assert LIGHT_GREY in colours and LIGHT_GREY not in METHOD_COLOURS.values()


def test_plots_keep_configurations_apart() -> None:
    episodes = [
        episode('safe_pruner', seed, seed < solved, config={'checkpoint': 'aa', 'split': split})
        for split, solved in (('test', 8), ('validation', 2))
        for seed in range(8)
    ]
    figure = draw_rates(summarise(episodes))
    assert figure is not None
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert rows == [
        'safe_pruner (split test) @0.2',
        'safe_pruner (split validation) @0.2',
    ]
    keys = draw_keyframes(episodes)
    assert keys is not None and len(keys.axes) == 4  # two panels, shares and episodes


def test_plots_show_what_was_measured() -> None:
    episodes = [
        episode(method, seed, seed < 6, task=task)
        for method in ('unpruned', 'safe_pruner', 'fastv')
        for task in ('pick_place', 'pack_doll')
        for seed in range(8)
    ]
    cells = summarise(episodes)
    figure = draw_success(cells, lambda cell: cell.retained_tokens_mean, 'tokens')
    assert figure is not None and [a.get_title() for a in figure.axes] == [
        'pack_doll',
        'pick_place',
    ]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ['unpruned', 'fastv', 'safe_pruner']
    bars = next(c for c in figure.axes[0].containers if c.get_label() == 'fastv')
    (line, _, (spread,)) = bars.lines
    assert line.get_xdata().tolist() == [60.0] and line.get_ydata().tolist() == [75.0]
    low, high = spread.get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((40.9, 92.9), abs=0.1)  # Wilson, 6 of 8
    assert draw_success(cells, lambda cell: None, '') is None

    keys = draw_keyframes(episodes)
    assert keys is not None and len(keys.axes) == 4  # two tasks, shares and episodes
    heights = [bar.get_height() for bar in keys.axes[0].patches]
    assert heights == [1, 0, 0, 0, 0, 0, 1, 0, 0, 0]
    assert draw_keyframes([e for e in episodes if e['method'] == 'fastv']) is None


def test_rates_are_sorted_and_methods_keep_their_colour() -> None:
    right = {'unpruned': 8, 'fastv': 3, 'safe_pruner': 6, 'safe_pruner:forecast=False': 7}
    episodes = [
        episode(variant, seed, seed < solved, task=task)
        for task in ('pick_place', 'pack_doll')
        for variant, solved in right.items()
        for seed in range(8)
    ]
    figure = draw_rates(summarise(episodes))
    assert figure is not None and [a.get_title() for a in figure.axes] == [
        'pack_doll',
        'pick_place',
    ]
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert rows == [
        'unpruned @1',
        'safe_pruner:forecast=False @0.2',
        'safe_pruner @0.2',
        'fastv @0.2',
    ]
    lines = [bars.lines[0] for bars in figure.axes[0].containers]
    points = {int(line.get_ydata()[0]): line for line in lines}
    assert [points[row].get_xdata()[0] for row in range(4)] == [100.0, 87.5, 75.0, 37.5]
    ours, other = points[1], points[2]
    assert ours.get_color() == other.get_color() == METHOD_COLOURS['safe_pruner']
    assert ours.get_marker() != other.get_marker()
    assert len(set(METHOD_COLOURS.values())) == min(len(METHOD_COLOURS), 1 + len(COLOURS))


def test_long_names_leave_the_panels_as_wide_as_they_were() -> None:
    def panel(variant: str) -> float:
        figure = draw_rates(summarise([episode(variant, seed, True) for seed in range(3)]))
        assert figure is not None
        figure.draw_without_rendering()
        return float(figure.axes[0].get_window_extent().width)

    assert panel('fastv:' + ','.join(f'setting_{k}=0.123' for k in range(9))) == panel('fastv')


def test_more_methods_than_colours() -> None:
    names = ['unpruned', *(f'method{k}' for k in range(len(COLOURS) + 1))]
    colours = method_colours(names)
    assert list(colours) == names and colours['unpruned'] == GREY
    assert colours[names[-1]] == colours[names[1]] != GREY
    assert draw_rates([]) is None
