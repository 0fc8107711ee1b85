"""What quantisation costs in exactness: the weights' error, and nano's accuracy and next-token distributions."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import chatglm3
from chatglm3.kernels.layout import dequantize
from chatglm3.model.grouping import group_rows
from chatglm3.prompt import completion_prompt

BITS = (4, 8)
_DOCUMENTS = 100


class Error:
    """A relative root-mean-square error, summed up over matrices."""

    def __init__(self) -> None:
        self._error, self._signal = 0.0, 0.0

    def add(self, weight: Tensor, stored: Tensor) -> None:
        self._error += float((weight - stored).double().square().sum())
        self._signal += float(weight.double().square().sum())

    @property
    def relative(self) -> float:
        return float(np.sqrt(self._error / self._signal))


def weight_errors() -> dict[str, tuple[float, float]]:
    """Relative RMS error (ours at 4 bits, Q4_0's) over random normal weights and over the matrices of nano's blocks."""
    torch.manual_seed(0)
    return {
        "random normal": _errors(iter([torch.randn(4096, 4096)])),
        "nano": _errors(_nano_matrices()),
    }


def _nano_matrices() -> Iterator[Tensor]:
    with chatglm3.load("nano", device="cpu", dtype="float32") as glm:
        for name, parameter in glm.model.named_parameters():
            if ".layers." in name and parameter.ndim == 2:
                yield parameter


def _errors(matrices: Iterator[Tensor]) -> tuple[float, float]:
    import gguf

    ours, theirs = Error(), Error()
    kind = gguf.GGMLQuantizationType.Q4_0
    for matrix in matrices:
        ours.add(matrix, dequantize(group_rows(matrix, 4, 32), torch.float32))
        theirs.add(matrix, torch.from_numpy(gguf.dequantize(gguf.quantize(matrix.numpy(), kind), kind)))
    return ours.relative, theirs.relative


def nano_accuracy() -> dict[str, float]:
    """Share of nano's 2,000 held-out reviews judged right, in percent, at float32 and at each of `BITS`."""
    _find_recipes()
    from recipes.nano.data import load_reviews, split_reviews
    from recipes.nano.judging import SYSTEM

    rows = split_reviews(load_reviews()).held_out
    history = [chatglm3.Message.system(SYSTEM)]
    accuracy = {}
    for name, glm in _nanos():
        replies = glm.chat_batch([row.text for row in rows], history, temperature=0, max_new_tokens=16)
        right = sum(reply.text == row.label for reply, row in zip(replies, rows, strict=True))
        accuracy[name] = 100 * right / len(rows)
        glm.close()
    return accuracy


def nano_divergence() -> dict[str, float]:
    """Mean KL divergence (nats) of nano's next-token distributions at each of `BITS` from float32's, over news text."""
    _find_recipes()
    from recipes.nano.data import load_news

    documents = list(islice(load_news(), _DOCUMENTS))
    exact: list[Tensor] = []
    divergence = {}
    for name, glm in _nanos():
        logprobs = list(_distributions(glm, documents))
        if not exact:
            exact = logprobs
        else:
            pairs = zip(exact, logprobs, strict=True)
            divergence[name] = float(torch.cat([(p.exp() * (p - q)).sum(-1) for p, q in pairs]).mean())
        glm.close()
    return divergence


@torch.inference_mode()
def _distributions(glm: chatglm3.ChatGLM, documents: Sequence[str]) -> Iterator[Tensor]:
    for document in documents:
        ids = torch.tensor([completion_prompt(glm.tokenizer, document)])
        yield glm.model(ids).logits[0, :, : glm.tokenizer.vocab_size].float().log_softmax(-1)


def _nanos() -> Iterator[tuple[str, chatglm3.ChatGLM]]:
    yield "float32", chatglm3.load("nano", device="cpu", dtype="float32")
    for bits in BITS:
        yield f"int{bits}", chatglm3.load("nano", device="cpu", dtype="float32", quantize=bits)


def _find_recipes() -> None:
    root = str(Path(__file__).parent.parent)
    if root not in sys.path:
        sys.path.append(root)
