"""What a demo shows in the terminal while it runs: a live panel, or plain lines without a tty."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from safe_pruner_ros.evaluation.demo.record import EpisodeRecord

REFRESH_HZ = 5
BAR_CELLS = 36


@dataclass(frozen=True)
class LiveState:
    """The newest of everything. ``node`` is what the node says about itself."""

    time_s: float
    stage: str
    n_retained: int
    n_visual: int
    is_key_timestep: bool
    similarity: float
    threshold: float
    latency_ms: float
    latency_p50_ms: float
    policy_steps: int
    keyframes: int
    last_reason: str
    node: str


class Screen(Protocol):
    """Use as a context manager."""

    def __enter__(self) -> Screen: ...
    def __exit__(self, *exception: object) -> None: ...
    def say(self, text: str) -> None:
        """What is being done outside of episodes."""

    def begin(self, episode: EpisodeRecord, total: int) -> None: ...
    def update(self, state: LiveState) -> None: ...
    def end(self, episode: EpisodeRecord) -> None: ...


def outcome(episode: EpisodeRecord) -> str:
    """One line about a finished episode."""
    steps = episode.steps
    text = f'{"solved" if episode.success else "NOT SOLVED"} after {episode.duration_s:.1f} s'
    if steps:
        mean = sum(step.n_retained for step in steps) / len(steps)
        text += (
            f', {len(steps)} policy steps, {len(episode.keyframes)} keyframes, '
            f'{mean:.0f} of {steps[0].n_visual} tokens'
        )
    return f'{text}; {episode.note}' if episode.note else text


class PlainScreen:
    """A line for every change; for logs and pipes."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._stage, self._keyframes, self._node = '', 0, ''

    def __enter__(self) -> PlainScreen:
        return self

    def __exit__(self, *exception: object) -> None: ...

    def say(self, text: str) -> None:
        print(f'[{time.monotonic() - self._began_s:5.1f} s] {text}', flush=True)

    def begin(self, episode: EpisodeRecord, total: int) -> None:
        self._stage, self._keyframes = '', 0
        self.say(f'episode {episode.number}/{total}, seed {episode.seed}: {episode.instruction}')

    def update(self, state: LiveState) -> None:
        if state.stage != self._stage:
            self._stage = state.stage
            self.say(f'  {state.time_s:4.1f} s  {state.stage}')
        if state.keyframes != self._keyframes:
            self._keyframes = state.keyframes
            self.say(f'  {state.time_s:4.1f} s  keyframe: {state.last_reason}')
        if state.node != self._node:
            self._node = state.node
            if state.node != 'RUN':
                self.say(f'  {state.time_s:4.1f} s  node: {state.node}')

    def end(self, episode: EpisodeRecord) -> None:
        self.say(f'  {outcome(episode)}')


class LiveScreen:
    """One panel that is drawn over and over."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        self._title = title
        self._console = console or Console()
        self._live = Live(console=self._console, refresh_per_second=REFRESH_HZ)
        self._doing = ''
        self._episode: EpisodeRecord | None = None
        self._total = 0
        self._state: LiveState | None = None
        self._finished: list[EpisodeRecord] = []

    def __enter__(self) -> LiveScreen:
        self._live.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.update(self._draw(), refresh=True)
        self._live.stop()

    def say(self, text: str) -> None:
        self._doing = text
        self._live.update(self._draw())

    def begin(self, episode: EpisodeRecord, total: int) -> None:
        self._episode, self._total, self._state, self._doing = episode, total, None, ''
        self._live.update(self._draw())

    def update(self, state: LiveState) -> None:
        self._state = state
        self._live.update(self._draw())

    def end(self, episode: EpisodeRecord) -> None:
        self._finished.append(episode)
        self._episode = None
        self._live.update(self._draw())

    def _draw(self) -> RenderableType:
        parts: list[RenderableType] = []
        for episode in self._finished:
            mark = Text('✔ ', 'green') if episode.success else Text('✘ ', 'red')
            parts.append(
                mark.append(f'{episode.instruction}  ', '').append(outcome(episode), 'dim')
            )
        if self._episode is not None:
            parts.append(self._current(self._episode))
        if self._doing:
            parts.append(Text(f'… {self._doing}', 'cyan'))
        return Panel(Group(*parts), title=self._title, title_align='left', border_style='grey50')

    def _current(self, episode: EpisodeRecord) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        table.add_column(style='grey62', justify='right')
        table.add_column()
        head = Text(f'{episode.number}/{self._total}', 'bold').append('  seed ', 'grey62')
        table.add_row('episode', head.append(str(episode.seed)))
        table.add_row('instruction', Text(episode.instruction, 'bold'))
        state = self._state
        if state is None:
            return table
        table.add_row('stage', f'{state.stage}  {state.time_s:.1f} s')
        table.add_row('tokens', _token_bar(state))
        table.add_row('similarity', _similarity(state))
        latency = f'{_shown(state.latency_ms)} ms, median {_shown(state.latency_p50_ms)} ms'
        table.add_row('policy step', f'{latency}, {state.policy_steps} so far')
        keyframes = f'{state.keyframes}'
        if state.last_reason:
            keyframes += f', last: {state.last_reason}'
        table.add_row('keyframes', keyframes)
        table.add_row('node', Text(state.node, 'green' if state.node == 'RUN' else 'red'))
        return table


def _token_bar(state: LiveState) -> Text:
    if not state.n_visual:
        return Text('no policy step yet', 'grey62')
    cells = round(BAR_CELLS * state.n_retained / state.n_visual)
    colour = 'orange1' if state.is_key_timestep else 'deep_sky_blue1'
    bar = Text('█' * cells, colour).append('░' * (BAR_CELLS - cells), 'grey37')
    bar.append(f'  {state.n_retained} of {state.n_visual}')
    return bar.append('  key timestep', 'orange1') if state.is_key_timestep else bar


def _similarity(state: LiveState) -> Text:
    if not math.isfinite(state.similarity):
        return Text('none in this step', 'grey62')
    below = state.similarity < state.threshold
    text = Text(f'{state.similarity:.2f}', 'orange1' if below else '')
    return text.append(f'  (look again below {state.threshold:g})', 'grey62')


def _shown(value: float) -> str:
    return f'{value:.0f}' if math.isfinite(value) else '-'
