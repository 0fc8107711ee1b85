"""Text from the user: an argument, standard input, or both."""

from __future__ import annotations

import sys

from chatglm3.errors import MessageError


def read_text(argument: str | None, what: str) -> str:
    """The text of a command: its argument, or what is piped in; with both, what is piped in and then the argument.

    `what` names it in errors. Raises `MessageError` if it is empty or not valid UTF-8.
    """
    parts = [] if argument is None else [argument]
    if not sys.stdin.isatty() or argument is None:
        parts.insert(0, _read_stdin())
    text = "\n".join(filter(None, parts))
    if not text.strip():
        raise MessageError(f"the {what} is empty; give it as an argument or on standard input")
    require_utf8(text, what)
    return text


def require_utf8(text: str, what: str) -> None:
    """Refuse an argument that was not valid UTF-8 on the command line."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise MessageError(f"the {what} is not valid UTF-8; convert it first, for example with iconv") from None


def _read_stdin() -> str:
    """Standard input without its last line end."""
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MessageError(
            f"standard input is not valid UTF-8 (byte {error.start} is 0x{error.object[error.start]:02x}); "
            "convert it first, for example with iconv"
        ) from None
    return text.removesuffix("\n").removesuffix("\r")
