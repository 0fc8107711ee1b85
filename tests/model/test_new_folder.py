from __future__ import annotations

from pathlib import Path

import pytest

from chatglm3.errors import CheckpointError
from chatglm3.model.new_folder import new_folder


def test_two_processes_do_not_write_one_folder(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out", 1) as folder:
        (folder / "config.json").write_text("{}")
        with pytest.raises(CheckpointError, match="another process is writing it"), new_folder(tmp_path / "out", 1):
            raise AssertionError
        assert (folder / "config.json").exists()
    assert (tmp_path / "out" / "config.json").exists()
    assert not list(tmp_path.glob(".*"))
