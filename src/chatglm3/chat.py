"""`ChatGLM`: text and messages on the outside, the engine's token ids on the inside.

Histories are frozen: a call never changes the one it was given and returns a new one in its `Reply`.
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncGenerator, Generator, Iterable, Mapping, Sequence
from contextlib import aclosing, closing
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from typing_extensions import Unpack

from chatglm3.answers import ChatAnswer, Chunk, Completion, TextAnswer, Wishes, finish_all
from chatglm3.capabilities import Capabilities, capabilities_of
from chatglm3.classify import BASE_TEMPLATE, CHAT_TEMPLATE, Classification, Classifier, Task
from chatglm3.engine.engine import Engine
from chatglm3.engine.params import SamplingOptions, SamplingParams
from chatglm3.engine.sequence import Generation
from chatglm3.errors import ChatGLMError, MessageError
from chatglm3.grammar.compiler import GrammarCompiler
from chatglm3.held import Prefix
from chatglm3.messages import History, Message, Role, as_history, check_history, with_tools
from chatglm3.model.transformer import ChatGLMModel
from chatglm3.prompt import chat_prompt, completion_prompt
from chatglm3.reply import Reply
from chatglm3.tokenizer import Tokenizer

T = TypeVar("T")
HistoryLike = Iterable[Message | Mapping[str, Any]] | None


class AnswerOptions(SamplingOptions, total=False):
    """The fields of `SamplingParams`, and what an answer must be: one of `choices`, or JSON of a `json_schema`.

    `adapter` is the name of one that was added (`add_adapter`); None is the model as it was loaded.
    """

    choices: Iterable[str] | None
    json_schema: object
    adapter: str | None


class ChatGLM:
    """A loaded model, which several threads may use. A `with` block, or `close`, frees its memory."""

    def __init__(
        self,
        model: ChatGLMModel,
        tokenizer: Tokenizer,
        *,
        name: str = "",
        max_context: int | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        """`name` tells what it was trained for (see `capabilities`); `max_context` bounds prompt and answer.

        `cache_bytes` bounds the keys and values of all requests together; who does not fit waits.
        """
        self.model, self.tokenizer = model, tokenizer
        self.engine = Engine(model, tokenizer.vocab_size, max_context=max_context, cache_bytes=cache_bytes)
        self.capabilities: Capabilities = capabilities_of(name, model.config)
        self._grammars = GrammarCompiler(tokenizer)

    def chat(
        self,
        query: str,
        history: HistoryLike = (),
        *,
        role: Role = "user",
        tools: object = None,
        **options: Unpack[AnswerOptions],
    ) -> Reply:
        """Answer `query`, said in `role`, after `history` (messages or official dicts).

        `tools` (a list or dict, as JSON) are offered in the system message; `options` are the fields of
        `SamplingParams`, `choices`, `json_schema` and `adapter`. Raises MessageError, SamplingError,
        ContextLengthError, AdapterError, DeviceError or NumericsError.
        """
        answer = self._ask(query, history, role, tools, options)
        return answer.finish(self.engine.generate([answer.request])[0])

    def stream_chat(
        self,
        query: str,
        history: HistoryLike = (),
        *,
        role: Role = "user",
        tools: object = None,
        **options: Unpack[AnswerOptions],
    ) -> Generator[Chunk, None, None]:
        """Like `chat`, as it is written: chunks of new text, the last one with the `Reply`.

        Closing the iterator stops the work.
        """
        answer = self._ask(query, history, role, tools, options)
        return _chunks(self.engine.stream(answer.request), answer)

    async def achat(
        self,
        query: str,
        history: HistoryLike = (),
        *,
        role: Role = "user",
        tools: object = None,
        **options: Unpack[AnswerOptions],
    ) -> Reply:
        """`chat` for coroutines: many of them share the steps of the network. Cancelling the task ends the request."""
        answer = self._ask(query, history, role, tools, options)
        return answer.finish(await self.engine.agenerate(answer.request))

    async def astream_chat(
        self,
        query: str,
        history: HistoryLike = (),
        *,
        role: Role = "user",
        tools: object = None,
        **options: Unpack[AnswerOptions],
    ) -> AsyncGenerator[Chunk, None]:
        """`stream_chat` with `async for`."""
        answer = self._ask(query, history, role, tools, options)
        async with aclosing(self.engine.astream(answer.request)) as events:
            async for event in events:
                if chunk := answer.chunk(event):
                    yield chunk

    @overload
    def chat_batch(
        self,
        queries: Sequence[str],
        history: HistoryLike = (),
        *,
        role: Role = "user",
        tools: object = None,
        return_errors: Literal[False] = False,
        **options: Unpack[AnswerOptions],
    ) -> list[Reply]: ...
    @overload
    def chat_batch(
        self,
        queries: Sequence[str],
        history: HistoryLike = (),
        *,
        role: Role = "user",
        tools: object = None,
        return_errors: Literal[True],
        **options: Unpack[AnswerOptions],
    ) -> list[Reply | ChatGLMError]: ...
    def chat_batch(
        self,
        queries: Sequence[str],
        history: HistoryLike = (),
        *,
        role: Role = "user",
        tools: object = None,
        return_errors: bool = False,
        **options: Unpack[AnswerOptions],
    ) -> list[Reply] | list[Reply | ChatGLMError]:
        """Answer every query after the same history, which is computed once; replies in the order of the queries.

        With `return_errors` a query that fails has its `ChatGLMError` in its place, and the others are answered.
        """
        shared, wishes = as_history(history), self._wishes(options)

        def ask(query: str) -> ChatAnswer:
            return ChatAnswer(self.tokenizer, self._conversation(query, shared, role, tools), wishes)

        self._warn_untrained(with_tools(shared, tools), stacklevel=3)
        asked = [partial(ask, query) for query in _texts("queries", queries)]
        return finish_all(self.engine, asked, keep_errors=return_errors)

    @overload
    def complete(self, prompt: str, **options: Unpack[AnswerOptions]) -> Completion: ...
    @overload
    def complete(
        self, prompt: list[str], *, return_errors: Literal[False] = False, **options: Unpack[AnswerOptions]
    ) -> list[Completion]: ...
    @overload
    def complete(
        self, prompt: list[str], *, return_errors: Literal[True], **options: Unpack[AnswerOptions]
    ) -> list[Completion | ChatGLMError]: ...
    def complete(
        self, prompt: str | list[str], *, return_errors: bool = False, **options: Unpack[AnswerOptions]
    ) -> Completion | list[Completion] | list[Completion | ChatGLMError]:
        """Continue plain text, as Base models are made for; a list of prompts gives a list of completions.

        With `return_errors` a prompt that fails has its `ChatGLMError` in its place.
        """
        wishes = self._wishes(options, chat=False)
        prompts = [prompt] if isinstance(prompt, str) else _texts("prompt", prompt)
        asked = [partial(TextAnswer, self.tokenizer, text, wishes) for text in prompts]
        found = finish_all(self.engine, asked, keep_errors=return_errors)
        return found[0] if isinstance(prompt, str) else found  # type: ignore[return-value]

    def score(self, prompt: str, continuations: Sequence[str], *, adapter: str | None = None) -> list[float]:
        """Log-probability (natural logarithm) of each continuation of plain text; what they share is computed once."""
        ids = completion_prompt(self.tokenizer, _text("prompt", prompt))
        tails = [self.tokenizer.encode_continuation(c) for c in _texts("continuations", continuations)]
        return [sum(logprobs) for logprobs in self.engine.score(ids, tails, adapter)]

    @overload
    def classify(
        self,
        text: str,
        labels: Sequence[str],
        *,
        history: HistoryLike = (),
        system: str | None = None,
        examples: Iterable[tuple[str, str]] = (),
        prompt: str | None = None,
        calibrate: bool = False,
        adapter: str | None = None,
    ) -> Classification: ...
    @overload
    def classify(
        self,
        text: list[str],
        labels: Sequence[str],
        *,
        history: HistoryLike = (),
        system: str | None = None,
        examples: Iterable[tuple[str, str]] = (),
        prompt: str | None = None,
        calibrate: bool = False,
        adapter: str | None = None,
        return_errors: Literal[False] = False,
    ) -> list[Classification]: ...
    @overload
    def classify(
        self,
        text: list[str],
        labels: Sequence[str],
        *,
        history: HistoryLike = (),
        system: str | None = None,
        examples: Iterable[tuple[str, str]] = (),
        prompt: str | None = None,
        calibrate: bool = False,
        adapter: str | None = None,
        return_errors: Literal[True],
    ) -> list[Classification | ChatGLMError]: ...
    def classify(
        self,
        text: str | list[str],
        labels: Sequence[str],
        *,
        history: HistoryLike = (),
        system: str | None = None,
        examples: Iterable[tuple[str, str]] = (),
        prompt: str | None = None,
        calibrate: bool = False,
        adapter: str | None = None,
        return_errors: bool = False,
    ) -> Classification | list[Classification] | list[Classification | ChatGLMError]:
        """The most probable of `labels` for a text, or for each of a list, with the probability of every label.

        Nothing is generated, so the answer is always a label. A Chat model sees `system` or `history`, the `examples`
        (pairs of a text and its label) as turns, and the text as the query; a Base model sees plain text. `prompt` is
        the template of a text, with {text} where it goes. `calibrate` divides by the probabilities of texts that say
        nothing (Zhao et al., 2021). `adapter` names one that was added. With `return_errors` a text that fails has its
        error in its place. Raises MessageError, ContextLengthError, AdapterError, DeviceError or NumericsError.
        """
        template = prompt if prompt is not None else CHAT_TEMPLATE if self.capabilities.chat else BASE_TEMPLATE
        shown = tuple((_text("an example", t), _text("an example's label", label)) for t, label in examples)
        task = Task(
            tuple(_texts("labels", labels)), self.capabilities.chat, template, system, as_history(history), shown
        )
        texts = [text] if isinstance(text, str) else _texts("text", text)
        classifier = Classifier(self.engine, self.tokenizer, task, calibrate=calibrate, adapter=adapter)
        found = classifier.outcomes(texts) if return_errors else classifier(texts)
        return found[0] if isinstance(text, str) else found  # type: ignore[return-value]

    def prefix(self, history: HistoryLike | str, *, adapter: str | None = None) -> Prefix:
        """Compute a history (or plain text, for completions) once and keep it for every call that begins with it.

            with glm.prefix(history) as prefix:
                replies = [glm.chat(query, prefix) for query in queries]

        The keys and values stay until the prefix is closed, whoever else needs memory. `prefix.save(path)` writes them
        to a file, `load_prefix` reads it in another process. They are those of `adapter`, for calls that name it too.
        """
        if isinstance(history, str):
            ids = completion_prompt(self.tokenizer, history)
            return Prefix.compute(self.engine, ids, text=history, adapter=adapter)
        messages = as_history(history)
        ids = chat_prompt(self.tokenizer, messages, add_generation_prompt=False)
        return Prefix.compute(self.engine, ids, history=messages, adapter=adapter)

    def load_prefix(self, path: str | Path, *, adapter: str | None = None) -> Prefix:
        """A prefix that `prefix(...).save(path)` wrote; CheckpointError if it is of other weights or damaged."""
        return Prefix.load(self.engine, Path(path), adapter)

    def add_adapter(self, name: str, path: str | Path) -> None:
        """Read a LoRA or P-Tuning v2 folder for the calls that say `adapter=name`; the others do not notice it.

        Raises `AdapterError` if it does not fit, if `name` is taken, or if the model was loaded with one of its kind.
        """
        self.engine.adapters.add(name, path)

    def remove_adapter(self, name: str) -> None:
        """Forget what `add_adapter` read; calls that are on their way go on with it."""
        self.engine.adapters.remove(name)

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names that `adapter=` may have."""
        return self.engine.adapters.names

    def close(self) -> None:
        """Free the weights and the caches; a later call is an error."""
        self.engine.close()
        if hasattr(self, "model"):
            del self.model

    def __enter__(self) -> ChatGLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, query: str, history: HistoryLike, role: Role, tools: object, options: AnswerOptions) -> ChatAnswer:
        messages = self._conversation(query, history, role, tools)
        self._warn_untrained(messages, stacklevel=4)
        return ChatAnswer(self.tokenizer, messages, self._wishes(options))

    def _conversation(self, query: str, history: HistoryLike, role: Role, tools: object) -> History:
        if not _text("query", query) and role != "observation":
            raise MessageError("the query is empty; say something")
        messages = (*with_tools(as_history(history), tools), Message(role, query))
        check_history(messages)
        return messages

    def _warn_untrained(self, messages: History, *, stacklevel: int) -> None:
        if not self.capabilities.chat:
            warnings.warn("this is a Base model, not trained to chat; use complete()", stacklevel=stacklevel)
        elif not self.capabilities.tools and any(m.tools is not None for m in messages):
            warnings.warn("this model was not trained to call tools; only the 8K chat model was", stacklevel=stacklevel)

    def _wishes(self, options: AnswerOptions, *, chat: bool = True) -> Wishes:
        rest: dict[str, Any] = dict(options)
        choices, schema = rest.pop("choices", None), rest.pop("json_schema", None)
        adapter = rest.pop("adapter", None)
        params = SamplingParams.of(rest)
        return Wishes.of(params, self._grammars.compile(choices=choices, json_schema=schema, chat=chat), adapter)


def _chunks(stream: Generator[int | Generation, None, None], answer: ChatAnswer) -> Generator[Chunk, None, None]:
    with closing(stream):
        for event in stream:
            if chunk := answer.chunk(event):
                yield chunk


def _text(what: str, value: object) -> str:
    if not isinstance(value, str):
        raise MessageError(f"{what} must be a string, not {type(value).__name__}")
    return value


def _texts(what: str, values: object) -> list[str]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise MessageError(f"{what} must be a list of strings, not {type(values).__name__}")
    return [_text(f"each of {what}", value) for value in values]
