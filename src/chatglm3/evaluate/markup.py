"""Markup whose text is escaped because there is no other way to write it."""

from __future__ import annotations

import html
from collections.abc import Mapping


class Html(str):
    """Markup that is escaped already; every other string is text."""

    __slots__ = ()


def element(name: str, attributes: Mapping[str, str | float] | None = None, *children: str) -> Html:
    """An element of HTML or SVG; text in it and in its attributes is escaped, empty attributes are left out."""
    given = "".join(f' {key}="{_attribute(value)}"' for key, value in (attributes or {}).items() if value != "")
    return Html(f"<{name}{given}>{join(*children)}</{name}>")


def join(*children: str) -> Html:
    """Markup and text one behind the other."""
    return Html("".join(c if isinstance(c, Html) else html.escape(c, quote=False) for c in children))


def _attribute(value: str | float) -> str:
    return html.escape(value) if isinstance(value, str) else f"{value:.6g}"
