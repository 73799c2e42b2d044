"""Lines of /diagnostics from made-up facts: the level is right and the text says what to do."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from safe_pruner_ros.ros.diagnostics import (
    ERROR,
    OK,
    WARN,
    CameraFacts,
    Check,
    NodeFacts,
    checks,
    to_message,
)
from safe_pruner_ros.runtime.codes import Code, Reason
from safe_pruner_ros.runtime.control_loop import LoopStatus
from safe_pruner_ros.runtime.observation_buffer import SourceStatistics
from safe_pruner_ros.runtime.retention_control import RetentionState
from safe_pruner_ros.runtime.shadow_audit import Audit, AuditCounts, Deviation
from safe_pruner_ros.runtime.step_report import RollingStatistics

pytestmark = pytest.mark.ros


def statistics(*values: float) -> RollingStatistics:
    filled = RollingStatistics()
    for value in values:
        filled.add(value)
    return filled


LOOP = LoopStatus(
    state='RUN',
    reasons=(),
    warnings=(),
    sources=(SourceStatistics('head', 300, {}, 0.02, 30.0, None),),
    instruction='lift',
    policy_step=3,
    policy_step_ms=statistics(50.0, 60.0),
    command_period_ms=statistics(20.0),
    action_age_ms=statistics(),
    seam_jump_rad=statistics(),
    starved_ticks=0,
    retention=RetentionState(0.3, 'as configured'),
    audit=None,
    audit_counts=AuditCounts(),
    audit_failure='',
    last_report=None,
)
FACTS = NodeFacts(
    robot='r',
    lifecycle='active',
    loop=LOOP,
    views=('head',),
    cameras={'head': CameraFacts(1.0, 900_000, 0)},
    dry_run=False,
    listeners={'/arm': 1},
    execution_period_ms=400.0,
    profile='/share/fastdds_profile.xml',
)


def line(name: str, loop: dict[str, Any] | None = None, **facts: Any) -> Check:
    changed = replace(FACTS, loop=replace(LOOP, **(loop or {})), **facts)
    return next(check for check in checks(changed) if check.name == name)


def audit(deviation: Deviation) -> Audit:
    return Audit(7, 1, 58, 192, deviation, 61.0, False)


def test_all_is_well() -> None:
    assert {check.level for check in checks(FACTS)} == {OK}
    message = to_message(checks(FACTS), 'r', 5_000_000_000)
    assert message.status[0].name == 'safe_pruner: state'
    assert message.header.stamp.sec == 5


@pytest.mark.parametrize(
    ('name', 'loop', 'facts', 'level', 'words'),
    [
        ('state', {'state': 'HOLD', 'reasons': (Reason(Code.IMAGE_STALE, 'head is old'),)}, {},
         WARN, 'IMAGE_STALE'),
        ('state', {'state': 'FAULT'}, {}, ERROR, '~/reset'),
        ('camera head', {}, {'cameras': {'head': CameraFacts(0.5, 900_000, 9)}}, WARN,
         'FASTRTPS_DEFAULT_PROFILES_FILE=/share/fastdds_profile.xml'),
        ('camera head', {}, {'cameras': {'head': CameraFacts(0.5, 9_000, 9)}}, WARN, 'network'),
        ('policy', {'policy_step_ms': statistics(500.0)}, {}, WARN, 'pruner.retention_ratio'),
        ('guard', {}, {'verdicts': {'pass': 60, 'clamp': 40, 'VELOCITY_LIMIT': 38,
                                    'STEP_LIMIT': 2, 'arms limited': 30}},
         WARN, '30% of the commands were limited for an arm (all joints: VELOCITY_LIMIT 38, '
         'STEP_LIMIT 2)'),
        ('guard', {}, {'verdicts': {'pass': 60, 'clamp': 40, 'STEP_LIMIT': 40, 'arms limited': 4}},
         OK, '4.0%'),  # grippers close as fast as they may
        ('audit', {'audit': audit(Deviation(0.2, 0.0, 0, 31.0))}, {'audit_limit_rad': 0.1}, WARN,
         '0.200 rad, 31 mm (limit 0.1 rad)'),
        ('audit', {'audit': audit(Deviation(math.nan, math.nan, 0, math.nan))},
         {'audit_limit_rad': 0.1}, WARN, 'nan rad'),
        ('audit', {'audit': audit(Deviation(0.2, 0.0, 0, math.nan))}, {}, OK, '0.200 rad'),
        ('audit', {'audit_counts': AuditCounts(postponed=4)}, {}, OK, 'execution_horizon'),
        ('audit', {'audit_failure': 'out of memory'}, {}, WARN, 'out of memory'),
        ('actions', {'action_age_ms': statistics(80.0, 90.0)}, {}, OK, '85 ms'),
        ('commands', {}, {'listeners': {'/arm': 0}}, WARN, 'nobody listens'),
        ('commands', {}, {'silenced': 'another node'}, ERROR, 'another node'),
        ('node', {}, {'callback_failures': {'overlay': (3, 'no ink')}}, ERROR, 'no ink'),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(name, loop, facts, level, words) -> None:
    found = line(name, loop, **facts)
    assert found.level == level and words in found.message, found
