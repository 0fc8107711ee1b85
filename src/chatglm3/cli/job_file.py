"""A job file: a command's words in YAML, so that a job can be kept and run again.

    input: reviews.csv
    output: labels.csv
    labels: [正面, 负面]
    prompt: 判断这条评论：{review}

The words are those of the command line, with _ or - between them; a path is relative to the working folder, as there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

import typer

from chatglm3.errors import JobError


def is_job_file(path: Path) -> bool:
    """Whether INPUT is no table but a job file."""
    return path.suffix in (".yaml", ".yml")


def run_job_file(context: typer.Context, path: Path) -> None:
    """Run the command with the words of the file; those of the command line come before them."""
    command = context.command
    arguments = list(_arguments(path, {_word(parameter): parameter for parameter in command.params}))
    with command.make_context(context.info_name, arguments, parent=context.parent) as inner:
        for name, value in context.params.items():
            source = context.get_parameter_source(name)
            if name != "input" and source is not None and source.name == "COMMANDLINE":
                inner.params[name] = value
        command.invoke(inner)


def _word(parameter: Any) -> str:
    options = [option for option in parameter.opts if option.startswith("--")]
    return options[0].removeprefix("--").replace("-", "_") if options else str(parameter.name)


def _arguments(path: Path, known: dict[str, Any]) -> Iterator[str]:
    """The command line that says the same as the file."""
    operands: dict[str, str] = {}
    for key, value in _read(path).items():
        word = str(key).replace("-", "_")
        if word not in known or word == "help":
            near = get_close_matches(word, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
            raise JobError(f"{path}: unknown word {str(key)!r}; {hint}")
        if isinstance(value, dict):
            raise JobError(f"{path}: {word} must be a value or a list of values, not a mapping")
        if word in ("input", "output"):
            operands[word] = str(value)
        else:
            yield from _option(known[word], value)
    if set(operands) != {"input", "output"}:
        raise JobError(f"{path}: a job file names an input and an output")
    yield from ("--", operands["input"], operands["output"])


def _option(parameter: Any, value: object) -> Iterator[str]:
    name = parameter.opts[0]
    if parameter.is_flag:
        if not isinstance(value, bool):
            raise typer.BadParameter(f"{name} in the job file must be true or false, not {value!r}")
        yield from [name] if value else parameter.secondary_opts[:1]
    elif value is not None:
        yield from (f"{name}={item}" for item in (value if isinstance(value, list) else [value]))


def _read(path: Path) -> dict[Any, Any]:
    import yaml  # type: ignore[import-untyped]

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Every scalar is text, but for true, false and null; a label may be called yes, or 01."""

        yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            twice = sorted({key for key in keys if keys.count(key) > 1})
            if twice:
                raise yaml.YAMLError(f"{twice[0]} is given twice")
            mapping: dict[Any, Any] = super().construct_mapping(node, deep)
            return mapping

    Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(true|false|True|False)$"), list("tfTF"))
    Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^(~|null|)$"), ["~", "n", ""])
    try:
        words = yaml.load(path.read_text(encoding="utf-8-sig"), Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise JobError(f"{path} is not YAML: {error}") from None
    if not isinstance(words, dict):
        raise JobError(f"{path}: a job file has one line for each word, as in `prompt: ...`")
    return words
