"""Adapters by name: each request says which of them acts in its steps."""

from __future__ import annotations

from pathlib import Path

from chatglm3.engine.network import Network
from chatglm3.engine.prefix import PrefixStore
from chatglm3.engine.turns import Turns
from chatglm3.errors import AdapterError
from chatglm3.model.adapters import Adapter, read_adapter


class NamedAdapters:
    """The adapters of an engine. Between two steps none of them is in the network."""

    def __init__(self, network: Network, store: PrefixStore, turns: Turns) -> None:
        self._network, self._store, self._turns = network, store, turns
        self._by_name: dict[str, Adapter] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in the order in which they were added."""
        return tuple(self._by_name)

    def add(self, name: str, path: str | Path) -> None:
        """Read an adapter folder. Raises `AdapterError` if it does not fit, or if there is one of this name."""
        if not isinstance(name, str) or not name:
            raise AdapterError(f"the name of an adapter is a string that is not empty, not {name!r}")
        with self._turns.alone():
            if name in self._by_name:
                raise AdapterError(f"there is an adapter {name!r} already; remove it first, or choose another name")
            self._by_name[name] = read_adapter(self._network.model, path)

    def remove(self, name: str) -> None:
        """Forget an adapter and what was computed with it. Requests that are on their way go on with it."""
        with self._turns.alone():
            self._store.forget_adapter(self._named(name))
            del self._by_name[name]

    def find(self, name: str | None) -> Adapter | None:
        """The adapter of this name; `AdapterError` if there is none. None is no adapter."""
        return None if name is None else self._named(name)

    def clear(self) -> None:
        """Let go of all of them."""
        self._by_name.clear()

    def _named(self, name: str) -> Adapter:
        adapter = self._by_name.get(name) if isinstance(name, str) else None
        if adapter is None:
            known = f"there are {', '.join(self._by_name)}" if self._by_name else "none has been added"
            raise AdapterError(f"there is no adapter {name!r}; {known}; add_adapter(name, path) adds one")
        return adapter
