"""What the node adds, from the time stamps of messages."""

from __future__ import annotations

import pytest

from safe_pruner_ros.evaluation.node_timing import MessageTimes, markdown_table, node_timing

MS = 1_000_000


def test_overhead_is_what_the_policy_did_not_use() -> None:
    times = MessageTimes(
        pictures={7: 1000 * MS, 8: 1100 * MS},
        chunks=[(7, 1030 * MS), (8, 1125 * MS), (9, 1200 * MS)],  # no picture 9 was seen
        commands=[k * 20 * MS for k in range(50, 58)],  # 1000 to 1140
        policy_ms={7: 25.0, 8: 20.0},
    )
    found = node_timing(times)
    assert found['picture_to_chunk_ms']['n'] == 2
    assert found['picture_to_chunk_ms']['p50'] == 27.5
    assert found['node_overhead_ms']['p50'] == 5.0
    assert found['picture_to_command_ms']['p50'] == pytest.approx((40 + 40) / 2)
    assert found['command_period_ms'] == {'n': 7, 'p50': 20.0, 'p90': 20.0, 'p99': 20.0, 'max': 20}
    table = markdown_table({'no model': {'timing': found, 'image_receive_ratio': 0.99}})
    assert table.count('| no model |') == 4 and 'no model: 99.0%' in table


def test_nothing_seen_is_no_number() -> None:
    found = node_timing(MessageTimes())
    assert found['node_overhead_ms'] == {
        'n': 0,
        'p50': None,
        'p90': None,
        'p99': None,
        'max': None,
    }
    markdown_table({'no model': {'timing': found, 'image_receive_ratio': None}})
