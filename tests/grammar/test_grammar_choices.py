from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatglm3.errors import SamplingError
from chatglm3.grammar.choices import ChoiceGrammar
from chatglm3.tokenizer import Tokenizer
from grammar_answers import RandomWriter, read_back

SETS = [
    ["正面", "负面"],
    ["好", "好的", "好的，谢谢", "不好"],
    ["a", "ab", "abc", "b"],
    ["😀", "👍🏽", "😃 yes", "没有"],
    ["two words", "two  spaces", "line\nbreak", "{json}"],
    ["only"],
]


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("choices", SETS, ids=lambda choices: choices[0])
def test_every_answer_is_one_of_the_choices(tokenizer: Tokenizer, choices: list[str], chat: bool) -> None:
    grammar = ChoiceGrammar(tokenizer, choices, chat=chat)
    for seed in range(20):
        ids = RandomWriter(tokenizer, seed).write(grammar.start(), forced=bool(seed % 2))
        assert ids is not None
        assert len(ids) <= (grammar.most_tokens or 0)
        assert read_back(tokenizer, ids, chat=chat) in choices


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("choices", SETS, ids=lambda choices: choices[0])
def test_every_choice_can_be_the_answer(tokenizer: Tokenizer, choices: list[str], chat: bool) -> None:
    """In the pieces that the tokenizer writes for it, and then a stop id may come."""
    grammar = ChoiceGrammar(tokenizer, choices, chat=chat)
    for choice in choices:
        state = grammar.start()
        ids = [*tokenizer.encode("\n"), *tokenizer.encode(choice)] if chat else tokenizer.encode_continuation(choice)
        for token_id in [*ids, tokenizer.eos_id]:
            assert state.allowed()[token_id]
            state.accept(token_id)


@given(st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=5, unique=True), st.integers(0, 1000))
@settings(max_examples=60)
def test_an_answer_is_one_of_any_choices_that_are_not_refused(
    nano_tokenizer: Tokenizer, texts: list[str], seed: int
) -> None:
    for chat in (True, False):
        try:
            grammar = ChoiceGrammar(nano_tokenizer, texts, chat=chat)
        except SamplingError as error:
            assert "\n" not in str(error)
            continue
        ids = RandomWriter(nano_tokenizer, seed).write(grammar.start(), forced=bool(seed % 2))
        assert ids is not None
        assert read_back(nano_tokenizer, ids, chat=chat) in texts


def test_a_chat_answer_begins_with_its_header_line_and_only_a_branch_is_left_to_the_model(
    official_tokenizer: Tokenizer,
) -> None:
    t = official_tokenizer
    state = ChoiceGrammar(t, ["正面", "负面"], chat=True).start()
    assert state.forced() == [*t.encode("\n"), t.encode("正面")[0]] == [30910, 13, 30910]
    for token_id in state.forced():
        assert np.flatnonzero(state.allowed()).tolist() == [token_id]
        state.accept(token_id)
    assert state.forced() == []
    assert set(np.flatnonzero(state.allowed())) == {t.encode(label)[1] for label in ("正面", "负面")}
    state.accept(t.encode("负面")[1])
    assert state.finished
    assert state.forced() == []


def test_a_choice_that_another_goes_on_from_may_end_or_go_on(official_tokenizer: Tokenizer) -> None:
    t = official_tokenizer
    ids = t.encode("two words")
    assert ids[:1] == t.encode("two")
    state = ChoiceGrammar(t, ["two", "two words"], chat=True).start()
    for token_id in [*t.encode("\n"), ids[0]]:
        state.accept(token_id)
    assert set(np.flatnonzero(state.allowed())) == {ids[1], *t.stop_ids}
    assert not state.finished
    assert state.forced() == []


def test_states_of_one_grammar_do_not_touch(tiny_tokenizer: Tokenizer) -> None:
    grammar = ChoiceGrammar(tiny_tokenizer, ["一", "二"], chat=False)
    first, second = grammar.start(), grammar.start()
    first.accept(int(np.flatnonzero(first.allowed())[0]))
    assert second.forced() == grammar.start().forced()


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ("正面", "choices must be a list of strings, not str"),
        (7, "choices must be a list of strings, not int"),
        ([], r"choices must be non-empty strings, not \[\]"),
        (["a", ""], "choices must be non-empty strings"),
        (["a", 1], "choices must be non-empty strings"),
        (["a", "b", "a"], "choices must differ; a is given twice"),
        ([" a", "b"], "the choice ' a' would be read back as 'a'; give it in that form"),
        (["[[训练时间]]"], "would be read back as '2023年'"),
    ],
)
def test_choices_that_are_refused(tiny_tokenizer: Tokenizer, choices: object, message: str) -> None:
    with pytest.raises(SamplingError, match=message):
        ChoiceGrammar(tiny_tokenizer, choices, chat=True)  # type: ignore[arg-type]


def test_plain_text_may_begin_with_a_space(tokenizer: Tokenizer) -> None:
    grammar = ChoiceGrammar(tokenizer, [" yes", "yes"], chat=False)
    firsts = set(np.flatnonzero(grammar.start().allowed()).tolist())
    assert firsts == {tokenizer.encode_continuation(choice)[0] for choice in (" yes", "yes")}
