"""`ChatGLM`: text and messages on the outside, the engine's token ids on the inside.

Histories are frozen: a call never changes the one it was given and returns a new one in its `Reply`.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, overload

from typing_extensions import Unpack

from chatglm3.capabilities import Capabilities, capabilities_of
from chatglm3.engine.engine import Engine
from chatglm3.engine.params import SamplingOptions, SamplingParams
from chatglm3.engine.sampling import TokenLogprobs
from chatglm3.engine.sequence import Generation, Request
from chatglm3.errors import MessageError
from chatglm3.messages import History, Message, Role, as_history, check_history, with_tools
from chatglm3.model.transformer import ChatGLMModel
from chatglm3.prompt import chat_prompt, completion_prompt
from chatglm3.reply import FinishReason, Reply, ReplyParser, Usage
from chatglm3.stopping import StopStrings
from chatglm3.tokenizer import StreamDecoder, Tokenizer

HistoryLike = Iterable[Message | Mapping[str, Any]] | None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer as it streams: the new text, and in the last chunk the whole `Reply`."""

    text: str
    reply: Reply | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A continued text: only what is new."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    logprobs: tuple[TokenLogprobs, ...] | None = None


class ChatGLM:
    """A loaded model. Use it in a `with` block, or call `close`, to free its memory."""

    def __init__(
        self, model: ChatGLMModel, tokenizer: Tokenizer, *, name: str = "", max_context: int | None = None
    ) -> None:
        """`name` tells what it was trained for (see `capabilities`); `max_context` bounds prompt and answer."""
        self.model, self.tokenizer = model, tokenizer
        self.engine = Engine(model, tokenizer.vocab_size, max_context=max_context)
        self.capabilities: Capabilities = capabilities_of(name, model.config)

    def chat(
        self,
        query: str,
        history: HistoryLike = (),
        *,
        role: Role = "user",
        tools: object = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Reply:
        """Answer `query`, said in `role`, after `history` (messages or official dicts).

        `tools` (a list or dict, as JSON) are offered in the system message; `sampling` are fields of `SamplingParams`.
        Raises MessageError, SamplingError, ContextLengthError or NumericsError.
        """
        messages = self._conversation(query, history, role, tools)
        self._warn_untrained(messages)
        return self._answer([messages], SamplingParams.of(sampling))[0]

    def stream_chat(
        self,
        query: str,
        history: HistoryLike = (),
        *,
        role: Role = "user",
        tools: object = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Generator[Chunk, None, None]:
        """Like `chat`, as it is written: chunks of new text, the last one with the `Reply`.

        Closing the iterator stops the work.
        """
        messages = self._conversation(query, history, role, tools)
        self._warn_untrained(messages)
        params = SamplingParams.of(sampling)
        answer = _ChatAnswer(self.tokenizer, params.stop)
        prompt = chat_prompt(self.tokenizer, messages)
        stream = self.engine.stream(self._request(prompt, params, answer))
        return _chunks(stream, answer, messages)

    def chat_batch(
        self,
        queries: Sequence[str],
        history: HistoryLike = (),
        *,
        role: Role = "user",
        tools: object = None,
        **sampling: Unpack[SamplingOptions],
    ) -> list[Reply]:
        """Answer every query after the same history, which is computed once; replies in the order of the queries."""
        shared, params = as_history(history), SamplingParams.of(sampling)
        conversations = [self._conversation(q, shared, role, tools) for q in _texts("queries", queries)]
        if conversations:
            self._warn_untrained(conversations[0])
        return self._answer(conversations, params)

    @overload
    def complete(self, prompt: str, **sampling: Unpack[SamplingOptions]) -> Completion: ...
    @overload
    def complete(self, prompt: list[str], **sampling: Unpack[SamplingOptions]) -> list[Completion]: ...
    def complete(self, prompt: str | list[str], **sampling: Unpack[SamplingOptions]) -> Completion | list[Completion]:
        """Continue plain text, as Base models are made for; a list of prompts gives a list of completions."""
        prompts = [prompt] if isinstance(prompt, str) else _texts("prompt", prompt)
        params = SamplingParams.of(sampling)
        ids = [completion_prompt(self.tokenizer, p) for p in prompts]
        answers = [_TextAnswer(self.tokenizer, p, params.stop) for p in ids]
        requests = [self._request(p, params, a) for p, a in zip(ids, answers, strict=True)]
        generations = self.engine.generate(requests)
        completions = [answer.completion(g) for answer, g in zip(answers, generations, strict=True)]
        return completions[0] if isinstance(prompt, str) else completions

    def score(self, prompt: str, continuations: Sequence[str]) -> list[float]:
        """Log-probability (natural logarithm) of each continuation of plain text; the prompt is computed once."""
        ids = completion_prompt(self.tokenizer, _text("prompt", prompt))
        tails = [self.tokenizer.encode_continuation(c) for c in _texts("continuations", continuations)]
        return [sum(logprobs) for logprobs in self.engine.score(ids, tails)]

    def close(self) -> None:
        """Free the weights and the caches; a later call is an error."""
        self.engine.close()
        if hasattr(self, "model"):
            del self.model

    def __enter__(self) -> ChatGLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _conversation(self, query: str, history: HistoryLike, role: Role, tools: object) -> History:
        if not _text("query", query) and role != "observation":
            raise MessageError("the query is empty; say something")
        messages = (*with_tools(as_history(history), tools), Message(role, query))
        check_history(messages)
        return messages

    def _warn_untrained(self, messages: History) -> None:
        if not self.capabilities.chat:
            warnings.warn("this is a Base model, not trained to chat; use complete()", stacklevel=3)
        elif not self.capabilities.tools and any(m.tools is not None for m in messages):
            warnings.warn("this model was not trained to call tools; only the 8K chat model was", stacklevel=3)

    def _answer(self, conversations: Sequence[History], params: SamplingParams) -> list[Reply]:
        answers = [_ChatAnswer(self.tokenizer, params.stop) for _ in conversations]
        prompts = [chat_prompt(self.tokenizer, messages) for messages in conversations]
        requests = [self._request(p, params, a) for p, a in zip(prompts, answers, strict=True)]
        generations = self.engine.generate(requests)
        return [a.reply(m, g) for a, m, g in zip(answers, conversations, generations, strict=True)]

    def _request(self, prompt: Sequence[int], params: SamplingParams, answer: _ChatAnswer | _TextAnswer) -> Request:
        return Request(tuple(prompt), params, frozenset(self.tokenizer.stop_ids), answer.push)


class _ChatAnswer:
    """An answer as it grows: told every token, it says when a stop string ends it, and makes the `Reply`."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._parser, self._stops = ReplyParser(tokenizer), StopStrings(stop)
        self._shown: list[str] = []
        self._sent = 0

    def push(self, token_id: int) -> bool:
        """Take a token; true if it completes a stop string."""
        self._shown.append(self._stops.push(self._parser.push(token_id)))
        return self._stops.found

    def new_text(self) -> str:
        """What has not been read yet."""
        text = "".join(self._shown[self._sent :])
        self._sent = len(self._shown)
        return text

    def reply(self, conversation: History, generation: Generation) -> Reply:
        self._shown.append(self._stops.push(self._parser.finish()) + self._stops.finish())
        parsed = self._parser.parsed
        if self._stops.found:
            parsed = parsed.ending_at("".join(self._shown))
        reason = _reason(generation, self._stops)
        if reason == "stop" and parsed.messages[-1].metadata:
            reason = "tool_call"
        history = (*conversation, *parsed.messages)
        usage = _usage(generation)
        return Reply(parsed.text, parsed.messages, parsed.tool_calls, history, reason, usage, generation.logprobs)


class _TextAnswer:
    """A completion as it grows."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self._tokenizer, self._decoder, self._stops = tokenizer, StreamDecoder(tokenizer), StopStrings(stop)
        self._text = ""
        for token_id in prompt:  # what follows a prompt keeps its leading space
            self._decoder.push(token_id)

    def push(self, token_id: int) -> bool:
        """Take a token; true if it completes a stop string."""
        if token_id < self._tokenizer.n_pieces:
            self._text += self._stops.push(self._decoder.push(token_id))
        return self._stops.found

    def completion(self, generation: Generation) -> Completion:
        self._text += self._stops.push(self._decoder.flush()) + self._stops.finish()
        return Completion(self._text, _reason(generation, self._stops), _usage(generation), generation.logprobs)


def _chunks(
    stream: Generator[int | Generation, None, None], answer: _ChatAnswer, messages: History
) -> Generator[Chunk, None, None]:
    with closing(stream):
        for event in stream:
            if isinstance(event, Generation):
                reply = answer.reply(messages, event)
                yield Chunk(answer.new_text(), reply)
            elif text := answer.new_text():
                yield Chunk(text)


def _reason(generation: Generation, stops: StopStrings) -> FinishReason:
    """A stop string may also show up in text that was held back until the end."""
    return "stop" if stops.found else generation.finish_reason


def _usage(generation: Generation) -> Usage:
    produced = len(generation.token_ids) + (generation.stop_id is not None)
    return Usage(generation.prompt_tokens, produced, generation.cached_tokens)


def _text(what: str, value: object) -> str:
    if not isinstance(value, str):
        raise MessageError(f"{what} must be a string, not {type(value).__name__}")
    return value


def _texts(what: str, values: object) -> list[str]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise MessageError(f"{what} must be a list of strings, not {type(values).__name__}")
    return [_text(f"each of {what}", value) for value in values]
