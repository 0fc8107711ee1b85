"""`run`: Chat models answer every prompt, Base models continue it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from chatglm3.answers import Answer, ChatAnswer, Completion, TextAnswer, Wishes, finish_all
from chatglm3.bulk.jobs import RunJob
from chatglm3.bulk.task import Prompt, Result, Task
from chatglm3.engine.sampling import require_known
from chatglm3.errors import ChatGLMError, JobError
from chatglm3.grammar.compiler import GrammarCompiler
from chatglm3.messages import History, Message
from chatglm3.prompt import chat_prompt, completion_prompt
from chatglm3.reply import Reply
from chatglm3.tables import Row

if TYPE_CHECKING:
    from chatglm3.chat import ChatGLM


class Answers(Task):
    """The work of a `RunJob`."""

    window = 64
    advice = "ask for fewer tokens with --max-new-tokens, or shorten the prompt, the system message or the history"

    def __init__(self, glm: ChatGLM, job: RunJob) -> None:
        super().__init__(glm, job)
        chat = glm.capabilities.chat
        if job.system is not None and not chat:
            raise JobError("a Base model knows no system message; write it into the prompt")
        if not glm.capabilities.tools and any(message.tools is not None for message in job.opening):
            warnings.warn("this model was not trained to call tools; only the 8K chat model was", stacklevel=2)
        require_known(job.sampling.banned, glm.engine.vocab_size)
        self._opening = job.opening
        grammar = GrammarCompiler(glm.tokenizer).compile(choices=job.choices, json_schema=job.json_schema, chat=chat)
        self._wishes = Wishes.of(job.sampling, grammar)
        self.room = self._wishes.params.max_new_tokens or 1
        self.kinds = {
            "answer": "text",
            "finish_reason": "text",
            "prompt_tokens": "integer",
            "completion_tokens": "integer",
            "error": "text",
        }

    def prompt_ids(self, text: str) -> list[int]:
        """A conversation for Chat models, plain text for Base models."""
        if self._glm.capabilities.chat:
            return chat_prompt(self._glm.tokenizer, self._conversation(text))
        return completion_prompt(self._glm.tokenizer, text)

    def _conversation(self, text: str) -> History:
        return (*self._opening, Message("user", text))

    def _results(self, prompts: Sequence[Prompt]) -> list[Result]:
        asked = [partial(self._answer, prompt) for prompt in prompts]
        return [self._result(answer) for answer in finish_all(self._glm.engine, asked, keep_errors=True)]

    def _answer(self, prompt: Prompt) -> Answer[Any]:
        wishes = replace(self._wishes, params=replace(self._wishes.params, seed=prompt.seed))
        if self._glm.capabilities.chat:
            return ChatAnswer(self._glm.tokenizer, self._conversation(prompt.text), wishes)
        return TextAnswer(self._glm.tokenizer, prompt.text, wishes)

    def _result(self, answer: Reply | Completion | ChatGLMError) -> Result:
        if isinstance(answer, ChatGLMError):
            return self.failed(answer)
        usage = answer.usage
        values = (answer.text, answer.finish_reason, usage.prompt_tokens, usage.completion_tokens, None)
        row: Row = dict(zip(self.kinds, values, strict=True))
        return Result(row, usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)
