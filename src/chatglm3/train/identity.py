"""Which run a checkpoint belongs to, and how far that run is: trainer/state.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chatglm3.errors import TrainingError

VERSION = 2
TRAINER = "trainer"
"""The folder in a checkpoint that only its run needs."""
_STATE = "state.json"
# Keys that may change while a run is stopped: they do not change its weights, or are compared by content.
_FREE = (
    *("model", "output", "data.train", "data.validation", "data.test", "data.encoding", "device"),
    *("save_every", "keep", "log_every", "tensorboard"),
)


@dataclass(frozen=True)
class State:
    """How far a run is: steps done, the best validation loss with its step, and evaluations since."""

    step: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    stale: int = 0

    def measured(self, loss: float) -> State:
        """After an evaluation."""
        if self.best_loss is None or loss < self.best_loss:
            return State(self.step, self.step, loss)
        return State(self.step, self.best_step, self.best_loss, self.stale + 1)


@dataclass(frozen=True)
class Identity:
    """Which run this is; another one must not go on with its checkpoints."""

    config: Mapping[str, Any]
    dtype: str
    data: str
    """A digest of the rows."""
    processes: int
    model: str
    """A fingerprint of the weights that the run began with."""
    validation: str
    """A digest of the validation rows, which may be others, but then losses cannot be compared."""


def is_checkpoint(folder: Path) -> bool:
    """Whether a run can go on from the folder."""
    return (folder / TRAINER / _STATE).is_file()


def write_state(folder: Path, state: State, identity: Identity) -> None:
    """Write state.json into a checkpoint. Raises OSError."""
    record = {"version": VERSION, "state": asdict(state), "identity": asdict(identity)}
    (folder / TRAINER / _STATE).write_text(json.dumps(record, indent=1), encoding="utf-8")


def read_state(folder: Path, identity: Identity) -> State:
    """How far the run of a checkpoint is. Raises `TrainingError` with the first thing in which it is another run."""
    was, state = _read(folder)
    _require_same_config(was.config, identity.config, folder)
    for name, what in (("dtype", "dtype"), ("processes", "number of processes"), ("data", "training data")):
        _require_same(what, getattr(was, name), getattr(identity, name), folder)
    return state


def require_same_model(folder: Path, fingerprint: str) -> None:
    """Raise `TrainingError` if a checkpoint belongs to other weights."""
    _require_same("model", _read(folder)[0].model, fingerprint, folder)


def same_validation(folder: Path, identity: Identity) -> bool:
    """Whether the losses that the run of a checkpoint found can be compared with those of `identity`."""
    return _read(folder)[0].validation == identity.validation


def _read(folder: Path) -> tuple[Identity, State]:
    file = folder / TRAINER / _STATE
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        if stored["version"] != VERSION:
            raise TrainingError(
                f"{folder} was written by another version of chatglm3 (format {stored['version']}, here {VERSION}); "
                "go on with that version, or begin a new run in another output"
            )
        return Identity(**stored["identity"]), State(**stored["state"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{file} is not the state of a training run ({error}); use another checkpoint") from None


def _require_same_config(was: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    before, after = _flat(was), _flat(now)
    for key in {**before, **after}:
        if key not in _FREE and not key.startswith("evaluation.") and before.get(key) != after.get(key):
            raise TrainingError(
                f"{folder} was made with {key}={_word(before.get(key))}, not {_word(after.get(key))}: use the same, or "
                "begin a new run in another output"
            )


def _require_same(what: str, was: object, now: object, folder: Path) -> None:
    if was != now:
        raise TrainingError(
            f"{folder} belongs to a run with another {what} ({was}, here {now}): use the same, or begin a new run in "
            "another output"
        )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _word(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
