"""Stop strings: where a text ends although the model went on."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes text on as it arrives, up to the first stop string; holds back what may still become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._waiting = ""
        self.found = False
        """A stop string was met; nothing after it is passed on."""

    def push(self, text: str) -> str:
        """The text that is safe to show now."""
        if self.found:
            return ""
        self._waiting += text
        places = [place for stop in self._stops if (place := self._waiting.find(stop)) >= 0]
        self.found = bool(places)
        return self._release(min(places) if places else len(self._waiting) - self._undecided())

    def finish(self) -> str:
        """The rest, once no text follows."""
        return "" if self.found else self._release(len(self._waiting))

    def _undecided(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for size in range(min(longest, len(self._waiting)), 0, -1):
            if any(stop.startswith(self._waiting[-size:]) for stop in self._stops):
                return size
        return 0

    def _release(self, end: int) -> str:
        text, self._waiting = self._waiting[:end], self._waiting[end:]
        return text
