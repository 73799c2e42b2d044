"""Rows 43 to 45: what may be an instruction, and what a bad one does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safe_pruner_ros.runtime.codes import Code
from safe_pruner_ros.runtime.config import BufferConfig
from safe_pruner_ros.runtime.observation_buffer import NotReady, ObservationBuffer, Snapshot


@pytest.fixture
def make(kit):
    def make():
        buffer = ObservationBuffer(kit.robot(), BufferConfig())
        buffer.set_instruction('lift the cup')
        return buffer, kit.Feeder(buffer)

    return make


def codes(result):
    return [reason.code for reason in result.reasons] if isinstance(result, NotReady) else []


def test_instruction_changes_bump_the_generation_once(kit, make):
    buffer, feed = make()
    feed.all(kit.T0)
    generation = buffer.generation
    for _ in range(1000):
        assert buffer.set_instruction('  lift   the cup\n') is None
    assert buffer.generation == generation
    assert buffer.set_instruction('put it down') is None
    assert buffer.generation == generation + 1
    assert buffer.snapshot(kit.T0).observation.instruction == 'put it down'


@pytest.mark.parametrize(
    ('text', 'code'),
    [
        ('', Code.INSTRUCTION_EMPTY),
        (' \n\t ', Code.INSTRUCTION_EMPTY),
        ('\u200b', Code.INSTRUCTION_EMPTY),
        ('x' * 100_000, Code.INSTRUCTION_REFUSED),
        ('lift\x00 it', Code.INSTRUCTION_REFUSED),
        ('lift \x1b[31m it', Code.INSTRUCTION_REFUSED),
        ('lift \udcff it', Code.INSTRUCTION_REFUSED),
    ],
)
def test_bad_instruction_holds_instead_of_keeping_the_last(kit, make, text, code):
    buffer, feed = make()
    feed.all(kit.T0)
    reason = buffer.set_instruction(text)
    assert reason.code is code and len(reason.text) < 300 and reason.text.isprintable()
    assert codes(buffer.snapshot(kit.T0)) == [code]
    assert buffer.instruction == ''


@given(text=st.text(max_size=300))
def test_any_text_is_clean_or_refused(kit, text):
    buffer = ObservationBuffer(kit.robot(), BufferConfig())
    reason = buffer.set_instruction(text)
    assert (reason is None) == bool(buffer.instruction)
    assert '\n' not in buffer.instruction and buffer.instruction.strip() == buffer.instruction
    buffer.instruction.encode()


def test_instruction_and_cameras_in_any_order(kit):
    buffer = ObservationBuffer(kit.robot(), BufferConfig())
    kit.Feeder(buffer).all(kit.T0)
    assert codes(buffer.snapshot(kit.T0)) == [Code.INSTRUCTION_EMPTY]
    buffer.set_instruction('lift the cup')
    assert isinstance(buffer.snapshot(kit.T0), Snapshot)
