"""A history, or plain text, that is computed once and kept for every call that begins with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from chatglm3.engine.engine import Engine
from chatglm3.engine.prefix import Entry
from chatglm3.engine.prefix_file import load_prefix, save_prefix
from chatglm3.errors import ChatGLMError
from chatglm3.messages import History, Message, as_history


class Prefix:
    """What `ChatGLM.prefix` returns. Iterating gives its messages, so it can stand for the history it was made of."""

    def __init__(self, engine: Engine, held: Entry, history: History, text: str | None) -> None:
        self._engine, self._held = engine, held
        self.history, self.text = history, text

    @classmethod
    def compute(
        cls,
        engine: Engine,
        ids: Sequence[int],
        history: History = (),
        text: str | None = None,
        adapter: str | None = None,
    ) -> Prefix:
        """Run the network, with an adapter, on `ids`, which `history` or `text` are."""
        return cls(engine, engine.hold(ids, adapter), history, text)

    @classmethod
    def load(cls, engine: Engine, path: Path, adapter: str | None = None) -> Prefix:
        """Read what `save` wrote, for the same weights and adapter."""
        ids, state, about = load_prefix(path, engine.fingerprint(engine.adapters.find(adapter)))
        said = json.loads(about)
        return cls(engine, engine.restore(ids, state, adapter), as_history(said["history"]), said["text"])

    def save(self, path: str | Path) -> None:
        """Write keys, values, token ids and history to a file: 28,672 bytes a token of the real model in 16 bits."""
        about = json.dumps({"history": [m.to_dict() for m in self.history], "text": self.text}, ensure_ascii=False)
        held = self._open()
        save_prefix(Path(path), held.ids, held.cache.state(), self._engine.fingerprint(held.adapter), about)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens held."""
        return tuple(self._open().ids)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self._open().cache.nbytes

    def close(self) -> None:
        """Free it; calls that begin with it compute it again."""
        held, self._held = self._held, None
        if held is not None:
            self._engine.release(held)

    def _open(self) -> Entry:
        if self._held is None:
            raise ChatGLMError("this prefix is closed; make it again with prefix()")
        return self._held

    def __iter__(self) -> Iterator[Message]:
        return iter(self.history)

    def __enter__(self) -> Prefix:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    _held: Entry | None
