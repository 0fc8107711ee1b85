"""What a job is, in the file job.json of its folder: the sign that the folder is a job's, and of which one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatglm3.errors import JobError
from chatglm3.tables.files import sync

FILE = "job.json"
UNFINISHED = ".chatglm3-job.incomplete"
"""What is becoming `FILE`."""
_FORMAT = "chatglm3 job 1"


@dataclass(frozen=True)
class Identity:
    """JSON values, all that the output depends on, and what people call some of them. The names may change."""

    values: Mapping[str, Any]
    names: Mapping[str, str]

    @classmethod
    def of(cls, values: Mapping[str, Any], names: Mapping[str, str]) -> Identity:
        """From values that JSON can write; tuples become lists."""
        return cls(json.loads(json.dumps(values)), names)

    @classmethod
    def read(cls, folder: Path) -> Identity | None:
        """That of the folder's job; None if it has no such file, or another's."""
        try:
            match json.loads((folder / FILE).read_text(encoding="utf-8")):
                case {"format": str(form), "values": dict(values), "names": dict(names)} if form == _FORMAT:
                    return cls(values, names)
        except (FileNotFoundError, IsADirectoryError, ValueError, RecursionError):
            pass
        return None

    def write(self, folder: Path) -> None:
        """Say it; the file appears when it is complete."""
        temporary = folder / UNFINISHED
        data = {"format": _FORMAT, "values": self.values, "names": self.names}
        temporary.write_text(json.dumps(data), encoding="utf-8")
        sync(temporary)
        temporary.replace(folder / FILE)
        sync(folder)

    def require_same(self, was: Identity, folder: Path) -> None:
        """Raise `JobError` that says what is not as it was, by its name if that has changed too."""
        for key in {**was.values, **self.values}:
            before, now = was.values.get(key), self.values.get(key)
            if before == now:
                continue
            if was.names.get(key) != self.names.get(key):
                before, now = was.names.get(key), self.names.get(key)
            change = f"was {_short(before)}, is {_short(now)}"
            raise JobError(f"this job was begun with another {key}: {change}; use it again, or remove {folder}")


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:60]}… ({len(text)} characters)"
