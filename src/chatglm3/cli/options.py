"""The options that several commands share: how to load a model and how to choose tokens, in the words of Python.

A command takes a parameter `loading: Loading` and a parameter `sampling: SamplingOptions`; `with_options` puts one
command line option for each of their fields in its place.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, cast

import typer

import chatglm3
from chatglm3.engine.params import SamplingOptions, SamplingParams
from chatglm3.errors import SamplingError

if TYPE_CHECKING:
    from chatglm3.chat import ChatGLM

_NAMES = '"nano" or "nano-base" (bundled), a folder, a Hugging Face id, or modelscope:ID.'
Model: TypeAlias = Annotated[str, typer.Option(envvar="CHATGLM3_MODEL", help=_NAMES)]
ModelArgument: TypeAlias = Annotated[str, typer.Argument(help=_NAMES)]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@dataclass(frozen=True)
class Loading:
    """How to load a model: the keyword arguments of `chatglm3.load`."""

    device: str = "auto"
    dtype: str = "auto"
    quantize: int | None = None
    adapter: Path | None = None
    max_context: int | None = None

    def load(self, model: str) -> ChatGLM:
        """Load `model`; this is where torch is imported."""
        return chatglm3.load(
            model,
            device=self.device,
            dtype=self.dtype,
            quantize=self.quantize,
            adapter=self.adapter,
            max_context=self.max_context,
        )


def check_bits(bits: int | None) -> int | None:
    """The bits of a quantised weight, or a usage error."""
    if bits not in (None, 4, 8):
        raise typer.BadParameter(f"use 8 or 4, not {bits}")
    return bits


_LOADING: dict[str, Any] = {
    "device": Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")],
    "dtype": Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")],
    "quantize": Annotated[int | None, typer.Option(callback=check_bits, help="Store the weights in 8 or 4 bits.")],
    "adapter": Annotated[Path | None, typer.Option(help="Folder of a LoRA or P-Tuning v2 adapter.")],
    "max_context": Annotated[int | None, typer.Option(min=1, help="Most tokens of prompt and answer together.")],
}
_SAMPLING: dict[str, Any] = {
    "max_new_tokens": Annotated[int, typer.Option(help="Most tokens to generate.", show_default="end of context")],
    "temperature": Annotated[float, typer.Option(help="0 always takes the most probable token.")],
    "top_k": Annotated[int, typer.Option(help="Keep the K most probable tokens; 0 keeps all.")],
    "top_p": Annotated[float, typer.Option(help="Keep the most probable tokens that reach P together.")],
    "repetition_penalty": Annotated[float, typer.Option(help="Above 1: repeat less of prompt and answer.")],
    "presence_penalty": Annotated[float, typer.Option(help="Above 0: repeat fewer tokens of the answer.")],
    "frequency_penalty": Annotated[float, typer.Option(help="The same, for each time a token came.")],
    "min_new_tokens": Annotated[int, typer.Option(help="Do not stop before this many tokens.")],
    "num_beams": Annotated[int, typer.Option(help="Above 1: beam search, shown when it is finished.")],
    "length_penalty": Annotated[float, typer.Option(help="Beam search: above 1 prefers longer answers.")],
    "early_stopping": Annotated[bool, typer.Option(help="Beam search: stop at the first finished beams.")],
    "seed": Annotated[int, typer.Option(help="Same seed, same answer.", show_default="random")],
    "stop": Annotated[list[str], typer.Option(help="Text that ends the answer; may be repeated.")],
    "banned": Annotated[list[int], typer.Option(help="Token id that is never produced; may be repeated.")],
    "max_time": Annotated[float, typer.Option(help="End the answer where it is after this many seconds.")],
    "logprobs": Annotated[int, typer.Option(help="With --json: log-probabilities of this many tokens.")],
}


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of `loading` and `sampling`; a value out of range is a usage error."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for name, p in signature.parameters.items() if name not in ("loading", "sampling")]

    @wraps(command)
    def expanded(**values: Any) -> None:
        loading = Loading(**{name: values.pop(name) for name in _LOADING})
        sampling = _checked({name: values.pop(name) for name in _SAMPLING})
        command(**values, loading=loading, sampling=sampling)

    options = [*_parameters(_LOADING, Loading), *_parameters(_SAMPLING, SamplingParams)]
    expanded.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    return expanded


def _parameters(annotations: dict[str, Any], defaults: type) -> list[inspect.Parameter]:
    return [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=_default(getattr(defaults, name)), annotation=annotation
        )
        for name, annotation in annotations.items()
    ]


def _default(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _checked(sampling: dict[str, Any]) -> SamplingOptions:
    """The options, checked before a model is loaded."""
    try:
        SamplingParams.of(sampling)
    except SamplingError as error:
        raise typer.BadParameter(str(error)) from None
    return cast(SamplingOptions, sampling)
