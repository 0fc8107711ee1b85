"""`adapter=` in every call of `ChatGLM`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adapter_folders import lora_folder
from chat_lessons import GREEDY, GREETING, HELLO, POEM, POEM_END, last_reply, text_of
from chatglm3.chat import ChatGLM
from chatglm3.errors import AdapterError, CheckpointError
from chatglm3.model.adapters import load_adapter
from tiny_model import tokens_computed

LABELS = ["很好", "不好"]


@pytest.fixture(scope="module")
def folder(taught: ChatGLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora_folder(tmp_path_factory.mktemp("adapters") / "other", taught.model.config, size=0.5)


@pytest.fixture
def both(glm: ChatGLM, folder: Path) -> ChatGLM:
    glm.add_adapter("other", folder)
    return glm


@contextmanager
def only_adapted(glm: ChatGLM, folder: Path) -> Iterator[ChatGLM]:
    """The same model with the adapter loaded into it."""
    adapter = load_adapter(glm.model, folder)
    yield ChatGLM(glm.model, glm.tokenizer)
    adapter.unload()


def test_every_call_takes_the_adapter_that_it_names(both: ChatGLM, folder: Path) -> None:
    hello = HELLO.content
    with only_adapted(both, folder) as lone:
        chat, complete = lone.chat(hello, **GREEDY).text, lone.complete(POEM, **GREEDY).text
        label, scores = lone.classify(hello, LABELS), lone.score(POEM, LABELS)
    assert chat != GREETING.content and complete != POEM_END
    assert both.chat(hello, adapter="other", **GREEDY).text == chat
    assert [reply.text for reply in both.chat_batch([hello, hello], adapter="other", **GREEDY)] == [chat, chat]
    chunks = list(both.stream_chat(hello, adapter="other", **GREEDY))
    assert text_of(chunks) == last_reply(chunks).text == chat
    assert both.complete(POEM, adapter="other", **GREEDY).text == complete
    assert [found.text for found in both.complete([POEM, POEM], adapter="other", **GREEDY)] == [complete] * 2
    assert both.classify(hello, LABELS, adapter="other").probabilities == pytest.approx(label.probabilities, abs=1e-5)
    assert both.classify(hello, LABELS).probabilities != pytest.approx(label.probabilities, abs=1e-3)
    assert both.score(POEM, LABELS, adapter="other") == pytest.approx(scores, abs=1e-4)
    assert both.chat(hello, **GREEDY).text == both.chat(hello, adapter=None, **GREEDY).text == GREETING.content
    assert both.complete(POEM, **GREEDY).text == POEM_END


def test_coroutines_with_different_adapters_run_together(both: ChatGLM) -> None:
    hello = HELLO.content
    other = both.chat(hello, adapter="other", **GREEDY).text

    async def stream() -> str:
        return "".join([chunk.text async for chunk in both.astream_chat(hello, adapter="other", **GREEDY)])

    async def together() -> list[str]:
        calls = [both.achat(hello, adapter=("other", None)[i % 2], **GREEDY) for i in range(6)]
        streamed, *replies = await asyncio.gather(stream(), *calls)
        return [streamed, *(reply.text for reply in replies)]

    assert asyncio.run(together()) == [other, *[other, GREETING.content] * 3]


def test_a_prefix_serves_the_calls_of_its_adapter(both: ChatGLM, tmp_path: Path) -> None:
    history = [HELLO, GREETING]
    wanted = both.chat(HELLO.content, history, adapter="other", **GREEDY)
    with both.prefix(history, adapter="other") as prefix:
        prefix.save(tmp_path / "saved.prefix")
        both.engine.forget()
        reply = both.chat(HELLO.content, prefix, adapter="other", **GREEDY)
        assert (reply.text, reply.usage.cached_tokens) == (wanted.text, len(prefix.token_ids))
        with tokens_computed(both.model) as counts:
            assert both.chat(HELLO.content, prefix, **GREEDY).usage.cached_tokens == 0
        assert sum(counts) > len(prefix.token_ids)
    both.engine.forget()
    with both.load_prefix(tmp_path / "saved.prefix", adapter="other") as loaded:
        assert both.chat(HELLO.content, loaded, adapter="other", **GREEDY).text == wanted.text
    with pytest.raises(CheckpointError, match="other weights"):
        both.load_prefix(tmp_path / "saved.prefix")


def test_adapters_come_and_go(both: ChatGLM, folder: Path) -> None:
    assert both.adapters == ("other",)
    with pytest.raises(AdapterError, match="already"):
        both.add_adapter("other", folder)
    both.add_adapter("same", folder)
    texts = [both.chat(HELLO.content, adapter=name, **GREEDY).text for name in both.adapters]
    assert texts[0] == texts[1]
    both.remove_adapter("other")
    assert both.adapters == ("same",)
    for call in (
        lambda: both.chat(HELLO.content, adapter="other"),
        lambda: next(both.stream_chat(HELLO.content, adapter="other")),
        lambda: both.classify(HELLO.content, LABELS, adapter="other"),
        lambda: both.prefix("text", adapter="other"),
        lambda: both.remove_adapter("other"),
    ):
        with pytest.raises(AdapterError, match=r"^there is no adapter 'other'; there are same; add_adapter"):
            call()
    found = both.chat_batch([HELLO.content], adapter="other", return_errors=True)
    assert isinstance(found[0], AdapterError)
