from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chatglm3.stopping import StopStrings

texts = st.text("ab。", max_size=30)
stop_lists = st.lists(st.text("ab。", min_size=1, max_size=4), max_size=4)


def cut(text: str, stops: list[str]) -> str:
    """What is before the first place where a stop string begins."""
    return text[: min([place for stop in stops if (place := text.find(stop)) >= 0], default=len(text))]


def passed_on(text: str, stops: list[str], sizes: list[int]) -> tuple[list[str], StopStrings]:
    """What comes out when the text arrives in pieces of these sizes, and then of one character."""
    filter_, parts = StopStrings(stops), []
    for size in [*sizes, *[1] * len(text)]:
        parts.append(filter_.push(text[:size]))
        text = text[size:]
    return [*parts, filter_.finish()], filter_


@given(texts, stop_lists, st.lists(st.integers(0, 7)))
def test_what_comes_out_is_the_text_up_to_a_stop_string(text: str, stops: list[str], sizes: list[int]) -> None:
    """At once the earliest one wins; piece by piece, the one that is complete first."""
    parts, filter_ = passed_on(text, stops, sizes)
    shown = "".join(parts)
    assert text.startswith(shown)
    assert not any(stop in shown for stop in stops)
    assert filter_.found == any(stop in text for stop in stops)
    if filter_.found:
        assert any(text[len(shown) :].startswith(stop) for stop in stops)
    else:
        assert shown == text
    whole, _ = passed_on(text, stops, [len(text)])
    assert "".join(whole) == cut(text, stops)


@given(texts, st.lists(st.text("ab。", min_size=2, max_size=2), max_size=3), st.lists(st.integers(0, 7)))
def test_pieces_do_not_matter_for_stop_strings_of_one_length(text: str, stops: list[str], sizes: list[int]) -> None:
    assert "".join(passed_on(text, stops, sizes)[0]) == cut(text, stops)


@given(texts, stop_lists, st.lists(st.integers(0, 7)))
def test_nothing_is_held_back_that_cannot_become_a_stop_string(text: str, stops: list[str], sizes: list[int]) -> None:
    filter_, shown, arrived = StopStrings(stops), "", ""
    for size in [*sizes, *[1] * len(text)]:
        arrived, text = arrived + text[:size], text[size:]
        shown += filter_.push(arrived[-size:] if size else "")
        if filter_.found:
            return
        held = arrived[len(shown) :]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_after_a_stop_string_nothing_passes() -> None:
    stops = StopStrings(["end"])
    assert stops.push("the e") == "the "
    assert stops.push("ndless") == ""
    assert stops.found
    assert (stops.push("more"), stops.finish()) == ("", "")


def test_a_false_start_is_released() -> None:
    stops = StopStrings(["abac"])
    assert [stops.push(c) for c in "ababac!"] == ["", "", "", "ab", "", "", ""]
    assert stops.found


def test_a_beginning_at_the_very_end_is_not_lost() -> None:
    stops = StopStrings(["。。"])
    assert stops.push("好。") == "好"
    assert stops.finish() == "。"
    assert not stops.found
