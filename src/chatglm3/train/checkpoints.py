"""The checkpoints of a run, from which it goes on as if it had not been stopped.

    OUTPUT/checkpoint-500/                what was trained, ready to be used
    OUTPUT/checkpoint-500/trainer/        the optimizer, the random numbers, and state.json: which run this is, and
                                          how far it is

A checkpoint is written under another name and renamed when it is on the disk, so one that is there is whole.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from chatglm3.errors import CheckpointError, TrainingError
from chatglm3.model.transformer import ChatGLMModel
from chatglm3.tables.files import sync
from chatglm3.train.config import TrainConfig
from chatglm3.train.devices import Accelerator, is_sharded
from chatglm3.train.methods import load_trained, save_trained, trained_weights

VERSION = 1
_NAME = re.compile(r"checkpoint-(\d+)")
_TRAINER, _STATE, _TEMPORARY = "trainer", "state.json", ".incomplete"
# Keys that may change while a run is stopped: they do not change its weights, or are compared by content.
_FREE = (
    *("model", "output", "data.train", "data.validation", "data.test", "device"),
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


def checkpoints_of(output: Path) -> dict[int, Path]:
    """The complete checkpoints of a run by step, in order."""
    found = [(_NAME.fullmatch(path.name), path) for path in output.glob("checkpoint-*") if path.is_dir()]
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def find_checkpoint(output: Path, resume: str) -> Path:
    """The checkpoint to go on from: `resume` is "latest", a step or a folder. Raises `TrainingError`."""
    there = checkpoints_of(output)
    if resume == "latest" and there:
        return there[max(there)]
    if resume.isdecimal() and int(resume) in there:
        return there[int(resume)]
    if (Path(resume) / _TRAINER / _STATE).is_file():
        return Path(resume)
    steps = f"it has those of the steps {', '.join(map(str, there))}" if there else "begin without --resume"
    raise TrainingError(f"{output} has no checkpoint {resume!r}; {steps}")


def refuse_begun(output: Path) -> None:
    """Raise `TrainingError` if a new run would write over another one."""
    there = checkpoints_of(output)
    if there:
        raise TrainingError(
            f"{output} has checkpoints of another run, up to step {max(there)}; go on with --resume latest, or give "
            "another output"
        )


def remove_unfinished(output: Path) -> None:
    """Remove what a run that was killed while it saved has left."""
    for folder in output.glob("*" + _TEMPORARY):
        if folder.is_dir():
            shutil.rmtree(folder)


def read_state(folder: Path, identity: Identity) -> State:
    """How far the run of a checkpoint is. Raises `TrainingError` with the first thing in which it is another run."""
    file = folder / _TRAINER / _STATE
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        if stored["version"] != VERSION:
            raise TrainingError(
                f"{folder} was written by another version of chatglm3 (format {stored['version']}, here {VERSION}); "
                "go on with that version, or begin a new run in another output"
            )
        was, state = Identity(**stored["identity"]), State(**stored["state"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{file} is not the state of a training run ({error}); use another checkpoint") from None
    _require_same_config(was.config, identity.config, folder)
    for name, what in (("dtype", "dtype"), ("processes", "number of processes"), ("data", "training data")):
        _require_same(what, getattr(was, name), getattr(identity, name), folder)
    return state


def require_same_model(folder: Path, fingerprint: str) -> None:
    """Raise `TrainingError` if a checkpoint belongs to other weights."""
    stored = json.loads((folder / _TRAINER / _STATE).read_text(encoding="utf-8"))
    _require_same("model", stored["identity"]["model"], fingerprint, folder)


class Checkpoints:
    """Writes the checkpoints of a run and reads them back; all processes call its methods together."""

    def __init__(
        self,
        accelerator: Accelerator,
        network: nn.Module,
        model: ChatGLMModel,
        names: Sequence[str],
        config: TrainConfig,
        base: Path,
    ) -> None:
        """`network` is what accelerate made of `model`, which came from the folder `base`; `names` are trained."""
        self._accelerator, self._network, self._model = accelerator, network, model
        self._names, self._config, self._base = names, config, base
        # What is trained is kept in files that can be used; accelerate would write the frozen weights too.
        accelerator.register_save_state_pre_hook(lambda _models, weights, _folder: weights.clear())
        accelerator.register_load_state_pre_hook(lambda models, _folder: models.clear())

    def save(self, state: State, identity: Identity) -> Path:
        """Write a checkpoint, and remove those that need not stay.

        Raises `TrainingError` if the disk refuses; earlier checkpoints are as they were.
        """
        target = self._config.output / f"checkpoint-{state.step}"
        temporary = target.with_name(target.name + _TEMPORARY)
        try:
            self._write(temporary, state, identity)
        except (OSError, RuntimeError, CheckpointError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise TrainingError(self._refusal(target, error)) from None
        if self._accelerator.is_main_process:
            if target.is_dir():  # of a run that went on from an earlier step
                _remove(target)
            temporary.replace(target)
            sync(target.parent)
            self._retain(state)
        self._accelerator.wait_for_everyone()
        return target

    def restore(self, folder: Path) -> None:
        """Read a checkpoint: weights, optimizer and random numbers. `TrainingError` if it is damaged."""
        try:
            if not is_sharded(self._accelerator):
                load_trained(self._model, self._config, folder)
            self._accelerator.load_state(str(folder / _TRAINER))
        except (OSError, RuntimeError, ValueError, KeyError, UnpicklingError, CheckpointError) as error:
            reason = "a file of it is damaged" if isinstance(error, UnpicklingError) else _short(error)
            raise TrainingError(f"{folder} cannot be read ({reason}); use an earlier checkpoint") from None

    def _write(self, folder: Path, state: State, identity: Identity) -> None:
        if self._accelerator.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
            (folder / _TRAINER).mkdir(parents=True)
        self._accelerator.wait_for_everyone()
        weights = self._weights()
        if self._accelerator.is_main_process:
            save_trained(self._model, weights, self._config, folder, self._base)
            record = {"version": VERSION, "state": asdict(state), "identity": asdict(identity)}
            (folder / _TRAINER / _STATE).write_text(json.dumps(record, indent=1), encoding="utf-8")
        self._accelerator.save_state(str(folder / _TRAINER))
        self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process:
            for path in folder.rglob("*"):
                sync(path)

    def _weights(self) -> Mapping[str, Tensor]:
        """What is trained, whole on the main process."""
        if not is_sharded(self._accelerator):
            return trained_weights(self._model)
        gathered = self._accelerator.get_state_dict(self._network) or {}
        return {name: gathered[f"model.{name}"] for name in self._names if f"model.{name}" in gathered}

    def _retain(self, state: State) -> None:
        if self._config.keep is None:
            return
        there = checkpoints_of(self._config.output)
        for step in list(there)[: -self._config.keep]:
            if step != state.best_step:
                _remove(there[step])

    def _refusal(self, target: Path, error: Exception) -> str:
        there = checkpoints_of(target.parent)
        kept = f"{there[max(there)].name} is whole" if there else "there is none yet"
        return f"{target} cannot be saved ({_short(error)}); {kept}: free some space and go on with --resume latest"


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


def _remove(folder: Path) -> None:
    """Remove a checkpoint, under another name first: what has the name of one is whole at any time."""
    renamed = folder.with_name(f"{folder.name}.old{_TEMPORARY}")
    folder.replace(renamed)
    shutil.rmtree(renamed)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _word(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
