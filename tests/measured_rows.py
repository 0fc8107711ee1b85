"""What a row must be to be learned as it is measured."""

from __future__ import annotations

from chatglm3.classify import Task
from chatglm3.tokenizer import Tokenizer


def measured_ids(tokenizer: Tokenizer, task: Task, text: str, label: str) -> tuple[int, ...]:
    """The prompt that `classify` scores labels behind, the label, and the end."""
    answers = task.spellings(tokenizer)[-1]  # of a Base model: behind a space, as in the official kit
    return (*task.prompt(tokenizer, text), *answers[task.labels.index(label)], tokenizer.eos_id)
