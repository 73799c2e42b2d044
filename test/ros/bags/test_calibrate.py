"""`safe-pruner calibrate` from bags to a proposal and its judgement."""

from __future__ import annotations

import json

import pytest

from safe_pruner_ros import cli

MS = 1_000_000


@pytest.fixture(scope='module')
def halves(episode, kit, tmp_path_factory):
    """The episode as two recordings."""
    folder, middle = tmp_path_factory.mktemp('halves'), kit.START_NS + 1_000 * MS
    return [
        str(kit.write_bag(folder / name, [e for e in episode if choose(e.log_ns)]))
        for name, choose in (('one', lambda t: t < middle), ('two', lambda t: t >= middle))
    ]


@pytest.fixture
def common(seeded_checkpoint, kit, tmp_path):
    return [
        '--checkpoint', str(seeded_checkpoint), '--instruction', kit.INSTRUCTION,
        '--out', str(tmp_path / 'out'),
    ]  # fmt: skip


def test_two_recordings_judge_each_other(halves, common, tmp_path, capsys) -> None:
    asked = ['--retention', '0.6,0.2', '--thresholds', '0.0', '--max-deviation-rad', '50']
    asked += ['--set', 'alpha=0.7']
    assert cli.main(['calibrate', *halves, *asked, *common]) == 0
    printed = capsys.readouterr().out
    assert 'proposed: retention 0.2, tau 0. In the policy file:' in printed
    lines = printed.splitlines()
    assert {'pruner:', '  retention_ratio: 0.2', '  alpha: 0.7', '  norm: l1'} <= set(lines)
    assert printed.count('judged on') == 2 and printed.count('keeps the limits') == 2
    report = json.loads((tmp_path / 'out' / 'calibration.json').read_text())
    assert report['chosen'] == {'retention_ratio': 0.2, 'similarity_threshold': 0.0}
    assert report['settings']['alpha'] == 0.7 and report['settings']['retention_ratio'] == 0.2
    assert report['judged_by'] == 'each recording by the choice of the others'
    assert [item['recording'] for item in report['judgements']] == halves
    much, little = (point['kept_share'] for point in reversed(report['curve']))
    assert much < little < 1
    assert len(report['curve'][0]['recordings']) == 2
    assert (tmp_path / 'out' / 'curve.svg').read_text().startswith('<svg')
    assert '<script' not in (tmp_path / 'out' / 'calibration.html').read_text()


def test_a_limit_that_nothing_keeps(halves, common, capsys) -> None:
    asked = ['--retention', '0.2', '--thresholds', '0.0', '--max-deviation-rad', '0']
    assert cli.main(['calibrate', halves[0], *asked, *common]) == 1
    assert 'no setting keeps the limits' in capsys.readouterr().out


def test_wrong_requests(halves, common, capsys, tmp_path) -> None:
    limit = ['--max-deviation-rad', '1']
    for arguments, message in (
        ([halves[0]], 'calibrate needs a limit'),
        ([halves[0], halves[0], *limit], 'given twice'),
        ([halves[0], '--method', 'unpruned', *limit], 'nothing to calibrate'),
        ([halves[0], '--method', 'magic', *limit], 'unknown pruning method'),
        ([halves[0], '--retention', '1.0', *limit], 'must be in (0, 1), got 1.0'),
        ([halves[0], '--thresholds', 'low', *limit], '--thresholds takes numbers like 0.3,0.1'),
        ([halves[0], '--thresholds', '2', *limit], 'in [0, 1], got 2'),
    ):
        assert cli.main(['calibrate', *arguments, *common]) == 2, arguments
        error = capsys.readouterr().err.splitlines()[-1]
        assert message in error, error
    assert not (tmp_path / 'out').exists()
