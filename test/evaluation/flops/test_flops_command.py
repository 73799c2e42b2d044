"""`safe-pruner flops`: the paper's figures, and what the rows promise."""

from __future__ import annotations

import json

import pytest

from safe_pruner_ros import cli
from safe_pruner_ros.evaluation.flops.gpus import GPUS, get_gpu
from safe_pruner_ros.evaluation.flops.rows import make_rows
from safe_pruner_ros.evaluation.flops.scoring import METHODS, has_keyframes
from safe_pruner_ros.evaluation.flops.shapes import LIBERO_PROMPTS, LLAMA_7B, MODELS
from safe_pruner_ros.evaluation.flops.step import published_macs, step_stages
from safe_pruner_ros.evaluation.flops.work import Work
from safe_pruner_ros.evaluation.macs import DecoderShape


@pytest.mark.parametrize('model', ['openvla', 'openvla_oft', 'pi05'])
def test_unpruned_rows_of_the_paper(model: str) -> None:
    (row,) = make_rows([model], ['unpruned'], [0.2], [0.1])
    assert row.paper_t is not None
    assert row.macs_t == pytest.approx(row.paper_t, rel=1e-3)
    assert (row.retention_ratio, row.keyframe_share) == (1.0, 0.0)


def test_released_keep_counts_give_the_papers_oft_row() -> None:
    """102, 128, 51 and 154 of 512 tokens by suite, with 8 % key timesteps: 1.722 T; with the
    fixed interval of "w/o division", about 29 %: 2.236 T."""
    suites = zip(LIBERO_PROMPTS, (102, 128, 51, 154), strict=True)
    lengths = [(512 + 1 + prompt + 56 + 1, kept) for prompt, kept in suites]
    shapes = [(DecoderShape(32, n, 4096, 11008), kept) for n, kept in lengths]
    pruned = [shape.step_macs(3, 512 - kept) for shape, kept in shapes]
    full = [shape.step_macs(0, 0) for shape, _ in shapes]
    for share, figure in ((0.08, 1.722e12), (0.29, 2.236e12)):
        mixed = [share * f + (1 - share) * p for f, p in zip(full, pruned, strict=True)]
        assert sum(mixed) / 4 == pytest.approx(figure, rel=2e-3)


def test_paper_retention_ratio_gives_the_papers_figure() -> None:
    for row in make_rows(['openvla', 'pi05', 'cogact'], ['fastv', 'safe_pruner'], [0.2], [0.05]):
        assert row.paper_percent is not None and row.paper_retention_ratio is not None
        model = MODELS[row.model]()
        there = published_macs(model, row.method, row.paper_retention_ratio, row.keyframe_share)
        unpruned = published_macs(model, 'unpruned', 1.0, 0.0)
        mean = sum(row.paper_percent) / len(row.paper_percent)
        assert 100 * there / unpruned == pytest.approx(mean, abs=1e-6)


def test_rows_by_method_ratio_and_share() -> None:
    rows = make_rows(list(MODELS), METHODS, [0.3, 0.1], [0.0, 0.08], [get_gpu('rtx4090')])
    with_keys = sum(has_keyframes(method) for method in METHODS)
    cells = 1 + 4 * with_keys + 2 * (len(METHODS) - 1 - with_keys)
    assert len(rows) == len(MODELS) * cells
    by_cell = {(r.model, r.method, r.retention_ratio, r.keyframe_share): r for r in rows}
    for model in MODELS:
        unpruned = by_cell[model, 'unpruned', 1.0, 0.0]
        low = by_cell[model, 'safe_pruner', 0.1, 0.0]
        high = by_cell[model, 'safe_pruner', 0.3, 0.0]
        with_key = by_cell[model, 'safe_pruner', 0.1, 0.08]
        assert low.total_macs_t < high.total_macs_t < unpruned.total_macs_t
        assert low.total_macs_t < with_key.total_macs_t < unpruned.total_macs_t
        assert low.gpu_ms['rtx4090'] < unpruned.gpu_ms['rtx4090']
        assert unpruned.stages_macs_t['scoring'] == 0 < low.stages_macs_t['scoring']
        assert unpruned.flops_t == pytest.approx(2 * sum(unpruned.stages_macs_t.values()))


def test_unpruned_roofline_of_the_decoder() -> None:
    """598.5 tokens of Llama-2-7B are bound by arithmetic on an RTX 4090, one token by bandwidth:
    12.95 GB of weights at 1008 GB/s."""
    deep = step_stages(MODELS['openvla_oft'](), 'unpruned', 1.0, is_key=False)['deep']
    gpu = get_gpu('rtx4090')
    assert 1e3 * gpu.seconds(deep) == pytest.approx(48.1, abs=0.2)
    assert 1e3 * gpu.seconds(LLAMA_7B.layer(1) * 32) == pytest.approx(12.85, abs=0.05)
    assert gpu.seconds([Work(0, 0)]) == 0


def test_json_rows(capsys: pytest.CaptureFixture[str]) -> None:
    command = ['flops', '--models', 'openvla', '--methods', 'unpruned,safe_pruner', '--json']
    assert cli.main([*command, '--retention', '0.25', '--keyframe-share', '0']) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first['model'], first['method'], first['paper_t']) == ('openvla', 'unpruned', 1.862)
    assert second['retention_ratio'] == 0.25 and second['n_retained'] == 64
    assert set(second['gpu_ms']) == set(GPUS)


def test_tables_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(['flops', '--models', 'pi05', '--methods', 'fastv', '--gpus', 'h100']) == 0
    text = capsys.readouterr().out
    assert '## pi05' in text and '| fastv | 51 (0.1) |' in text and 'H100 SXM data sheet' in text


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--models', 'gpt'], "unknown model ['gpt']"),
        (['--methods', 'magic'], "unknown method ['magic']"),
        (['--gpus', 'rtx6090'], "unknown GPU 'rtx6090'"),
        (['--retention', '1.4'], '(0, 1], got 1.4'),
        (['--keyframe-share', '1.4'], 'in [0, 1], got 1.4'),
        (['--keyframe-share', 'nan'], 'in [0, 1], got nan'),
        (['--keyframe-share', 'x'], '--keyframe-share takes numbers'),
    ],
)
def test_refuses(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert cli.main(['flops', *arguments]) == 2
    assert message in capsys.readouterr().err
