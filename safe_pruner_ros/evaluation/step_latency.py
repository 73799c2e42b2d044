"""How long a policy step takes, from the records of episodes.

Episodes run on all cores for hours. A machine that stands still for some minutes in one step
outweighs all other steps in a mean, and a median over all steps does not see key timesteps that
are fewer than half. So: a median for each of the two kinds, weighted by their numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from safe_pruner_ros.evaluation.results import Record


def weighted_p50_ms(episodes: Sequence[Record]) -> float | None:
    """Median latency of key timesteps x their share of all policy steps + that of all other steps
    x theirs, in ms. Each median is one over episodes, of the median within each.

    None without a policy step, and where a kind that there is was not measured (older records).
    """
    steps = sum(int(episode.get('policy_steps') or 0) for episode in episodes)
    if not steps:
        return None
    key_share = sum(int(episode.get('keyframes') or 0) for episode in episodes) / steps
    shares = {'latency_ms_key_p50': key_share, 'latency_ms_pruned_p50': 1 - key_share}
    total = 0.0
    for name, share in shares.items():
        measured = [episode[name] for episode in episodes if episode.get(name) is not None]
        if share and not measured:
            return None
        total += share * float(np.median(measured)) if share else 0.0
    return total
