"""A job file: a command's words in YAML, so that a job can be kept and run again.

    input: reviews.csv
    output: labels.csv
    labels: [正面, 负面]
    prompt: 判断这条评论：{review}

The words are those of the command line, with _ or - between them; a path is relative to the working folder, as there.
Every value is text as it stands in the file: a label may be called yes, true or 01.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeAlias

import typer

from chatglm3.errors import JobError

_Value: TypeAlias = str | list[str] | None
_ABSENT = ("", "~", "null")  # without quotes: as if the word were not there
_RIVALS = {"prompt": "column", "column": "prompt"}  # a job has one of them


def is_job_file(path: Path) -> bool:
    """Whether INPUT is no table but a job file."""
    return path.suffix in (".yaml", ".yml")


def run_job_file(context: typer.Context, path: Path) -> None:
    """Run the command with the words of the file; those of the command line come before them."""
    command, given = context.command, _given(context)
    words = _known(path, _read(path), {_word(parameter) for parameter in command.params})
    replaced = {*given, *(_RIVALS[name] for name in given if name in _RIVALS)}
    kept = {p: value for p in command.params if (value := words.get(_word(p))) is not None and p.name not in replaced}
    source = words.get("input")
    if source is None:
        raise JobError(f"{path}: a job file names an input")
    if isinstance(source, str) and is_job_file(Path(source)):
        raise JobError(f"{path}: input must name a table, and {source} is a job file")
    with command.make_context(context.info_name, list(_arguments(kept)), parent=context.parent) as inner:
        inner.params |= given
        command.invoke(inner)


def _given(context: typer.Context) -> dict[str, Any]:
    """What the command line says besides the job file."""
    sources = {name: context.get_parameter_source(name) for name in context.params if name != "input"}
    return {name: context.params[name] for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def _word(parameter: Any) -> str:
    """What a parameter is called in a job file."""
    options = [option for option in parameter.opts if option.startswith("--")]
    return options[0].removeprefix("--").replace("-", "_") if options else str(parameter.name)


def _known(path: Path, pairs: list[tuple[str, _Value]], known: Collection[str]) -> Mapping[str, _Value]:
    """The file's words by the names of the parameters; `JobError` for one that is unknown or given twice."""
    words: dict[str, _Value] = {}
    for key, value in pairs:
        word = key.replace("-", "_")
        if word not in known or word == "help":
            near = get_close_matches(word, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
            raise JobError(f"{path}: unknown word {key!r}; {hint}")
        if word in words:
            raise JobError(f"{path}: {word} is given twice; leave one of them")
        words[word] = value
    return words


def _arguments(words: Mapping[Any, str | list[str]]) -> Iterator[str]:
    """The command line that says the same as the file."""
    operands: list[str] = []
    for parameter, value in words.items():
        values = [value] if isinstance(value, str) else value
        if len(values) != 1 and not getattr(parameter, "multiple", False):
            raise typer.BadParameter(f"{_word(parameter)} in the job file must be one value, not {value!r}")
        if parameter.name in ("input", "output"):
            operands += values
        else:
            yield from _option(parameter, values)
    yield from ("--", *operands)


def _option(parameter: Any, values: list[str]) -> Iterator[str]:
    name = parameter.opts[0]
    if not parameter.is_flag:
        yield from (f"{name}={value}" for value in values)
    elif values[0] in ("true", "True"):
        yield name
    elif values[0] in ("false", "False"):
        yield from parameter.secondary_opts[:1]
    else:
        raise typer.BadParameter(f"{name} in the job file must be true or false, not {values[0]!r}")


def _read(path: Path) -> list[tuple[str, _Value]]:
    """The words of the file and their values, in order. Raises OSError or `JobError`."""
    import yaml  # type: ignore[import-untyped]

    try:
        node = yaml.compose(path.read_text(encoding="utf-8-sig"), yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise JobError(f"{path} is not YAML: {error}") from None
    if not isinstance(node, yaml.MappingNode) or not all(isinstance(key, yaml.ScalarNode) for key, _ in node.value):
        raise JobError(f"{path}: a job file has one line for each word, as in `prompt: ...`")
    return [(key.value, _value(path, key.value, value)) for key, value in node.value]


def _value(path: Path, word: str, node: Any) -> _Value:
    """What a node says as it is written; YAML's types would make another text of a label that is called `true`."""
    if node.id == "scalar":
        return None if node.style is None and node.value in _ABSENT else str(node.value)
    if node.id == "sequence" and all(item.id == "scalar" for item in node.value):
        return [str(item.value) for item in node.value]
    what = "a mapping" if node.id == "mapping" else "a list of lists"
    raise JobError(f"{path}: {word} must be a value or a list of values, not {what}; put quotes around braces")
