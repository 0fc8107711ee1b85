"""The documentation against the code: snippets run, links and names exist, tables say what the code says."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

import chatglm3
from chatglm3.cli import COMMANDS, _app, execute
from chatglm3.cli.memory import format_bytes, weights_by_form
from chatglm3.cli.session import COMMANDS as SESSION_COMMANDS
from chatglm3.engine.params import SamplingParams
from chatglm3.model.config import CHATGLM3_6B

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "chatglm3"
ASSETS = PACKAGE / "assets"
README, README_ZH = ROOT / "README.md", ROOT / "README.zh.md"
PAGES = [README, README_ZH, *sorted((ROOT / "docs").glob("*.md"))]
CLI_PAGE, GUIDE, MODELS = (ROOT / "docs" / f"{name}.md" for name in ("cli", "guide", "models"))

HAS_BUNDLED_MODELS = all((ASSETS / name / "model.safetensors").is_file() for name in ("nano", "nano-base"))
needs_bundled_models = pytest.mark.skipif(not HAS_BUNDLED_MODELS, reason="the bundled models are not trained yet")


class Block(NamedTuple):
    """A fenced code block: what follows the fence, its text, and the line of its first line of code."""

    info: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [Block(m[1], m[2], text.count("\n", 0, m.start(2)) + 1) for m in found]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ .*$", prose(page), flags=re.MULTILINE)


def anchor(heading: str) -> str:
    """The anchor that a heading gets on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.lstrip("# ").lower()).replace(" ", "-")


def named(pages: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=lambda page: page.name)


def test_both_readmes_have_the_same_headings_and_code() -> None:
    levels = [[heading.split(" ")[0] for heading in headings(page)] for page in (README, README_ZH)]
    code = [[(block.info, block.text) for block in blocks(page)] for page in (README, README_ZH)]
    rows = [re.findall(r"^\|.*\|$", prose(page), flags=re.MULTILINE) for page in (README, README_ZH)]
    names = [sorted(re.findall(r"`(?:tests|bench)/[^`]+`", prose(page))) for page in (README, README_ZH)]
    assert levels[0] == levels[1]
    assert code[0] == code[1]
    assert len(rows[0]) == len(rows[1])
    assert names[0] == names[1]


@needs_bundled_models
@named([page for page in PAGES if any(block.info == "python" for block in blocks(page))])
def test_the_snippets_of_a_page_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "snippet"}
    for block in blocks(page):
        if block.info == "python":
            code = "\n" * (block.line - 1) + block.text  # so that a traceback names the line of the page
            exec(compile(code, str(page), "exec"), namespace)  # noqa: S102 (our own pages)


@named(PAGES)
def test_snippets_that_do_not_run_are_few_and_compile(page: Path) -> None:
    assert {block.info for block in blocks(page)} <= {"python", "python no-run", "bash", "diff"}
    skipped = [block for block in blocks(page) if block.info == "python no-run"]
    assert len(skipped) <= 1
    for block in skipped:
        compile(block.text, str(page), "exec")


@named(PAGES)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", prose(page)):
        path, _, fragment = target.partition("#")
        if "://" in target:
            continue
        linked = (page.parent / path).resolve() if path else page
        if not (ASSETS in linked.parents and not HAS_BUNDLED_MODELS):
            assert linked.exists(), target
        if fragment:
            assert fragment in {anchor(heading) for heading in headings(linked)}, target


@named(PAGES)
def test_files_folders_and_tests_that_are_named_exist(page: Path) -> None:
    for name in re.findall(r"`([\w./-]*\w(?:\.py(?:::\w+)?|/))`", prose(page)):
        path, _, test = name.partition("::")
        places = [place / path for place in (ROOT, PACKAGE) if (place / path).exists()]
        assert places, f"{name} does not exist"
        if test:
            assert f"def {test}(" in places[0].read_text(encoding="utf-8"), f"{name} does not exist"


