"""A command in a pseudo-terminal: type keys, wait for what the screen shows."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

ENTER, ESC_ENTER, CTRL_C, CTRL_D, UP, TAB = "\r", "\x1b\r", "\x03", "\x04", "\x1b[A", "\t"
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[=>])")
# Ctrl-C goes to the processes of the session that owns the terminal.
_RUN_AS_OWNER_OF_THE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "chatglm3", *sys.argv[1:]])
"""


class Terminal:
    """`python -m chatglm3 ...` in a terminal of 100 columns and 30 rows."""

    def __init__(self, arguments: Sequence[str | Path], home: Path) -> None:
        """`home` is the user's home folder."""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        environment = {**os.environ, "HOME": str(home), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        environment.pop("XDG_STATE_HOME", None)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _RUN_AS_OWNER_OF_THE_TERMINAL, *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=environment,
        )
        os.close(slave)
        self._seen = ""

    def type(self, keys: str) -> None:
        """Press keys; whatever was shown before does not count for the next `wait`."""
        self._seen = ""
        os.write(self._master, keys.encode())

    def wait(self, *wanted: str, seconds: float = 120) -> None:
        """Read until all of `wanted` is shown, one behind the other, since the last keys."""
        deadline = time.monotonic() + seconds
        pattern = re.compile(".*?".join(map(re.escape, wanted)), re.DOTALL)
        while not pattern.search(self._text()):
            if not self._read(deadline):
                raise AssertionError(f"{wanted} is not shown:\n{self._text()}")

    def answer(self, wanted: str) -> None:
        """Read until `wanted` is shown and the next line can be typed."""
        self.wait(wanted, ">")

    def ends(self, seconds: float = 120) -> int:
        """Wait until the command ends; returns its exit status."""
        while self._read(time.monotonic() + seconds):
            pass
        return self._process.wait(seconds)

    def close(self) -> None:
        """End the command if it still runs."""
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0, deadline - time.monotonic()))
        try:
            data = os.read(self._master, 65536) if ready else b""
        except OSError:  # how Linux says that the other side was closed
            data = b""
        self._seen += data.decode(errors="replace")
        return bool(data)

    def _text(self) -> str:
        return _ESCAPES.sub("", self._seen)
