"""Training from beginning to end: read, load, learn, measure, keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from chatglm3.engine.fingerprint import fingerprint
from chatglm3.model.checkpoint import load_model
from chatglm3.model.transformer import ChatGLMModel
from chatglm3.train.announce import announce
from chatglm3.train.batches import in_order, pack, weight_of
from chatglm3.train.checkpoints import Checkpoints, find_checkpoint
from chatglm3.train.config import TrainConfig, write_config
from chatglm3.train.dataset import Dataset, prompts_and_targets
from chatglm3.train.devices import (
    base_dtype,
    is_sharded,
    keep_frozen,
    make_accelerator,
    training_device,
    training_dtype,
)
from chatglm3.train.evaluation import GenerationEvaluator
from chatglm3.train.folder import CONFIG, PLOT, claimed, refuse_begun
from chatglm3.train.formats import Kind
from chatglm3.train.identity import State, read_state, require_same_model, same_validation
from chatglm3.train.materials import Materials, make_identity, make_plan, read_materials
from chatglm3.train.methods import export, load_trained, prepare_model, trained_weights
from chatglm3.train.plot import loss_plot
from chatglm3.train.progress import Meter, MetricsLog, Progress, Reporter, Silent
from chatglm3.train.step import LossNetwork, StepResult, learning_rate, make_optimizers, measure_loss, train_step

Evaluator = Callable[[ChatGLMModel], Mapping[str, float]]
"""Measures a model by what it generates; called on the main process with the network in evaluation mode."""


@dataclass(frozen=True)
class TrainResult:
    """What a run came to: the folder to use, what it learned from, how many steps were done, and the losses."""

    folder: Path
    kind: Kind
    steps: int
    loss: float | None
    """Of the last report; None if nothing was left to do."""
    best_step: int | None
    validation_loss: float | None
    stopped_early: bool


def train(
    config: TrainConfig,
    *,
    rows: Dataset | None = None,
    resume: str | None = None,
    evaluator: Evaluator | None = None,
    reporter: Reporter | None = None,
) -> TrainResult:
    """Fine-tune as `config` says, or go on from a checkpoint: `resume` is "latest", a step or a folder.

    `rows` are learned in place of a file `config.data.train`.
    The folder `config.output` gets the checkpoints, metrics.jsonl, loss.svg, resolved.yaml (the whole config) and what
    is to be used: the folder `adapter` or `model`, of the step with the best validation loss or of the last one.
    `evaluator` adds its metrics at each evaluation. Raises `TrainingError`, and what reading data and models raises.
    """
    checkpoint = None if resume is None else find_checkpoint(config.output, resume)
    if checkpoint is None or checkpoint.parent.resolve() != config.output.resolve():
        refuse_begun(config.output)
    run = _Run(config, read_materials(config, rows), checkpoint, evaluator, reporter or Silent())
    run.accelerator.wait_for_everyone()  # so that none looks at the folder when it is claimed
    with claimed(config.output) if run.is_main else nullcontext():
        run.begin()
        result = run.finish()
    run.accelerator.end_training()
    return result


class _Run:
    """One run, from the config to the folder to use."""

    def __init__(
        self,
        config: TrainConfig,
        materials: Materials,
        checkpoint: Path | None,
        evaluator: Evaluator | None,
        reporter: Reporter,
    ) -> None:
        self.config, self.start, self.materials = config, checkpoint, materials
        self.dtype = training_dtype(config, self.materials.model, training_device(config))
        self.accelerator = make_accelerator(config, self.dtype, self.materials.model)
        self.is_main = self.accelerator.is_main_process
        self.reporter = reporter if self.is_main else Silent()
        self.plan = make_plan(config, self.materials.train, self.accelerator.num_processes)
        self.weights = [weight_of(row) for row in self.materials.train.rows]
        self.evaluator = self._usable(evaluator or self._generation(self.materials.validation, "predictions"))

    def begin(self) -> None:
        """Load the model, and make the first files in the folder."""
        config = self.config
        announce(config, self.materials, self.plan, self.dtype, self.accelerator, self.reporter)
        self.state = self._load(self.start)
        if self.is_main:
            write_config(config, config.output / CONFIG)
            self.log = MetricsLog(config.output, self.state.step, config.tensorboard)

    def finish(self) -> TrainResult:
        """Do what is left, and put what is to be used in its folder."""
        losses = list(self._steps())
        state = self.state
        best = self.config.output / f"checkpoint-{state.best_step or state.step}"
        if not best.is_dir() and self.start is not None:  # a run that was finished, in another folder
            best = self.start
        self._test(best)
        if self.is_main:
            folder = export(best, self.config, self.materials.model)
            plot = loss_plot(self.log.points("loss"), self.log.points("validation_loss"))
            (self.config.output / PLOT).write_text(plot, encoding="utf-8")
            self.reporter.note(f"{folder}: what was trained, of step {state.best_step or state.step:,}")
        self.accelerator.wait_for_everyone()
        return TrainResult(
            self.config.output / ("model" if self.config.method == "full" else "adapter"),
            self.materials.train.kind,
            state.step,
            losses[-1] if losses else None,
            state.best_step,
            state.best_loss,
            state.step < self.plan.steps,
        )

    def _generation(self, data: Dataset | None, folder: str) -> Evaluator | None:
        """Measures generated answers to the rows of `data`, if the config asks for it."""
        settings = self.config.evaluation
        if data is None or not settings.generate:
            return None
        examples = prompts_and_targets(data, self.materials.tokenizer)[: settings.rows]
        return GenerationEvaluator(
            self.materials.tokenizer,
            examples,
            max_new_tokens=settings.max_new_tokens,
            file=lambda: self.config.output / folder / f"predictions-{self.state.step}.jsonl",
        )

    def _usable(self, evaluator: Evaluator | None) -> Evaluator | None:
        if evaluator is not None and is_sharded(self.accelerator):
            self.reporter.note("no answers are generated while weights are spread over processes (FSDP, DeepSpeed)")
            return None
        return evaluator

    def _load(self, checkpoint: Path | None) -> State:
        """Load the model, and go back to `checkpoint`."""
        config, materials, accelerator = self.config, self.materials, self.accelerator
        self.identity = make_identity(config, materials, self.dtype, accelerator.num_processes, "")
        state = State() if checkpoint is None else read_state(checkpoint, self.identity)
        self.model = load_model(
            materials.folder,
            device=str(accelerator.device),
            dtype=base_dtype(config, self.dtype, accelerator),
            quantize=config.quantize,
        )
        self.identity = replace(self.identity, model=fingerprint(self.model))
        if checkpoint is not None:
            require_same_model(checkpoint, self.identity.model)
        prepare_model(self.model, config)
        names = tuple(trained_weights(self.model))
        network = LossNetwork(self.model)
        keep_frozen(network)
        self.network, *self.optimizers = accelerator.prepare(network, *make_optimizers(self.model, config))
        self.checkpoints = Checkpoints(accelerator, self.network, self.model, names, config, materials.folder)
        if checkpoint is None:
            return state
        self.checkpoints.restore(checkpoint)
        self.reporter.note(f"going on from {checkpoint}")
        if state.best_step is None:
            return state
        if not same_validation(checkpoint, self.identity):
            self.reporter.note("the validation rows are not those of before, so the best loss so far is forgotten")
            return State(state.step)
        if not (config.output / f"checkpoint-{state.best_step}").is_dir():
            self.reporter.note(f"the best checkpoint so far is not in {config.output} and is forgotten")
            return State(state.step)
        return state

    def _steps(self) -> Iterator[float]:
        """Take the steps that are left; gives the loss of each report."""
        config, meter = self.config, Meter(self.plan.steps, self.state.step)
        while not self._is_over():
            result = self._step(self.state.step)
            self.state = replace(self.state, step=self.state.step + 1)
            step = self.state.step
            meter.add(
                result.loss, result.gradient_norm, sum(self.plan.lengths[row] for row in self.plan.rows(step - 1))
            )
            if _is_due(step, config.log_every, self.plan.steps):
                progress = meter.report(step, self.plan.epoch(step), self._rate(step - 1))
                self._report(progress)
                yield progress.loss
            improved = self._evaluate()
            if improved or self._is_over() or _is_due(step, config.save_every, self.plan.steps):
                self.checkpoints.save(self.state, self.identity)

    def _step(self, step: int) -> StepResult:
        """Step `step`, from 0. Its random numbers depend on the seed, the step and the process alone."""
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        torch.manual_seed((self.config.seed * 1_000_003 + step) * processes + process)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self._rate(step)
        shares = self.plan.shares(step, process)
        batches = [pack(self.materials.train, share, self.accelerator.device) for share in shares]
        weight = sum(self.weights[row] for row in self.plan.rows(step))
        return train_step(self.accelerator, self.network, self.optimizers, batches, weight, self.config.clip)

    def _rate(self, step: int) -> float:
        return learning_rate(self.config, step, self.plan.steps)

    def _is_over(self) -> bool:
        patience = self.config.evaluation.patience
        return self.state.step >= self.plan.steps or (patience is not None and self.state.stale >= patience)

    def _report(self, progress: Progress) -> None:
        self.reporter.progress(progress)
        if self.is_main:
            self.log.write(progress.step, progress.metrics())

    def _evaluate(self) -> bool:
        """Measure the validation rows if it is time: whether they came out better than ever."""
        every = self.config.evaluation.every or self.config.save_every
        if not _is_due(self.state.step, every, self.plan.steps):
            return False
        metrics = self._measure(self.materials.validation, "validation", self.evaluator)
        if "validation_loss" not in metrics:
            return False
        self.state = self.state.measured(metrics["validation_loss"])
        return self.state.best_step == self.state.step

    def _test(self, best: Path) -> None:
        """Measure the test rows with the weights that are kept."""
        if self.materials.test is None:
            return
        if not is_sharded(self.accelerator):
            load_trained(self.model, self.config, best)
        elif best.name != f"checkpoint-{self.state.step}":
            self.reporter.note("the test rows are not measured: the best weights cannot be put into FSDP or DeepSpeed")
            return
        evaluator = self._usable(self._generation(self.materials.test, "predictions-test"))
        self._measure(self.materials.test, "test", evaluator)

    def _measure(self, data: Dataset | None, name: str, evaluator: Evaluator | None) -> Mapping[str, float]:
        metrics = {} if data is None else {f"{name}_loss": self._loss(data)}
        if evaluator is not None and self.is_main:
            self.model.eval()
            found = evaluator(self.model)
            metrics |= {key if name == "validation" else f"{name}_{key}": value for key, value in found.items()}
            self.model.train()
        if metrics and self.is_main:
            self.reporter.measured(self.state.step, metrics)
            self.log.write(self.state.step, metrics)
        self.accelerator.wait_for_everyone()
        return metrics

    def _loss(self, data: Dataset) -> float:
        lengths = [len(row.input_ids) for row in data.rows]
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        shares = in_order(lengths, self.config.evaluation.batch_size, process, processes)
        batches = (pack(data, share, self.accelerator.device) for share in shares)
        return measure_loss(self.accelerator, self.network, batches)


def _is_due(step: int, every: int | None, last: int) -> bool:
    return step == last or (every is not None and step % every == 0)
