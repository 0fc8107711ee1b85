"""What a model in training writes: greedy answers to the validation prompts, compared with the rows' own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from chatglm3.engine.engine import Engine
from chatglm3.engine.params import SamplingParams
from chatglm3.engine.sequence import Generation, Request
from chatglm3.errors import TrainingError
from chatglm3.model.transformer import ChatGLMModel
from chatglm3.tables import Row, write_rows
from chatglm3.tokenizer import Tokenizer
from chatglm3.train.metrics import accuracy, bleu4, exact_match, labels_of, rouge, words

Examples = Sequence[tuple[Sequence[int], str]]
"""Prompts as ids, and the text that should follow; `dataset.prompts_and_targets` makes them."""


@dataclass(frozen=True)
class Prediction:
    """An answer, its reference, and its scores; `stopped` says whether the model ended it by itself."""

    prompt: str
    reference: str
    prediction: str
    stopped: bool
    scores: Mapping[str, float]

    def row(self) -> Row:
        """One line of the file."""
        said = {"prompt": self.prompt, "reference": self.reference, "prediction": self.prediction}
        return {**said, "stopped": self.stopped, **self.scores}


@dataclass(frozen=True)
class Predictions:
    """All answers and their means: `rouge-1`, `rouge-2`, `rouge-l` (percent), `bleu-4`, `exact_match`, `stopped` (0 to
    1), and `accuracy` (0 to 1) if the references are labels.
    """

    rows: tuple[Prediction, ...]
    scores: Mapping[str, float]

    def save(self, path: Path) -> None:
        """Write JSONL, a line for each answer in order; the file appears when it is complete. Raises OSError."""
        write_rows(path, (prediction.row() for prediction in self.rows), {})


class GenerationEvaluator:
    """Measures a model by what it generates, as often as it is called; this is an `Evaluator` of the training loop."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        examples: Examples,
        *,
        max_new_tokens: int = 512,
        file: Callable[[], Path] | None = None,
    ) -> None:
        """Each call writes its answers into the JSONL that `file` names then.

        Raises `TrainingError` without examples, or without jieba.
        """
        if not examples:
            raise TrainingError("there is no answer to compare with; give a validation file whose rows have targets")
        words("")  # a library that is missing shows before training, not after it
        self._tokenizer, self._examples = tokenizer, examples
        self._max_new_tokens, self._file = max_new_tokens, file

    def __call__(self, model: ChatGLMModel) -> Mapping[str, float]:
        """Generate, compare, save; the mean scores."""
        predictions = generate_predictions(model, self._tokenizer, self._examples, self._max_new_tokens)
        if self._file is not None:
            file = self._file()
            file.parent.mkdir(parents=True, exist_ok=True)
            predictions.save(file)
        return predictions.scores


def generate_predictions(
    model: ChatGLMModel, tokenizer: Tokenizer, examples: Examples, max_new_tokens: int = 512
) -> Predictions:
    """Answer every prompt with at most `max_new_tokens` greedy tokens, fewer where the context ends before.

    The model may be in training: what it is trained in is used as it is, and each of its modules is left in the mode
    that it was in. Raises what generating raises: `ContextLengthError`, `DeviceError` or `NumericsError`.
    """
    with _inference(model):
        engine = Engine(model, tokenizer.vocab_size)
        generations = engine.generate(
            [_request(tokenizer, prompt, max_new_tokens, engine.max_context) for prompt, _ in examples]
        )
    return compare(tokenizer, examples, generations)


def compare(tokenizer: Tokenizer, examples: Examples, generations: Sequence[Generation]) -> Predictions:
    """The scores of what was generated for each example."""
    rows = tuple(
        _prediction(tokenizer, prompt, reference, generation)
        for (prompt, reference), generation in zip(examples, generations, strict=True)
    )
    scores = {name: sum(row.scores[name] for row in rows) / len(rows) for name in rows[0].scores}
    scores["stopped"] = sum(row.stopped for row in rows) / len(rows)
    references = [row.reference for row in rows]
    labels = labels_of(references)
    if labels:
        scores["accuracy"] = accuracy([row.prediction for row in rows], references, labels)
    return Predictions(rows, scores)


def _request(tokenizer: Tokenizer, prompt: Sequence[int], max_new_tokens: int, context: int) -> Request:
    room = max(1, min(max_new_tokens, context - len(prompt)))
    params = SamplingParams(temperature=0, max_new_tokens=room)
    return Request(tuple(prompt), params, frozenset(tokenizer.stop_ids))


def _prediction(tokenizer: Tokenizer, prompt: Sequence[int], reference: str, generation: Generation) -> Prediction:
    text = tokenizer.decode(generation.token_ids, skip_special_tokens=True).strip()
    scores = {**rouge(text, reference), "bleu-4": bleu4(text, reference)}
    scores["exact_match"] = float(exact_match(text, reference))
    return Prediction(tokenizer.decode(prompt), reference, text, generation.finish_reason == "stop", scores)


@contextmanager
def _inference(model: ChatGLMModel) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
