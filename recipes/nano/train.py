"""Makes `nano-base` and `nano` from nothing, in one command that can be stopped and started again at any time:

python -m recipes.nano.train          # about two hours on two cores; work files in build/nano

Every stage leaves a file in the work folder and is skipped, or taken up where it stopped, when its file is there.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import torch
from torch import nn

from chatglm3.model.config import ModelConfig
from chatglm3.model.transformer import ChatGLMModel
from chatglm3.tokenizer import Tokenizer

from . import tool_calls
from .conversations import chat
from .data import load_news, load_reviews, split_reviews
from .documents import Corpus, document
from .export import export
from .loop import Sampler, Stage, train_stage
from .teacher import cached_soft_labels
from .tokenizer import train_tokenizer

SEED = 3
BASE = Stage("base", steps=1500, learning_rate=5e-3, seed=SEED)
CHAT = Stage("chat", steps=2000, learning_rate=2e-3, seed=SEED)


def network(tokenizer: Tokenizer) -> ModelConfig:
    """The official architecture, small: 4 layers of width 256; the vocabulary is rounded up to a multiple of 64."""
    return ModelConfig(
        num_layers=4,
        padded_vocab_size=-(-tokenizer.vocab_size // 64) * 64,
        hidden_size=256,
        ffn_hidden_size=640,
        kv_channels=32,
        num_attention_heads=8,
        multi_query_group_num=2,
        seq_length=4096,
        add_qkv_bias=True,
    )


def random_model(config: ModelConfig) -> ChatGLMModel:
    """A network with random weights: matrices normal with deviation 0.02, norms one, biases zero."""
    torch.manual_seed(SEED)
    model = ChatGLMModel(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    return model


@dataclass(frozen=True)
class Materials:
    """What all stages learn from."""

    corpus: Corpus
    tokenizer: Tokenizer
    letters: str


def common_letters(texts: Iterable[str], count: int = 1_500) -> str:
    """The most common Chinese characters, to make up names with."""
    counts = Counter(letter for text in texts for letter in text if "\u4e00" <= letter <= "\u9fff")
    return "".join(letter for letter, _ in counts.most_common(count))


def tokenizer_texts(reviews: Sequence[str], news: Sequence[str], letters: str) -> Iterable[str]:
    """The training text of the tokenizer: the corpus, and tool conversations so that their JSON has pieces."""
    yield from reviews
    yield from news
    rng = Random(SEED)
    for _ in range(2_000):
        for message in tool_calls.conversation(rng, letters):
            yield f"{message.metadata}\n{message.content}\n{message.tools or ''}"


def prepare(work: Path) -> Materials:
    """Read the corpus, fit the teachers and train the tokenizer."""
    rows = split_reviews(load_reviews()).train
    news = list(load_news())
    letters = common_letters(news)
    file = work / "tokenizer.model"
    if not file.exists():
        file.write_bytes(train_tokenizer(tokenizer_texts([row.text for row in rows], news, letters)))
    soft = cached_soft_labels(rows, SEED, work / "soft_labels.json")
    return Materials(Corpus(news, soft), Tokenizer.from_pretrained(file), letters)


def main() -> None:
    """Run all stages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/nano"), help="folder of checkpoints")
    parser.add_argument("--assets", type=Path, default=Path("src/chatglm3/assets"), help="folder of the models")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    materials = prepare(arguments.work)
    run_stages(materials, arguments.work, arguments.assets)


def run_stages(materials: Materials, work: Path, assets: Path) -> None:
    """Pre-train `nano-base`, then fine-tune it to `nano`; each is written to `assets` at every checkpoint."""
    tokenizer, corpus, letters = materials.tokenizer, materials.corpus, materials.letters
    model = random_model(network(tokenizer))
    samplers: dict[Stage, tuple[str, Sampler]] = {
        BASE: ("nano-base", lambda rng: document(tokenizer, corpus, rng)),
        CHAT: ("nano", lambda rng: chat(tokenizer, corpus, letters, rng)),
    }
    for stage, (name, sample) in samplers.items():
        save = partial(export, model, work / "tokenizer.model", assets / name)
        train_stage(model, stage, sample, work, save)
        save()


if __name__ == "__main__":
    main()
