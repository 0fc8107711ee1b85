"""Rows that are too long lose context and never an answer or what ends it."""

from __future__ import annotations

from itertools import takewhile

from hypothesis import assume, given
from hypothesis import strategies as st

from chatglm3.messages import Message, Role
from chatglm3.prompt import chat_prompt, completion_prompt, message_ids
from chatglm3.tokenizer import Tokenizer
from chatglm3.train.data import IGNORED, Turn, encode_completion, encode_turns
from chatglm3.train.truncate import shorten_completion, shorten_turns, split_text

TEXTS = st.text(st.sampled_from("你好北京天气ab 😀\n1"), max_size=12)
TOOLS = [{"name": "weather"}]


def turn(role: Role, text: str, learned: bool = False) -> Turn:
    return Turn(Message(role, text), learned and role == "assistant")


ROLES = st.sampled_from(["user", "user", "assistant", "assistant", "observation"])
TURNS = st.lists(st.builds(turn, ROLES, TEXTS, st.sampled_from([True, True, False])), min_size=1, max_size=8)
SYSTEMS = st.one_of(
    st.just([]),
    st.builds(lambda text: [Turn(Message.system(text), False)], TEXTS),
    st.builds(lambda text: [Turn(Message.system(text, TOOLS), False)], TEXTS),
)


@given(system=SYSTEMS, turns=TURNS, limit=st.integers(8, 120))
def test_a_shortened_conversation(tiny_tokenizer: Tokenizer, system: list[Turn], turns: list[Turn], limit: int) -> None:
    t = tiny_tokenizer
    assume(any(turn.learned for turn in turns))
    whole = encode_turns(t, [*system, *turns])
    assume(len(whole.input_ids) > limit)
    row = shorten_turns(t, [*system, *turns], limit)
    kept = chat_prompt(t, [turn.message for turn in system], add_generation_prompt=False)
    last = max(place for place, turn in enumerate(turns) if turn.learned)
    answer = message_ids(t, turns[last].message)
    if row is None:
        questions = [place for place, turn in enumerate(turns[:last]) if turn.message.role == "user"]
        needed = turns[questions[-1] if questions else 0 : last + 1]
        least = encode_turns(t, [*system, *needed])
        spare = len(t.encode(needed[0].message.content)) - 1 if questions else 0
        # Of a character that is several ids no part is left, so that 3 more can be missing.
        assert len(least.input_ids) - max(spare, 0) > limit - 3
        return
    ids, labels, *_ = row
    assert len(ids) == len(labels) <= limit
    assert ids[: len(kept)] == kept and set(labels[: len(kept)]) == {IGNORED}
    assert ids[-1] == labels[-1] and ids[-1] in (t.eos_id, t.user_id, t.assistant_id, t.observation_id)
    learned = [*answer[1:], ids[-1]]
    assert ids[-len(learned) :] == labels[-len(learned) :] == learned
    # What is left of the conversation is an end of it, up to the last target; its first message may have been cut.
    left = ids[len(kept) :]
    rest = left[1 + len(t.encode("\n")) :]
    end = len(whole.input_ids) - next(n for n, label in enumerate(reversed(whole.labels)) if label != IGNORED)
    assert whole.input_ids[:end][-len(rest) :] == rest
    assert whole.labels[:end][-len(rest) :] == labels[-len(rest) :]
    if len(left) < end - len(kept):
        assert left[0] == t.user_id, "an answer is kept together with its question"


@given(prompt=TEXTS, response=TEXTS, limit=st.integers(4, 40))
def test_a_shortened_completion(tiny_tokenizer: Tokenizer, prompt: str, response: str, limit: int) -> None:
    t = tiny_tokenizer
    whole = encode_completion(t, prompt, response)
    assume(len(whole.input_ids) > limit)
    row = shorten_completion(t, prompt, response, limit)
    learned = [*t.encode(response), t.eos_id]
    if row is None:
        assert len(learned) + 3 + 3 > limit or not prompt
        return
    ids, labels, *_ = row
    opening = completion_prompt(t, "")
    assert len(ids) == len(labels) <= limit
    assert ids[: len(opening)] == opening
    context = ids[len(opening) : -len(learned)]
    assert context and t.encode(prompt)[-len(context) :] == context
    assert ids[-len(learned) :] == learned
    assert labels == [IGNORED] * (len(ids) - len(learned)) + learned


def test_what_goes_first(tiny_tokenizer: Tokenizer) -> None:
    t = tiny_tokenizer
    turns = [
        Turn(Message.system("", TOOLS), False),
        turn("user", "你好" * 9),
        turn("assistant", "好", True),
        turn("user", "天气" * 9),
        Turn(Message("assistant", "x", "weather"), True),
        turn("observation", "晴" * 9),
        turn("assistant", "晴。", True),
        turn("user", "谢谢"),
    ]
    until_stop = len(encode_turns(t, turns).input_ids) - 1 - len(message_ids(t, turns[-1].message)) + 1
    row = shorten_turns(t, turns, until_stop)
    assert row is not None and len(row.input_ids) == until_stop and row.labels[-1] == t.user_id

    second = encode_turns(t, [turns[0], *turns[3:7]]).input_ids
    row = shorten_turns(t, turns, until_stop - 1)
    assert row is not None and row.input_ids == [*second[:-1], t.user_id]

    row = shorten_turns(t, turns, len(second) - 5)
    cut = t.encode("天气" * 9)[5:]
    assert row is not None and row.input_ids[-len(row.input_ids) :].count(t.user_id) == 2
    place = row.input_ids.index(t.user_id) + 1 + len(t.encode("\n"))
    assert row.input_ids[place : place + len(cut)] == cut

    assert shorten_turns(t, turns, len(second) - len(t.encode("天气" * 9))) is None


def test_a_cut_leaves_whole_characters(tiny_tokenizer: Tokenizer) -> None:
    t = tiny_tokenizer
    prompt = "😀" * 10
    whole = encode_completion(t, prompt, "a").input_ids
    for limit in range(8, len(whole)):
        row = shorten_completion(t, prompt, "a", limit)
        assert row is not None
        assert "\ufffd" not in t.decode(row.input_ids)
        begun = list(takewhile(lambda i: t.byte_value(i) is not None, row.input_ids[2:]))
        assert len(begun) % 4 == 0


def test_plain_text_is_never_cut(tiny_tokenizer: Tokenizer) -> None:
    assert shorten_completion(tiny_tokenizer, "", "你好" * 50, 20) is None


@given(text=st.text(st.sampled_from("你好北京天气ab 😀\n1"), max_size=80), limit=st.integers(1, 40))
def test_plain_text_in_pieces(tiny_tokenizer: Tokenizer, text: str, limit: int) -> None:
    t = tiny_tokenizer
    opening, whole = completion_prompt(t, ""), encode_completion(t, "", text).input_ids
    rows = split_text(t, text, limit)
    if limit < len(opening) + 6:
        assert rows == []
        return
    assert [i for row in rows for i in row.input_ids[len(opening) :]] == whole[len(opening) :]
    for row in rows:
        ids, labels, *_ = row
        assert ids[: len(opening)] == opening and labels == [IGNORED] * len(opening) + ids[len(opening) :]
        assert len(ids) <= limit and "\ufffd" not in t.decode(ids)
        assert row is rows[-1] or len(ids) >= limit - 4, "a piece is full"
        assert len(rows) == 1 or ids[len(opening) :] != [t.eos_id]
