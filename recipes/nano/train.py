"""Makes `nano-base` and `nano` from nothing, in one command that can be stopped and started again at any time:

python -m recipes.nano.train          # work files in build/nano

Both are trained by `chatglm3.train`: all weights, rows made here. What was begun goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

import torch
from torch import nn

from chatglm3.model.config import ModelConfig
from chatglm3.model.saving import save_model
from chatglm3.model.transformer import ChatGLMModel
from chatglm3.tokenizer import Tokenizer
from chatglm3.train.checkpoints import checkpoints_of
from chatglm3.train.config import TrainConfig, make_config
from chatglm3.train.data import TrainingRow
from chatglm3.train.dataset import Dataset
from chatglm3.train.loop import train
from chatglm3.train.progress import ProgressBar

from . import tool_calls
from .conversations import chat
from .data import load_news, load_reviews, split_reviews
from .documents import Corpus, document
from .teacher import cached_soft_labels
from .tokenizer import train_tokenizer

SEED = 3
OFFICIAL = {
    "apply_query_key_layer_scaling": True,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "hidden_dropout": 0.0,
    "original_rope": True,
    "use_cache": True,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""What the official config.json says besides the shape."""


@dataclass(frozen=True)
class Stage:
    """How one of the two models is trained; `rows` are those of a step."""

    name: str
    kind: Literal["base", "chat"]
    steps: int
    rows: int
    learning_rate: float

    def config(self, model: Path, output: Path) -> TrainConfig:
        """The settings of the trainer."""
        return make_config(
            {
                "model": str(model),
                "data": {"kind": self.kind},
                "output": str(output),
                "method": "full",
                "steps": self.steps,
                "batch_size": self.rows,
                "learning_rate": self.learning_rate,
                "warmup_steps": 100,
                "optimizer": "muon",
                "weight_decay": 0.1,
                "adam_betas": (0.9, 0.95),
                "hidden_dropout": 0.1,
                "dtype": "float32",
                "device": "cpu",
                "seed": SEED,
                "save_every": 250,
                "log_every": 50,
            },
            f"recipes/nano, {self.name}",
        )


BASE = Stage("nano-base", "base", steps=1500, rows=20, learning_rate=5e-3)
CHAT = Stage("nano", "chat", steps=2000, rows=28, learning_rate=2e-3)


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
        extra=OFFICIAL,
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
    """Run both stages."""
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
    """Pre-train `nano-base` from random weights, then fine-tune it to `nano`; each goes to `assets` when it is done."""
    tokenizer, corpus, letters = materials.tokenizer, materials.corpus, materials.letters
    begin = work / "random"
    save_model(random_model(network(tokenizer)).half(), begin)
    shutil.copyfile(work / "tokenizer.model", begin / "tokenizer.model")
    shutil.copyfile(Path(__file__).with_name("tokenizer_config.json"), begin / "tokenizer_config.json")
    base = run_stage(BASE, lambda rng: document(tokenizer, corpus, rng), begin, work)
    publish(base, assets / BASE.name)
    model = run_stage(CHAT, lambda rng: chat(tokenizer, corpus, letters, rng), base, work)
    publish(model, assets / CHAT.name)


def publish(model: Path, target: Path) -> None:
    """Copy a trained model to its place; config.json gets its name, by which copies are known as Chat or Base."""
    shutil.copytree(model, target, dirs_exist_ok=True)
    config = target / "config.json"
    named = json.loads(config.read_text(encoding="utf-8")) | {"_name_or_path": target.name}
    config.write_text(json.dumps(named, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def run_stage(stage: Stage, sample: Callable[[Random], TrainingRow], model: Path, work: Path) -> Path:
    """Train `model` on rows that `sample` draws, each seen once; the folder of the model that comes of it."""
    rng = Random(f"{SEED} {stage.name}")
    count = stage.steps * stage.rows
    rows = Dataset(stage.kind, tuple(sample(rng) for _ in range(count)), (), tuple(range(1, count + 1)))
    output = work / stage.name
    resume = "latest" if checkpoints_of(output) else None
    with ProgressBar() as bar:
        return train(stage.config(model, output), rows=rows, resume=resume, reporter=bar).folder


if __name__ == "__main__":
    main()
