"""Who takes part in the next run of the network, and with how many tokens."""

from __future__ import annotations

from collections.abc import Sequence

from chatglm3.engine.sequence import RunningSequence
from chatglm3.model.adapters import Adapter

_OLDEST_SHARE = 4  # one in so many of a step's prompt tokens belongs to the oldest prompt


def next_adapter(running: Sequence[RunningSequence], last: Adapter | None) -> Adapter | None:
    """Whose adapter acts in the next step: those of `running` (in order of arrival) take turns, the one after `last`.

    A step has one adapter, or none. If nobody wants `last` any more, it is the turn of who waits longest.
    """
    wanted = list(dict.fromkeys(s.adapter for s in running if s.remaining))
    if last not in wanted:
        return wanted[0] if wanted else None
    return wanted[(wanted.index(last) + 1) % len(wanted)]


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
