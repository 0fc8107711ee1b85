"""What the models are asked, in the form that each kind was trained for."""

from __future__ import annotations

from dataclasses import dataclass

from chatglm3.classify import BASE_TEMPLATE, CHAT_TEMPLATE, TEXT, Task

ANSWER = BASE_TEMPLATE.removeprefix(TEXT)
"""What follows a text in plain text, so that a label continues it."""


@dataclass(frozen=True)
class Question:
    """Labels and wording. Raises MessageError for labels or templates that cannot be used.

    `system` is the instruction (None: one that names the labels; "": none), `prompt` the template of a text. A Base
    model sees the same instruction as the first paragraph and the same template with "\\n答案：" behind it, unless
    `base_system` and `base_prompt` say otherwise.
    """

    labels: tuple[str, ...]
    system: str | None = None
    prompt: str = CHAT_TEMPLATE
    base_system: str | None = None
    base_prompt: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        for chat in (True, False):
            self.task(chat=chat)

    def task(self, *, chat: bool, examples: tuple[tuple[str, str], ...] = ()) -> Task:
        """The task of a Chat or a Base model, with `examples` of texts and their labels."""
        system, template = self.system, self.prompt
        if not chat:
            system = self.base_system if self.base_system is not None else system
            template = self.base_prompt if self.base_prompt is not None else template + ANSWER
        if system is None:
            system = f"判断下面的文本属于哪一类，只回答其中一个：{'、'.join(self.labels)}。"
        return Task(self.labels, chat, template, system or None, (), examples)
