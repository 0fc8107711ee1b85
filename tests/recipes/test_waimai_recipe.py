"""The experiment on takeaway reviews: parts without overlap, rows as they are measured, and a run from end to end."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

from measured_rows import measured_ids

ROOT = Path(__file__).parents[2]
for package in ("snownlp", "sklearn", "accelerate"):
    pytest.importorskip(package)
sys.path.insert(0, str(ROOT))

from recipes.nano.data import Review, near_duplicates  # noqa: E402
from recipes.waimai.__main__ import main  # noqa: E402
from recipes.waimai.data import Parts, Sizes, distinct, read_parts  # noqa: E402
from recipes.waimai.tuning import GRID, Route, Trial, best, training_row  # noqa: E402

from chatglm3.errors import DataError  # noqa: E402
from chatglm3.model.hub import resolve  # noqa: E402
from chatglm3.tokenizer import Tokenizer  # noqa: E402
from chatglm3.train.data import IGNORED  # noqa: E402

SIZES = Sizes(train=20, validation=8, held_out=12)
DISHES = ("炒饭", "拉面", "水饺", "奶茶", "烤鸭", "米线", "馒头")
GOOD, BAD = ("很香，量也足", "送得真快", "比上次还要好"), ("又冷又硬", "等了两个钟头", "少给了一半")


def reviews() -> list[tuple[str, str]]:
    return [(label, f"{dish}{said}") for label, words in (("1", GOOD), ("0", BAD)) for said in words for dish in DISHES]


def write(path: Path, rows: list[tuple[str, str]], header: tuple[str, str] = ("label", "review")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    repeated, contradictory = ("1", "炒饭 送得真快！"), ("0", "拉面送得真快")
    return write(tmp_path / "reviews.csv", [*reviews(), repeated, contradictory])


@pytest.fixture
def parts(table: Path) -> Parts:
    return read_parts(table, SIZES, seed=0)


def test_no_text_is_in_two_parts(parts: Parts) -> None:
    keys = [row.key for part in (parts.train, parts.validation, parts.held_out) for row in part]
    assert len(keys) == len(set(keys)) == 40
    assert (len(parts.train), len(parts.validation), len(parts.held_out)) == (20, 8, 12)
    assert not near_duplicates(parts.train, [*parts.validation, *parts.held_out])
    assert not near_duplicates(parts.validation, parts.held_out)
    assert "拉面送得真快" not in keys


def test_the_seed_decides_the_split(table: Path, parts: Parts) -> None:
    assert read_parts(table, SIZES, seed=0) == parts
    assert read_parts(table, SIZES, seed=1).held_out != parts.held_out


def test_repeats_and_contradictions_are_counted(parts: Parts) -> None:
    cleaning = parts.cleaning
    assert (cleaning.rows, cleaning.repeated, cleaning.contradictory, cleaning.known) == (44, 1, 2, 0)
    rows = [Review("好吃", "正面"), Review("好吃！", "正面"), Review("难吃", "负面"), Review("难 吃", "正面")]
    assert distinct(rows) == ([rows[0]], 1, 2)


@pytest.mark.parametrize("route", [Route("Chat", "nano"), Route("Base", "nano-base")], ids=lambda route: route.kind)
def test_rows_are_learned_in_the_words_that_they_are_measured_in(route: Route) -> None:
    tokenizer = Tokenizer.from_pretrained(resolve(route.model))
    row = training_row(tokenizer, route.task, Review("米线又冷又硬", "负面"))
    assert tuple(row.input_ids) == measured_ids(tokenizer, route.task, "米线又冷又硬", "负面")
    learned = [i for i in row.labels if i != IGNORED]
    assert tokenizer.decode(learned[:-1]).strip() == "负面" and learned[-1] == tokenizer.eos_id


def test_the_validation_part_chooses() -> None:
    trials = [Trial(GRID[0], Path(), 9, loss, right, 1.0) for loss, right in ((0.3, 0.8), (0.2, 0.9), (0.1, 0.9))]
    assert best(trials) is trials[2]


def test_a_run_from_end_to_end_and_again(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.md"
    sizes = ("--train", "20", "--validation", "8", "--held-out", "12", "--settings", "1", "--steps", "2")
    words = [str(table), "--output", str(report), "--work", str(tmp_path / "work"), *sizes]
    assert main(words) == 0
    text = report.read_text(encoding="utf-8")
    for said in ("fine-tuned Chat − fine-tuned Base", "fine-tuned Base − zero-shot Base", "always", "TF-IDF"):
        assert said in text
    assert "| train rows | 20 (" in text and "python -m recipes.waimai reviews.csv " in text
    assert not [review for _, review in reviews() if review in text]
    trained = {file: file.stat().st_mtime_ns for file in tmp_path.glob("work/*/*/adapter/*.safetensors")}
    assert len(trained) == 2
    capsys.readouterr()
    assert main(words) == 0
    assert "step 2/2" not in capsys.readouterr().err
    assert trained == {file: file.stat().st_mtime_ns for file in trained}


@pytest.mark.parametrize(
    ("rows", "header", "said"),
    [
        (reviews()[:30], ("label", "review"), "30 distinct reviews are too few for the 40 of all parts"),
        (reviews(), ("label", "text"), "no column 'review'"),
        ([*reviews(), ("2", "还行")], ("label", "review"), "row 43: labels that are none of 1, 0"),
    ],
)
def test_a_table_that_will_not_do_is_one_line(
    rows: list[tuple[str, str]], header: tuple[str, str], said: str, tmp_path: Path
) -> None:
    table = write(tmp_path / "reviews.csv", rows, header)
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        read_parts(table, SIZES, seed=0)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line_on_stderr(tmp_path: Path) -> None:
    words = ["-m", "recipes.waimai", str(tmp_path / "none.csv"), "--output", str(tmp_path / "report.md")]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1 and "none.csv" in done.stderr and "Traceback" not in done.stderr
