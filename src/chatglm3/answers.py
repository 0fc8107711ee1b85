"""An answer as it grows: its request to the engine, told every token that is chosen, and what it becomes at the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from chatglm3.engine.engine import Engine
from chatglm3.engine.params import SamplingParams
from chatglm3.engine.sampling import TokenLogprobs
from chatglm3.engine.sequence import Generation, Request
from chatglm3.errors import ChatGLMError, attempt
from chatglm3.grammar.compiler import Grammar, fitted
from chatglm3.messages import History
from chatglm3.prompt import chat_prompt, completion_prompt
from chatglm3.reply import FinishReason, Reply, ReplyParser, Usage
from chatglm3.stopping import StopStrings
from chatglm3.tokenizer import StreamDecoder, Tokenizer

T = TypeVar("T")


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


@dataclass(frozen=True, slots=True)
class Wishes:
    """How tokens are chosen, what the answer must be, and the name of the adapter that gives it."""

    params: SamplingParams
    grammar: Grammar | None = None
    adapter: str | None = None

    @classmethod
    def of(cls, params: SamplingParams, grammar: Grammar | None, adapter: str | None = None) -> Wishes:
        """With the parameters fitted to the grammar; `SamplingError` if they would break it."""
        return cls(params if grammar is None else fitted(params, grammar), grammar, adapter)


class Answer(ABC, Generic[T]):
    """One answer, which becomes a `T`."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], wishes: Wishes) -> None:
        self._tokenizer, self._stops = tokenizer, StopStrings(wishes.params.stop)
        constraint = None if wishes.grammar is None else wishes.grammar.start()
        stop_ids = frozenset(tokenizer.stop_ids)
        self.request = Request(tuple(prompt), wishes.params, stop_ids, self.push, constraint, wishes.adapter)

    @abstractmethod
    def push(self, token_id: int) -> bool:
        """Take a token; true if it completes a stop string."""

    @abstractmethod
    def finish(self, generation: Generation) -> T:
        """The whole answer, once it has ended."""

    def _reason(self, generation: Generation) -> FinishReason:
        """A stop string may also show up in text that was held back until the end."""
        return "stop" if self._stops.found else generation.finish_reason


class ChatAnswer(Answer[Reply]):
    """What an assistant says after `messages`."""

    def __init__(self, tokenizer: Tokenizer, messages: History, wishes: Wishes) -> None:
        super().__init__(tokenizer, chat_prompt(tokenizer, messages), wishes)
        self._messages, self._parser = messages, ReplyParser(tokenizer)
        self._shown: list[str] = []
        self._sent = 0

    def push(self, token_id: int) -> bool:
        """Take a token; true if it completes a stop string."""
        self._shown.append(self._stops.push(self._parser.push(token_id)))
        return self._stops.found

    def chunk(self, event: int | Generation) -> Chunk | None:
        """What a stream shows after an event of the engine; None if there is nothing new."""
        reply = self.finish(event) if isinstance(event, Generation) else None
        end = len(self._shown)  # another thread may be adding to it
        text = "".join(self._shown[self._sent : end])
        self._sent = end
        return Chunk(text, reply) if text or reply else None

    def finish(self, generation: Generation) -> Reply:
        """The whole answer, once it has ended."""
        self._shown.append(self._stops.push(self._parser.finish()) + self._stops.finish())
        parsed = self._parser.parsed
        if self._stops.found:
            parsed = parsed.ending_at("".join(self._shown))
        reason = self._reason(generation)
        if reason == "stop" and parsed.messages[-1].metadata:
            reason = "tool_call"
        history = (*self._messages, *parsed.messages)
        usage = _usage(generation)
        return Reply(parsed.text, parsed.messages, parsed.tool_calls, history, reason, usage, generation.logprobs)


class TextAnswer(Answer[Completion]):
    """The continuation of plain text."""

    def __init__(self, tokenizer: Tokenizer, text: str, wishes: Wishes) -> None:
        prompt = completion_prompt(tokenizer, text)
        super().__init__(tokenizer, prompt, wishes)
        self._decoder, self._text = StreamDecoder(tokenizer), ""
        for token_id in prompt:  # what follows a prompt keeps its leading space
            self._decoder.push(token_id)

    def push(self, token_id: int) -> bool:
        """Take a token; true if it completes a stop string."""
        if token_id < self._tokenizer.n_pieces:
            self._text += self._stops.push(self._decoder.push(token_id))
        return self._stops.found

    def finish(self, generation: Generation) -> Completion:
        """The whole text, once it has ended."""
        self._text += self._stops.push(self._decoder.flush()) + self._stops.finish()
        return Completion(self._text, self._reason(generation), _usage(generation), generation.logprobs)


def finish_all(
    engine: Engine, makers: Sequence[Callable[[], Answer[T]]], *, keep_errors: bool
) -> list[T | ChatGLMError]:
    """Make the answers, run all of them to their end, and give what they become, in order.

    With `keep_errors` one that fails has its error in its place, and the others go on.
    """
    asked = [attempt(make, keep_errors=keep_errors) for make in makers]
    answers = [answer for answer in asked if not isinstance(answer, ChatGLMError)]
    requests = [answer.request for answer in answers]
    generations = engine.outcomes(requests) if keep_errors else engine.generate(requests)
    finished = (g if isinstance(g, ChatGLMError) else a.finish(g) for a, g in zip(answers, generations, strict=True))
    return [one if isinstance(one, ChatGLMError) else next(finished) for one in asked]


def _usage(generation: Generation) -> Usage:
    produced = len(generation.token_ids) + (generation.stop_id is not None)
    return Usage(generation.prompt_tokens, produced, generation.cached_tokens)
