from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from chat_lessons import GREEDY, GREETING, HELLO, POEM, POEM_END, new_glm
from chatglm3.chat import ChatGLM
from chatglm3.errors import ChatGLMError, CheckpointError, ContextLengthError
from chatglm3.tokenizer import Tokenizer
from tiny_model import tokens_computed

HISTORY = [HELLO, GREETING]


def test_a_prefix_stands_for_its_history(glm: ChatGLM) -> None:
    expected = glm.chat(HELLO.content, HISTORY, **GREEDY)
    glm.engine.forget()
    with glm.prefix(HISTORY) as prefix:
        assert prefix.history == tuple(HISTORY)
        assert tuple(prefix) == tuple(HISTORY)
        for i in range(8):  # as many as push everything else out
            glm.chat(f"{i}", temperature=0, max_new_tokens=2)
        reply = glm.chat(HELLO.content, prefix, **GREEDY)
        assert reply.usage.cached_tokens == len(prefix.token_ids)
        assert (reply.text, reply.history) == (expected.text, expected.history)
        assert prefix.nbytes > 0


def test_plain_text_can_be_kept_too(glm: ChatGLM) -> None:
    with glm.prefix(POEM) as prefix:
        completion = glm.complete(POEM, **GREEDY)
        assert completion.text == POEM_END
        assert completion.usage.cached_tokens == len(prefix.token_ids) - 1  # the last token gives the first scores


def test_a_closed_prefix_is_freed(glm: ChatGLM) -> None:
    prefix = glm.prefix(HISTORY)
    prefix.close()
    prefix.close()
    glm.engine.forget()
    assert glm.engine.cache_bytes == 0
    for use in (lambda: prefix.nbytes, lambda: prefix.token_ids, lambda: prefix.save("nowhere")):
        with pytest.raises(ChatGLMError, match="this prefix is closed"):
            use()
    assert glm.chat(HELLO.content, prefix, **GREEDY).text  # it is still that history


def test_a_saved_prefix_is_read_for_the_same_weights_only(
    glm: ChatGLM, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "shared.prefix"
    with glm.prefix(HISTORY) as prefix:
        prefix.save(path)
        expected = glm.chat(HELLO.content, prefix, **GREEDY)
    other = ChatGLM(glm.model, tiny_tokenizer)
    with other.load_prefix(path) as loaded, tokens_computed(other.model) as counts:
        assert tuple(loaded) == tuple(HISTORY)
        reply = other.chat(HELLO.content, loaded, **GREEDY)
    assert reply.text == expected.text
    assert counts[0] == reply.usage.prompt_tokens - len(prefix_ids(path))
    with pytest.raises(CheckpointError, match=r"shared\.prefix was computed with other weights, or in another dtype"):
        new_glm(tiny_tokenizer).load_prefix(path)


def prefix_ids(path: Path) -> list[int]:
    with safe_open(path, "pt") as reader:
        ids: list[int] = json.loads(reader.metadata()["token_ids"])
        return ids


def test_a_prefix_must_fit_the_context(tiny_tokenizer: Tokenizer) -> None:
    glm = new_glm(tiny_tokenizer, max_context=40)
    with tokens_computed(glm.model) as counts, pytest.raises(ContextLengthError, match="more than the context of 40"):
        glm.prefix("今天天气很好。" * 30)
    assert counts == []


def test_files_that_are_no_prefix(glm: ChatGLM, tmp_path: Path) -> None:
    missing, garbage, other, cut, flipped = (tmp_path / n for n in ("missing", "garbage", "other", "cut", "flipped"))
    garbage.write_bytes(b"garbage")
    save_file({"a": torch.zeros(2)}, other)
    with glm.prefix(HISTORY) as prefix:
        prefix.save(cut)
    whole = cut.read_bytes()
    cut.write_bytes(whole[:-9])
    flipped.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    for path, message in (
        (missing, "cannot read the prefix"),
        (garbage, "cannot read the prefix"),
        (cut, "cannot read the prefix"),
        (other, "is not a saved prefix"),
        (flipped, "is damaged"),
    ):
        with pytest.raises(CheckpointError, match=message):
            glm.load_prefix(path)
    with glm.prefix(HISTORY) as prefix, pytest.raises(CheckpointError, match="cannot save the prefix"):
        prefix.save(tmp_path / "no" / "folder")
    newer = tmp_path / "newer"
    save_file({"a": torch.zeros(2)}, newer, {"format": "chatglm3.prefix", "version": "9"})
    with pytest.raises(CheckpointError, match="has version 9"):
        glm.load_prefix(newer)
    assert load_file(newer)


def test_another_process_reads_it(tmp_path: Path) -> None:
    ask = """
import sys, chatglm3
with chatglm3.load("nano") as glm:
    with {prefix} as prefix:
        {then}
        reply = glm.chat("太吵了。", prefix, temperature=0, max_new_tokens=4)
        print(reply.text, reply.usage.cached_tokens)
"""
    save = ask.format(
        prefix='glm.prefix([chatglm3.Message.system("判断评论的情感。")])', then="prefix.save(sys.argv[1])"
    )
    load = ask.format(prefix="glm.load_prefix(sys.argv[1])", then="")
    said = [
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "p")], capture_output=True, text=True, check=True)
        for code in (save, load)
    ]
    assert said[0].stdout == said[1].stdout
    assert int(said[0].stdout.split()[-1]) > 5


def test_coroutines_chat(glm: ChatGLM) -> None:
    async def talk() -> tuple[str, str]:
        reply, chunks = await asyncio.gather(
            glm.achat(HELLO.content, **GREEDY),
            stream(),
        )
        return reply.text, chunks

    async def stream() -> str:
        text = ""
        async for chunk in glm.astream_chat(HELLO.content, HISTORY, **GREEDY):
            text += chunk.text
        assert chunk.reply is not None
        assert chunk.reply.text == text
        return text

    assert asyncio.run(talk()) == (
        glm.chat(HELLO.content, **GREEDY).text,
        glm.chat(HELLO.content, HISTORY, **GREEDY).text,
    )
