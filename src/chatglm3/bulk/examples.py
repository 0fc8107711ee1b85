"""Examples for classification from a file: rows like the input's, with their labels."""

from __future__ import annotations

from pathlib import Path

from chatglm3.bulk.template import Template
from chatglm3.errors import DataError, JobError
from chatglm3.tables import as_text, read_rows


def read_examples(path: Path, template: Template, label_column: str) -> tuple[tuple[str, str], ...]:
    """Each row's finished prompt and its label. Raises OSError, `DataError` or `JobError`."""
    examples = []
    for place, row in enumerate(read_rows(path), 1):
        template.check(row)
        if label_column not in row:
            raise JobError(f"{path} has no column {label_column!r}; its columns are {', '.join(map(repr, row))}")
        try:
            examples.append((template.fill(template.values(row)), as_text(row[label_column])))
        except DataError as error:
            raise DataError(f"{path}, row {place}: {error}") from None
    return tuple(examples)
