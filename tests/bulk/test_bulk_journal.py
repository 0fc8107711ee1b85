"""Jobs that stop and go on: nothing is lost, nothing is done twice, and nothing goes on that is another job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import chatglm3
from bulk.reviews import reviews, write
from chatglm3 import bulk
from chatglm3.bulk.identity import Identity
from chatglm3.bulk.journal import Journal
from chatglm3.errors import JobError


class Stop(Exception):  # noqa: N818
    """What interrupts a job here."""


def stop_after(windows: int) -> Any:
    """A progress callback that interrupts the job when so many windows are done."""
    told = iter(range(windows))

    def tell(_: bulk.Progress) -> None:
        if next(told, None) is None:
            raise Stop

    return tell


@pytest.fixture
def words(tmp_path: Path, nano: chatglm3.ChatGLM) -> dict[str, Any]:
    """A job of 200 rows, which are four windows."""
    rows = [*reviews(195), *[{"id": i, "review": None} for i in range(195, 200)]]
    source = write(tmp_path / "in.jsonl", rows)
    sampling = {"max_new_tokens": 4, "temperature": 1.0, "seed": 7}
    return {"input": source, "output": tmp_path / "out.jsonl", "model": nano, "column": "review", **sampling}


@pytest.fixture
def stopped(words: dict[str, Any]) -> dict[str, Any]:
    """The same, stopped after two windows."""
    with pytest.raises(Stop):
        bulk.run(**words, progress=stop_after(2))
    return words


def whole(words: dict[str, Any]) -> bytes:
    """What the job writes that nothing interrupts."""
    other = words["output"].with_name("whole.jsonl")
    bulk.run(**{**words, "output": other})
    return other.read_bytes()


def test_a_stopped_job_goes_on_and_does_nothing_twice(stopped: dict[str, Any], nano: chatglm3.ChatGLM) -> None:
    seen: list[bulk.Progress] = []
    summary = bulk.run(**stopped, progress=seen.append)
    assert stopped["output"].read_bytes() == whole(stopped)
    assert (summary.rows, summary.prompts, summary.progress.resumed) == (200, 195, 133)
    assert [now.rows for now in seen] == [5, 197, 200]
    assert not stopped["output"].with_name("out.jsonl.job").exists()


def test_what_a_crash_left_of_a_line_is_cut_off(stopped: dict[str, Any]) -> None:
    results = stopped["output"].with_name("out.jsonl.job") / "results"
    lines = results.read_bytes().splitlines(keepends=True)
    for torn in (lines[1][:-1], lines[1][: len(lines[1]) // 2], b"0", b"\0" * 100, lines[0][:8] + b"\n"):
        results.write_bytes(lines[0] + torn)
        with pytest.raises(Stop):
            bulk.run(**stopped, progress=stop_after(1))
        assert results.read_bytes() == b"".join(lines)
    bulk.run(**stopped)
    assert stopped["output"].read_bytes() == whole(stopped)


def test_a_line_that_is_damaged_inside_is_refused(stopped: dict[str, Any]) -> None:
    results = stopped["output"].with_name("out.jsonl.job") / "results"
    data = bytearray(results.read_bytes())
    data[40] ^= 1
    results.write_bytes(data)
    with pytest.raises(JobError, match=r"results, line 1 is damaged; remove .*out\.jsonl\.job to begin anew"):
        bulk.run(**stopped)
    assert results.read_bytes() == data


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"column": None, "prompt": "这条评论：{review}"}, r'another prompt: was null, is "这条评论：\{review\}"'),
        ({"temperature": 0}, "another temperature: was 1.0, is 0"),
        ({"seed": 8}, "another seed: was 7, is 8"),
        ({"max_new_tokens": 5}, "another max_new_tokens: was 4, is 5"),
        ({"system": "你好"}, 'another system: was null, is "你好"'),
        ({"history": [{"role": "user", "content": "x"}]}, r"another history: was \[\], is "),
        ({"choices": ["是", "否"]}, r'another choices: was null, is \["是", "否"\]'),
        ({"limit": 10}, "another limit: was null, is 10"),
        ({"output_prefix": "x_"}, 'another output_prefix: was "", is "x_"'),
    ],
)
def test_another_job_does_not_go_on_with_it(stopped: dict[str, Any], change: dict[str, Any], difference: str) -> None:
    with pytest.raises(JobError, match=difference) as caught:
        bulk.run(**{**stopped, **change})
    assert "\n" not in str(caught.value)
    bulk.run(**stopped)


def test_another_input_model_or_command_does_not_go_on_with_it(
    stopped: dict[str, Any], tmp_path: Path, nano_base: chatglm3.ChatGLM
) -> None:
    with pytest.raises(JobError, match=r'another model: was "[0-9a-f]{32}", is "[0-9a-f]{32}"'):
        bulk.run(**{**stopped, "model": nano_base})
    with pytest.raises(JobError, match='another model: was "a loaded model", is "nano-base"; use it again'):
        bulk.run(**{**stopped, "model": "nano-base"})
    labels: Any = {key: stopped[key] for key in ("input", "output", "model", "column", "seed")}
    with pytest.raises(JobError, match='another job: was "RunJob", is "ClassifyJob"'):
        bulk.classify(**labels, labels=["正面", "负面"])
    text = stopped["input"].read_text(encoding="utf-8")
    stopped["input"].write_text(text.replace('"id": 3,', '"id": 4,'), encoding="utf-8")
    with pytest.raises(JobError, match=r'another input: was "\d+ bytes, sha256 .*", is'):
        bulk.run(**stopped)
    stopped["input"].rename(tmp_path / "renamed.jsonl")
    (tmp_path / "renamed.jsonl").write_text(text, encoding="utf-8")
    bulk.run(**{**stopped, "input": tmp_path / "renamed.jsonl"})


def test_a_job_that_was_killed_when_all_was_written_is_finished(words: dict[str, Any]) -> None:
    with pytest.raises(Stop):
        bulk.run(**words, progress=stop_after(4))
    folder = words["output"].with_name("out.jsonl.job")
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    bulk.run(**words)
    first = words["output"].read_bytes()
    folder.mkdir()
    for name, data in kept.items():
        (folder / name).write_bytes(data)
    (folder / "written").touch()
    summary = bulk.run(**words)
    assert words["output"].read_bytes() == first and not folder.exists()
    assert summary.progress.resumed == 200


def test_an_output_that_appears_meanwhile_is_not_overwritten(words: dict[str, Any]) -> None:
    with pytest.raises(Stop):
        bulk.run(**words, progress=stop_after(2))
    words["output"].write_text("precious")
    with pytest.raises(JobError, match=r"out\.jsonl exists; give another output, or remove it first"):
        bulk.run(**words)
    assert words["output"].read_text() == "precious"
    words["output"].unlink()

    def appear(progress: bulk.Progress) -> None:
        if progress.rows == progress.total:
            words["output"].write_text("precious")

    with pytest.raises(JobError, match=r"out\.jsonl appeared while the job ran; move it"):
        bulk.run(**words, progress=appear)
    assert words["output"].read_text() == "precious"
    words["output"].unlink()
    assert bulk.run(**words).progress.resumed == 200


def test_a_folder_of_that_name_is_not_touched(words: dict[str, Any]) -> None:
    folder = words["output"].with_name("out.jsonl.job")
    folder.mkdir()
    (folder / "mine.txt").write_text("precious")
    with pytest.raises(JobError, match=r"holds mine\.txt, which is no part of a job"):
        bulk.run(**words)
    assert (folder / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize(
    "text", ["{", "[]", "null", '{"format": "mine"}', '{"format": ["chatglm3 job 1"]}', "[" * 10_000]
)
def test_a_folder_with_files_of_these_names_may_be_anothers(words: dict[str, Any], text: str) -> None:
    folder = words["output"].with_name("out.jsonl.job")
    folder.mkdir()
    mine = {"job.json": text, "results": "precious", "written": ""}
    for name, data in mine.items():
        (folder / name).write_text(data)
    with pytest.raises(JobError, match=r"out\.jsonl\.job holds job\.json, which is no part of a job or damaged; move"):
        bulk.run(**words)
    assert {path.name: path.read_text() for path in folder.iterdir()} == mine
    (folder / "job.json").unlink()
    with pytest.raises(JobError, match=r"holds results, which is no part of a job"):
        bulk.run(**words)
    assert sorted(path.name for path in folder.iterdir()) == ["results", "written"]


def test_an_input_that_changes_meanwhile_is_noticed(words: dict[str, Any]) -> None:
    def change(progress: bulk.Progress) -> None:
        if progress.rows == progress.total:
            with words["input"].open("a") as file:
                file.write('{"id": 1, "review": "x"}\n')

    with pytest.raises(JobError, match=r"in\.jsonl was changed while the job ran"):
        bulk.run(**words, progress=change)
    assert not words["output"].exists()


def test_nothing_stays_of_a_job_that_did_nothing(words: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(Stop):
        bulk.run(**words, progress=stop_after(0))
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_the_journal_alone(tmp_path: Path) -> None:
    output, results = tmp_path / "out.jsonl", [[{"a": "好\n", "error": None}], [{"a": None, "error": "x"}] * 3]
    identity = Identity.of({"prompt": ("x",)}, {"model": "nano"})
    with Journal(output) as journal:
        journal.begin(identity)
        for window in results:
            journal.append(window)
        with pytest.raises(JobError, match=r"another process is writing .*out\.jsonl"):
            Journal(output)
    with Journal(output) as journal:
        journal.begin(Identity.of({"prompt": ["x"]}, {"model": "renamed"}))
        assert [journal.read(i) for i in range(journal.windows)] == results
        assert journal.result(5, 3) == {"a": None, "error": "x"}
        assert Identity.read(journal.folder) == identity
        journal.remove()
    assert not list(tmp_path.iterdir())
