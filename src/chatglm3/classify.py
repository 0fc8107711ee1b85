"""Classification without generation: the probability of every label behind a prompt, so the answer is always a label.

A Chat model sees a conversation: system message, examples as turns, the text as the query. The labels stand where its
answer begins, behind the empty header line. A Base model sees plain text: the instruction, examples with their labels,
and the text in a template that the label completes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from chatglm3.engine.engine import Engine
from chatglm3.engine.labels import LabelTree, shared_beginning
from chatglm3.engine.sequence import Ranking
from chatglm3.errors import ChatGLMError, MessageError, attempt
from chatglm3.messages import History, Message
from chatglm3.prompt import chat_prompt, completion_prompt
from chatglm3.tokenizer import Tokenizer

TEXT = "{text}"
"""What a template has where the text goes."""
CHAT_TEMPLATE, BASE_TEMPLATE = TEXT, f"{TEXT}\n答案："
CONTENT_FREE = ("N/A", "[MASK]", "无")
"""Texts that say nothing, whose label probabilities are a model's prejudice (Zhao et al., 2021)."""


@dataclass(frozen=True, slots=True)
class Classification:
    """The most probable label, the probability of every label (in the labels' order, together 1), and what it cost.

    `margin` is by how much the label's probability exceeds the second one's.
    """

    label: str
    probabilities: Mapping[str, float]
    margin: float
    prompt_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class Task:
    """What a text is asked: labels, template, and all that stands before it. Frozen, so it is checked once."""

    labels: tuple[str, ...]
    chat: bool
    template: str
    system: str | None = None
    history: History = ()
    examples: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        check_labels(self.labels)
        if TEXT not in self.template:
            raise MessageError(f"the prompt must have {TEXT} where the text goes, not {self.template!r}")
        if self.history and not self.chat:
            raise MessageError("a Base model knows no conversation; give it system= and examples= instead of history=")
        if self.history and self.system is not None:
            raise MessageError("give system= or a history that begins with a system message, not both")
        for example in self.examples:
            if len(example) != 2 or example[1] not in self.labels:
                raise MessageError(f"an example is a text and one of the labels, not {example!r}")

    def prompt(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """The ids after which a label follows."""
        if not self.chat:
            return completion_prompt(tokenizer, self.plain_text(text))
        messages = (*self.conversation(), Message("user", self.fill(text)))
        return [*chat_prompt(tokenizer, messages), *tokenizer.encode("\n")]

    def conversation(self) -> History:
        """What a Chat model sees before a text: the instruction, the history, and the examples as turns."""
        messages = [Message.system(self.system)] if self.system is not None else []
        messages += self.history
        for shown, label in self.examples:
            messages += [Message("user", self.fill(shown)), Message("assistant", label)]
        return tuple(messages)

    def plain_text(self, text: str) -> str:
        """What a Base model continues: the instruction, the examples with their labels, and the text."""
        parts = [self.system] if self.system is not None else []
        parts += [self.fill(shown) + label for shown, label in self.examples]
        return "\n\n".join([*parts, self.fill(text)])

    def fill(self, text: str) -> str:
        """The text in its template."""
        return self.template.replace(TEXT, text)

    def room(self, tokenizer: Tokenizer) -> int:
        """Tokens that must be free behind a prompt."""
        return max(len(ids) for spelling in self.spellings(tokenizer) for ids in spelling) + 1

    def spellings(self, tokenizer: Tokenizer) -> list[list[list[int]]]:
        """The ids of all labels as this kind of model would write them.

        A Base model goes on right behind the prompt, or begins with SentencePiece's space, as rows of a prompt and a
        response teach it.
        """
        apart = [tokenizer.encode(label) for label in self.labels]
        return [apart] if self.chat else [[tokenizer.encode_continuation(label) for label in self.labels], apart]

    def end_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The ids that end a label."""
        return tokenizer.stop_ids if self.chat else (tokenizer.newline_id, tokenizer.eos_id)


class Classifier:
    """A task on an engine, ready for any number of texts."""

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, task: Task, *, calibrate: bool = False, adapter: str | None = None
    ) -> None:
        """`calibrate` measures the model's prejudice first, on texts that say nothing; `adapter` is one of `engine`."""
        self._engine, self._tokenizer, self._task, self._adapter = engine, tokenizer, task, adapter
        spellings = task.spellings(tokenizer)
        for ids in spellings:
            if len(set(map(tuple, ids))) < len(ids):
                raise MessageError(f"some of these labels are the same to the tokenizer: {', '.join(task.labels)}")
        every = [label for ids in spellings for label in ids]
        size = shared_beginning(every)
        self._shared = every[0][:size]  # it belongs to the prompt
        self._beginnings = [shared_beginning(ids) - size for ids in spellings]
        self._tree = LabelTree([label[size:] for label in every], task.end_ids(tokenizer))
        self._prior = [0.0] * len(task.labels)
        if calibrate:
            free = [list(result.probabilities.values()) for result in self(CONTENT_FREE)]
            self._prior = [math.log(max(sum(column) / len(free), 1e-12)) for column in zip(*free, strict=True)]

    def __call__(self, texts: Sequence[str]) -> list[Classification]:
        """The labels of `texts`, in their order. Raises MessageError for a text that is empty."""
        rankings = self._engine.rank([self._prompt(text) for text in texts], self._tree, self._adapter)
        return [self._classification(ranking) for ranking in rankings]

    def outcomes(self, texts: Sequence[str]) -> list[Classification | ChatGLMError]:
        """The same, but a text that fails has its error in its place."""
        prompts = [attempt(partial(self._prompt, text), keep_errors=True) for text in texts]
        good = [prompt for prompt in prompts if not isinstance(prompt, ChatGLMError)]
        rankings = iter(self._engine.rank_outcomes(good, self._tree, self._adapter))
        found = [prompt if isinstance(prompt, ChatGLMError) else next(rankings) for prompt in prompts]
        return [r if isinstance(r, ChatGLMError) else self._classification(r) for r in found]

    def _prompt(self, text: str) -> list[int]:
        return [*self._task.prompt(self._tokenizer, require_text(text)), *self._shared]

    def _classification(self, ranking: Ranking) -> Classification:
        """Softmax of every label's log-probability per token, over the prejudice."""
        means = self._means(ranking)
        weights = [mean - prior for mean, prior in zip(means, self._prior, strict=True)]
        most = max(weights)
        odds = [math.exp(weight - most) for weight in weights]
        values = [value / sum(odds) for value in odds]
        best, second = sorted(values, reverse=True)[:2]
        labels = self._task.labels
        label, found = labels[values.index(best)], dict(zip(labels, values, strict=True))
        return Classification(label, found, best - second, ranking.prompt_tokens, ranking.cached_tokens)

    def _means(self, ranking: Ranking) -> list[float]:
        """Of each label in the spelling that the model prefers, behind what all labels begin with in it."""
        count = len(self._task.labels)
        spelled = [ranking.logprobs[start : start + count] for start in range(0, len(ranking.logprobs), count)]
        pairs = zip(spelled, self._beginnings, strict=True)
        found, size = max(pairs, key=lambda pair: max(map(sum, pair[0])))
        return [sum(logprobs[size:]) / len(logprobs[size:]) for logprobs in found]


def require_text(text: str) -> str:
    """`text`; MessageError if there is nothing but space in it, for which a label would be made up."""
    if not text.strip():
        raise MessageError("the text is empty")
    return text


def check_labels(labels: Iterable[object]) -> None:
    """Raise MessageError for labels that no text can be given: fewer than two, an empty one, one twice."""
    given = list(labels)
    if not all(isinstance(label, str) and label.strip() for label in given):
        raise MessageError(f"labels must be non-empty strings, not {given!r}")
    if len(given) < 2:
        raise MessageError(f"classification needs at least two labels, not {given!r}")
    twice = sorted({str(label) for label in given if given.count(label) > 1})
    if twice:
        raise MessageError(f"labels must differ; {', '.join(twice)} is given twice")
