"""`run`: Chat models answer every prompt, Base models continue it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from chatglm3.bulk.jobs import RunJob
from chatglm3.bulk.task import Result, Task
from chatglm3.errors import ChatGLMError, JobError
from chatglm3.messages import Message
from chatglm3.prompt import chat_prompt, completion_prompt
from chatglm3.tables import Row

if TYPE_CHECKING:
    from chatglm3.answers import Completion
    from chatglm3.chat import AnswerOptions, ChatGLM
    from chatglm3.reply import Reply


class Answers(Task):
    """The work of a `RunJob`."""

    window = 64

    def __init__(self, glm: ChatGLM, job: RunJob) -> None:
        super().__init__(glm, job)
        if job.system is not None and not glm.capabilities.chat:
            raise JobError("a Base model knows no system message; write it into the prompt")
        self._job, self.room = job, job.sampling.max_new_tokens or 1
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
            return chat_prompt(self._glm.tokenizer, (*self._job.opening, Message("user", text)))
        return completion_prompt(self._glm.tokenizer, text)

    def _results(self, texts: Sequence[str], seed: int) -> list[Result]:
        options = self._options(seed)
        if self._glm.capabilities.chat:
            replies = self._glm.chat_batch(texts, self._job.opening, return_errors=True, **options)
            return [self._result(reply) for reply in replies]
        completions = self._glm.complete(list(texts), return_errors=True, **options)
        return [self._result(completion) for completion in completions]

    def _options(self, seed: int) -> AnswerOptions:
        job = self._job
        form = {"choices": job.choices, "json_schema": job.json_schema}
        return cast("AnswerOptions", dataclasses.asdict(job.sampling) | form | {"seed": seed})

    def _result(self, answer: Reply | Completion | ChatGLMError) -> Result:
        if isinstance(answer, ChatGLMError):
            return self.failed(str(answer))
        usage = answer.usage
        values = (answer.text, answer.finish_reason, usage.prompt_tokens, usage.completion_tokens, None)
        row: Row = dict(zip(self.kinds, values, strict=True))
        return Result(row, usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)
