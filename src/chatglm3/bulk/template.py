"""A prompt with places for the values of a row: {column}; {{ and }} are braces."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from chatglm3.errors import DataError, JobError
from chatglm3.tables import BadRow, Row, as_text

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True)
class Template:
    """Texts and, between each two of them, a column's name."""

    texts: tuple[str, ...]
    columns: tuple[str, ...]

    @classmethod
    def parse(cls, prompt: str) -> Template:
        """Read a prompt; raises `JobError` where a brace is not part of a {column}."""
        texts, columns, end = [""], [], 0
        for token in _TOKEN.finditer(prompt):
            texts[-1] += prompt[end : token.start()]
            end = token.end()
            if token[0] in ("{{", "}}"):
                texts[-1] += token[0][0]
            elif not token[1]:
                raise JobError(
                    f"the prompt has a {token[0]!r} at character {token.start() + 1} that names no column; "
                    "write {column} for a value and {{ or }} for a brace"
                )
            else:
                columns.append(token[1])
                texts.append("")
        texts[-1] += prompt[end:]
        if not columns:
            raise JobError(f"the prompt {prompt[:40]!r} names no {{column}}, so it is the same for every row")
        return cls(tuple(texts), tuple(columns))

    @classmethod
    def of_column(cls, column: str) -> Template:
        """The value of one column and nothing else."""
        return cls(("", ""), (column,))

    def check(self, columns: Collection[str]) -> None:
        """Raise `JobError` if a column is not there."""
        for name in self.columns:
            if name not in columns:
                raise JobError(f"the prompt names the column {name!r}; the columns are {', '.join(map(repr, columns))}")

    def values(self, row: Row | BadRow) -> tuple[str, ...]:
        """What the row has for each place, as text.

        Raises `DataError` if it is no good row, has no value for one of them, or nothing but blank space for all.
        """
        if isinstance(row, BadRow):
            raise DataError(row.error)
        for name in self.columns:
            if row.get(name) is None:
                raise DataError(f"the row has no value for the column {name!r}")
        values = tuple(as_text(row[name]) for name in self.columns)
        if not any(map(str.strip, values)):
            raise DataError("the text is empty")
        return values

    @property
    def frame(self) -> str:
        """What is the same in every prompt."""
        return "".join(self.texts)

    def fill(self, values: Sequence[str]) -> str:
        """The finished prompt."""
        return self.texts[0] + "".join(v + text for v, text in zip(values, self.texts[1:], strict=True))

    def fill_within(self, values: Sequence[str], fits: Callable[[str], bool]) -> str:
        """The finished prompt, with every value cut to the same number of characters, the largest with which it fits.

        If nothing would be left of them, the prompt stays as it is, too long: nobody is asked about nothing.
        """
        low, high = 0, max(map(len, values))
        if fits(self.fill(values)):
            return self.fill(values)
        while low < high:
            middle = (low + high + 1) // 2
            if fits(self.fill([value[:middle] for value in values])):
                low = middle
            else:
                high = middle - 1
        cut = [value[:low] for value in values]
        return self.fill(cut if any(map(str.strip, cut)) else values)
