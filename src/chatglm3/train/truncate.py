"""Rows that are too long: context is cut from the left; an answer and the id that ends it never are.

Of a conversation all system messages stay, with their tools. Whole exchanges go first, the oldest before the others (an
exchange is a user's message and all that follows it up to the next one), because an answer without its question
teaches nothing. When one exchange is left, its user's message loses its beginning. Plain text has no context: it is
split.
"""

from __future__ import annotations

from collections.abc import Sequence

from chatglm3.prompt import completion_prompt, message_ids
from chatglm3.tokenizer import Tokenizer
from chatglm3.train.data import IGNORED, TrainingRow, Turn, join_parts

_LEAST_PIECE = 6
"""A piece of a text has room for a character that is four ids, and for what moves to the next piece."""


def shorten_turns(tokenizer: Tokenizer, turns: Sequence[Turn], max_length: int) -> TrainingRow | None:
    """A conversation in `max_length` ids, with a target at its end; None if that cannot be.

    At least one turn must be learned. What follows the last target is left out, as nothing is learned from it.
    """
    last = max(place for place, turn in enumerate(turns) if turn.learned)
    parts = [message_ids(tokenizer, turn.message) for turn in turns]
    closing_id = parts[last + 1][0] if last + 1 < len(parts) else tokenizer.eos_id
    turns, parts = turns[: last + 1], parts[: last + 1]
    starts = [place for place, turn in enumerate(turns) if turn.message.role == "user"]
    for start in (0, *starts):
        kept = [place for place, turn in enumerate(turns) if place >= start or turn.message.role == "system"]
        row = join_parts(tokenizer, [parts[n] for n in kept], [turns[n].learned for n in kept], closing_id)
        if len(row.input_ids) <= max_length:
            return row
    if not starts:
        return None
    shorter = _cut_message(tokenizer, turns[starts[-1]], parts[starts[-1]], len(row.input_ids) - max_length)
    if shorter is None:
        return None
    parts[starts[-1]] = shorter
    return join_parts(tokenizer, [parts[n] for n in kept], [turns[n].learned for n in kept], closing_id)


def shorten_completion(tokenizer: Tokenizer, prompt: str, response: str, max_length: int) -> TrainingRow | None:
    """A completion in `max_length` ids, with all of its response and the end of its prompt; None if that cannot be."""
    opening = completion_prompt(tokenizer, "")
    learned = [*tokenizer.encode(response), tokenizer.eos_id]
    context = tokenizer.encode(prompt)
    kept = _cut(tokenizer, context, len(opening) + len(context) + len(learned) - max_length)
    if not kept:
        return None
    given = opening + kept
    return TrainingRow(given + learned, [IGNORED] * len(given) + learned)


def split_text(tokenizer: Tokenizer, text: str, max_length: int) -> list[TrainingRow]:
    """Plain text as rows of at most `max_length` ids that follow each other, the last one closed by `</s>`.

    No piece begins within a character, and none is `</s>` alone. No rows if `max_length` leaves no room for any text.
    """
    opening = completion_prompt(tokenizer, "")
    ids = [*tokenizer.encode(text), tokenizer.eos_id]
    size = max_length - len(opening)
    rows: list[TrainingRow] = []
    begin = 0
    while size >= _LEAST_PIECE and begin < len(ids):
        end = min(begin + size, len(ids))
        end -= end == len(ids) - 1
        while end < len(ids) and _is_inside(tokenizer, ids[end]):
            end -= 1
        piece = ids[begin:end]
        rows.append(TrainingRow(opening + piece, [IGNORED] * len(opening) + piece))
        begin = end
    return rows


def _cut_message(tokenizer: Tokenizer, turn: Turn, part: Sequence[int], excess: int) -> list[int] | None:
    """A message without the first `excess` ids of its content, if that leaves some."""
    opening = 1 + len(tokenizer.encode(f"{turn.message.metadata}\n"))
    kept = _cut(tokenizer, part[opening:], excess)
    return [*part[:opening], *kept] if kept else None


def _cut(tokenizer: Tokenizer, ids: Sequence[int], excess: int) -> list[int]:
    """The ids after the first `excess`, beginning with a whole character."""
    kept = list(ids[excess:])
    while kept and _is_inside(tokenizer, kept[0]):
        del kept[0]
    return kept


def _is_inside(tokenizer: Tokenizer, token_id: int) -> bool:
    """Whether a character has begun before this id."""
    return 0x80 <= (tokenizer.byte_value(token_id) or 0) < 0xC0
