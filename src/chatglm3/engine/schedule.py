"""Who takes part in the next run of the network, and with how many tokens."""

from __future__ import annotations

from collections.abc import Sequence

from chatglm3.engine.sequence import RunningSequence

_OLDEST_SHARE = 4  # one in so many of a step's prompt tokens belongs to the oldest prompt


def plan(running: Sequence[RunningSequence], chunk: int) -> list[tuple[RunningSequence, list[int]]]:
    """Each sequence's tokens of the next step; `running` is in order of arrival.

    Whoever decodes gets its one token. Of the `chunk` tokens for prompts the oldest prompt gets a quarter, so that
    nobody waits for ever, and the shortest the rest, so that a short prompt does not wait for a long one.
    """
    decoding = [s for s in running if s.remaining == 1]
    prompts = [s for s in running if s.remaining > 1]
    shares = _shares(prompts, max(chunk, 1))
    return [(s, s.pending(1)) for s in decoding] + [(s, s.pending(n)) for s, n in shares.items() if n]


def _shares(prompts: Sequence[RunningSequence], left: int) -> dict[RunningSequence, int]:
    if not prompts:
        return {}
    shares = dict.fromkeys(sorted(prompts, key=lambda s: s.remaining), 0)
    shares[prompts[0]] = min(prompts[0].remaining, max(1, left // _OLDEST_SHARE))
    left -= shares[prompts[0]]
    for sequence, share in shares.items():
        more = min(left, sequence.remaining - share)
        shares[sequence] += more
        left -= more
    return shares
