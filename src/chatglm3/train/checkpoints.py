"""The checkpoints of a run, from which it goes on as if it had not been stopped.

    OUTPUT/checkpoint-500/                what was trained, ready to be used
    OUTPUT/checkpoint-500/trainer/        the optimizer, the random numbers, and state.json: which run this is, and
                                          how far it is

A checkpoint is written under another name and renamed when it is on the disk, so one that is there is whole.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError

from safetensors import SafetensorError
from torch import Tensor, nn

from chatglm3.errors import CheckpointError, TrainingError
from chatglm3.model.transformer import ChatGLMModel
from chatglm3.tables.files import sync
from chatglm3.train.config import TrainConfig
from chatglm3.train.devices import Accelerator, is_sharded
from chatglm3.train.identity import TRAINER, Identity, State, is_checkpoint, write_state
from chatglm3.train.methods import load_trained, save_trained, trained_weights

_NAME = re.compile(r"checkpoint-(\d+)")
TEMPORARY = ".incomplete"
"""How the name of what is not yet whole, or no longer, ends."""


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
    if is_checkpoint(Path(resume).expanduser()):
        return Path(resume).expanduser()
    steps = f"it has those of the steps {', '.join(map(str, there))}" if there else "begin without --resume"
    raise TrainingError(f"{output} has no checkpoint {resume!r}; {steps}")


def way_on(output: Path) -> str:
    """What to do after a run stopped."""
    there = checkpoints_of(output)
    if not there:
        return "begin again with the same command, since there is no checkpoint yet"
    return f"go on with --resume latest, since {there[max(there)].name} is whole"


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
        temporary = target.with_name(target.name + TEMPORARY)
        try:
            self._write(temporary, state, identity)
        except (OSError, RuntimeError, CheckpointError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            way = way_on(target.parent)
            raise TrainingError(f"{target} cannot be saved ({_short(error)}): free some space, and {way}") from None
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
            self._accelerator.load_state(str(folder / TRAINER))
        except (OSError, RuntimeError, ValueError, KeyError, UnpicklingError, CheckpointError) as error:
            reason = "a file of it is damaged" if isinstance(error, UnpicklingError) else _short(error)
            raise TrainingError(f"{folder} cannot be read ({reason}); use an earlier checkpoint") from None

    def _write(self, folder: Path, state: State, identity: Identity) -> None:
        if self._accelerator.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
            (folder / TRAINER).mkdir(parents=True)
        self._accelerator.wait_for_everyone()
        weights = self._weights()
        if self._accelerator.is_main_process:
            save_trained(self._model, weights, self._config, folder, self._base)
            write_state(folder, state, identity)
        self._accelerator.save_state(str(folder / TRAINER))
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


def _remove(folder: Path) -> None:
    """Remove a checkpoint, under another name first: what has the name of one is whole at any time."""
    renamed = folder.with_name(f"{folder.name}.old{TEMPORARY}")
    folder.replace(renamed)
    shutil.rmtree(renamed)


def _short(error: Exception) -> str:
    if "inline_container" in str(error):  # of torch.save, which says where in its own code
        return "a file of it was cut short"
    said = error.strerror if isinstance(error, OSError) else None
    return said or " ".join(str(error).split())[:200]
