"""What the taught model says, and how to run the command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from chatglm3.tokenizer import Tokenizer

TOOLS = [{"name": "weather"}]
HELLO, HELLO_ANSWER = "你好", "你好，很高兴见到你。"
NEXT, NEXT_ANSWER = "今天天气怎么样？", "北京今天**晴**，22度。"
CALL = "```python\ntool_call(city='北京')\n```"
PROMPT, CONTINUATION = "这本书", "写得很好，我很喜欢。"


@dataclass(frozen=True)
class Result:
    """What a run of the command line gave."""

    status: int
    out: str
    err: str


def run_process(*arguments: str | Path, stdin: bytes = b"", **environment: str) -> Result:
    """Runs `python -m chatglm3` for real."""
    done = subprocess.run(
        [sys.executable, "-m", "chatglm3", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        env={**os.environ, **environment},
        timeout=240,
    )
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


def endless_chat(model_dir: Path, tokenizer: Tokenizer) -> subprocess.Popen[bytes]:
    """A chat in a process of its own that has begun an answer that does not end."""
    sampling = ("--temperature", "1", "--top-k", "0", "--top-p", "1", "--seed", "1", "--min-new-tokens", "100000")
    banned = ("--banned", str(tokenizer.assistant_id))  # it would begin a new message, which might be a tool call
    command = [sys.executable, "-m", "chatglm3", "chat", HELLO, "--model", str(model_dir), *sampling, *banned]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes)
    assert process.stdout is not None and process.stdout.read(1)
    return process