def commands_of(page: Path) -> list[list[str]]:
    """The words of every `chatglm3` command in the page's bash blocks, without redirections."""
    lines = [line for block in blocks(page) if block.info == "bash" for line in block.text.splitlines()]
    words = [shlex.split(re.split(r" [<>] ", part)[0]) for line in lines for part in line.split("|")]
    return [command[1:] for command in words if command[:1] == ["chatglm3"]]


@named([page for page in PAGES if commands_of(page)])
def test_commands_parse(page: Path) -> None:
    for words in commands_of(page):
        group: Any = typer.main.get_command(_app([]))
        context = group.make_context("chatglm3", list(words))
        if words[0] in COMMANDS:
            group.get_command(context, words[0]).make_context(words[0], words[1:], parent=context)
        else:
            assert words == ["--version"]


@named([page for page in PAGES if any(block.info == "bash" for block in blocks(page))])
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:`|^)make ([a-z]+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
        assert f"\n{target}:" in makefile, f"make {target} does not exist"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_page_has_every_option_and_no_other(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute([name, "--help"]) == 0
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", capsys.readouterr().out))
    text = prose(CLI_PAGE)
    documented = set(re.findall(r"`(--[a-z][a-z-]+)`", text))
    assert f"`chatglm3 {name}" in text
    assert shown <= documented
    everywhere = [option for command in COMMANDS for option in _options(command)]
    assert documented - {"--version", "--install-completion", "--show-completion", "--help"} == set(everywhere)


def _options(name: str) -> list[str]:
    command: Any = typer.main.get_command(_app([])).get_command(None, name)  # type: ignore[attr-defined]
    parameters = [p for one in (command, *getattr(command, "commands", {}).values()) for p in one.params]
    options = [option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)]
    return [option for option in options if option.startswith("--") and option != "--help"]


def test_the_command_page_has_every_command_of_the_conversation() -> None:
    documented = re.findall(r"`/(\w+)(?: ([^`]+))?`", prose(CLI_PAGE))
    assert documented == [(name, command.usage) for name, command in SESSION_COMMANDS.items()]


def test_every_public_name_is_explained() -> None:
    text = GUIDE.read_text(encoding="utf-8") + MODELS.read_text(encoding="utf-8")
    methods = [name for name in vars(chatglm3.ChatGLM) if not name.startswith("_")]
    missing = [name for name in (*chatglm3.__all__, *methods) if not re.search(rf"\b{name}\b", text)]
    assert not missing


@pytest.mark.parametrize("field", fields(SamplingParams), ids=lambda field: field.name)
def test_the_defaults_of_sampling_parameters_are_those_of_the_code(field: Any) -> None:
    assert f"\n| `{field.name}` | `{field.default!r}` |" in prose(GUIDE)
    if type(field.default) in (int, float):
        assert f"\n| `--{field.name.replace('_', '-')}` | `{field.default!r}` |" in prose(CLI_PAGE)


def test_the_memory_of_the_6b_models_is_that_of_the_code() -> None:
    text = MODELS.read_text(encoding="utf-8")
    for form, size in weights_by_form(CHATGLM3_6B).items():
        assert re.search(rf"^\| [^|]*{form}[^|]* \| {format_bytes(size)} \|", text, flags=re.MULTILINE), form
    for context in (2048, 8192, 32768, 131072):
        size = context * CHATGLM3_6B.kv_bytes_per_token
        assert f"| {context:,} tokens | {format_bytes(size)} |" in text


@named(PAGES)
def test_headings_do_not_skip_a_level(page: Path) -> None:
    depths = [len(heading.split(" ")[0]) for heading in headings(page)]
    assert depths[0] == 1 and depths.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(depths))


def test_every_file_of_the_package_is_on_the_map() -> None:
    described = re.findall(r"`([\w/]+(?:\.py|/))`", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    by_file = {name.partition("/")[0] for name in described if name.endswith(".py")}
    for path in PACKAGE.rglob("[!_]*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        room = name.partition("/")[0]
        assert name in described or (f"{room}/" in described and room not in by_file), f"{name} is not on the map"
