"""Who may import whom (docs/architecture.md), and what `import chatglm3` brings in."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_type_hints

import pytest

import chatglm3
from chatglm3.engine.params import SamplingOptions

PACKAGE = Path(chatglm3.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Each room, and the rooms that it may import besides itself. A room is a file or a folder of the package.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "messages": {"errors"},
    "tokenizer": {"errors"},
    "stopping": set(),
    "prompt": {"errors", "messages", "tokenizer"},
    "toolcall": {"errors", "messages"},
    "reply": {"errors", "messages", "tokenizer", "toolcall"},
    "kernels": {"errors"},
    "model": {"errors", "kernels"},
    "engine": {"errors", "kernels", "model"},
    "capabilities": {"errors", "model"},
    "grammar": {"errors", "tokenizer", "reply", "engine"},
    "classify": {"errors", "messages", "tokenizer", "prompt", "engine"},
    "answers": {"errors", "messages", "tokenizer", "prompt", "reply", "stopping", "engine", "grammar"},
    "held": {"errors", "messages", "engine"},
    "train": {
        "errors",
        "messages",
        "tokenizer",
        "prompt",
        "toolcall",
        "kernels",
        "model",
        "engine",
        "tables",
        "capabilities",
    },
}
CORE = {*MAY_IMPORT, "chat", "loading"}
SIDES = {"tables", "bulk", "evaluate"}  # they sit on chat
MAY_IMPORT |= {
    "chat": CORE - {"chat", "loading", "train", "kernels"},
    "loading": CORE - {"loading", "train", "kernels"},
    "compat": CORE - {"train"},
    "tables": {"errors"},
    "bulk": (CORE - {"train", "kernels", "model"}) | {"tables"},
    "evaluate": (CORE - {"train", "kernels", "model"}) | {"tables"},
    "cli": CORE | SIDES,
    "__init__": CORE | SIDES,
    "__main__": {"cli"},
}
TORCH = {"kernels", "model", "engine", "train", "compat"}
# `info` and `doctor` report what torch sees of the machine; they import these files when they run.
ABOUT_THE_MACHINE = {"cli/machine.py", "cli/memory.py", "cli/self_test.py"}
FOREIGN = {"transformers", "peft", "accelerate", "datasets"}
EXTRAS = {"train/devices.py": {"accelerate"}}  # of `chatglm3[train]`, in the one file that needs them


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Every module that a file imports, wherever in it, as a dotted name."""
    return tuple(_imports(ast.parse(path.read_text(encoding="utf-8"))))


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_imported(path: Path) -> set[str]:
    parts = [name.split(".") for name in imports(path)]
    rooms = {part[1] for part in parts if part[0] == "chatglm3" and len(part) > 1}
    return {room for room in rooms if (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").is_file()} - {room_of(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_only_what_its_room_may(path: Path) -> None:
    assert rooms_imported(path) <= MAY_IMPORT[room_of(path)]
    modules = {name.split(".")[0] for name in imports(path)}
    if room_of(path) not in TORCH and path.relative_to(PACKAGE).as_posix() not in ABOUT_THE_MACHINE:
        assert "torch" not in modules
    assert not (modules & FOREIGN) - EXTRAS.get(path.relative_to(PACKAGE).as_posix(), set())


def test_every_rule_is_about_a_room_that_exists() -> None:
    assert set(MAY_IMPORT) <= {room_of(path) for path in FILES}


@pytest.mark.parametrize(
    "code",
    [
        "import chatglm3; chatglm3.Message('user', 'hi'), chatglm3.Tokenizer, chatglm3.ChatGLMError",
        "import chatglm3.cli",
        "import chatglm3.prompt, chatglm3.reply, chatglm3.stopping",
    ],
)
def test_text_alone_loads_no_torch(code: str) -> None:
    script = f"import sys\n{code}\nsys.exit(', '.join({{'torch', 'transformers'}} & set(sys.modules)) or 0)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_public_names() -> None:
    assert len(chatglm3.__all__) <= 25
    assert chatglm3.__all__ == sorted(set(chatglm3.__all__))
    for name in chatglm3.__all__:
        value = getattr(chatglm3, name)
        assert getattr(value, "__module__", "chatglm3").startswith(("chatglm3", "typing", "types", "builtins"))
    assert set(chatglm3.__all__) <= set(dir(chatglm3))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = chatglm3.nothing


def test_the_public_names_are_typed() -> None:
    """What a type checker sees is what is there at run time."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.name: f"{node.module}"
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(typed) == set(chatglm3.__all__)
    assert {name: f"chatglm3.{home}" for name, home in chatglm3._HOMES.items()} == typed
    assert (PACKAGE / "py.typed").is_file()


def test_the_sampling_arguments_are_the_sampling_parameters() -> None:
    assert list(get_type_hints(SamplingOptions)) == [f.name for f in dataclasses.fields(chatglm3.SamplingParams)]
