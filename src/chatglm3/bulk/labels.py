"""`classify`: the most probable label of every prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from chatglm3 import classify
from chatglm3.bulk.jobs import ClassifyJob
from chatglm3.bulk.task import Prompt, Result, Task
from chatglm3.errors import ChatGLMError
from chatglm3.tables import Kind, Row

if TYPE_CHECKING:
    from chatglm3.chat import ChatGLM

_NUMBER: Kind = "number"


class Labels(Task):
    """The work of a `ClassifyJob`."""

    window = 256
    advice = "shorten the prompt, the system message, the history, the examples or the labels"

    def __init__(self, glm: ChatGLM, job: ClassifyJob) -> None:
        super().__init__(glm, job)
        chat = glm.capabilities.chat
        # A Base model is shown "\n答案：" behind a bare column; a prompt is taken as it is.
        bare = classify.CHAT_TEMPLATE if chat else classify.BASE_TEMPLATE
        self._job, self._form = job, bare if job.prompt is None else classify.TEXT
        self._task = classify.Task(job.labels, chat, self._form, job.system, job.history, job.examples)
        self.room = self._task.room(glm.tokenizer)
        numbers = dict.fromkeys(("probability", "margin", *(f"p_{label}" for label in job.labels)), _NUMBER)
        self.kinds = {"label": "text", **numbers, "error": "text"}

    def prompt_ids(self, text: str) -> list[int]:
        """What stands before a label."""
        return self._task.prompt(self._glm.tokenizer, text)

    def _results(self, prompts: Sequence[Prompt]) -> list[Result]:
        found = self._glm.classify(
            [prompt.text for prompt in prompts],
            self._job.labels,
            history=self._job.history,
            system=self._job.system,
            examples=self._job.examples,
            prompt=self._form,
            calibrate=self._job.calibrate,
            return_errors=True,
        )
        return [self._result(classification) for classification in found]

    def _result(self, found: classify.Classification | ChatGLMError) -> Result:
        if isinstance(found, ChatGLMError):
            return self.failed(found)
        numbers = (found.probabilities[found.label], found.margin, *found.probabilities.values())
        row: Row = dict(zip(self.kinds, (found.label, *map(_six_digits, numbers), None), strict=True))
        return Result(row, found.prompt_tokens, found.cached_tokens)


def _six_digits(value: float) -> float:
    """More than six decimals of a probability are the arithmetic's noise."""
    return round(value, 6)
