"""`transformers.Trainer` for packed rows: loss by learnt tokens, itemic and text apart, whole checkpoints."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Trainer, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from onerec.errors import InputError
from onerec.folders import disk_errors, replace_folder
from onerec.model_folder import loading, read_object
from onerec.run import get_logger, seed_everything, write_json
from pretrain import checkpoint
from pretrain.callbacks import Validate, obey_parent_alone
from pretrain.checkpoint import LOG, OLDER, VALIDATION_LOG
from pretrain.dataset import PackedDataset, collate
from pretrain.flops import step_flops
from pretrain.masters import MasterAdamW
from pretrain.model import PackedLM
from pretrain.reports import Curves, LossSums, log_line
from pretrain.saving import Saver, flush
from pretrain.sharding import FSDP_FOLDER, Whole

log = get_logger("train")


def lr_factor(step: int, total: int, warmup: int, floor: float, kind: str) -> float:
    """Learning rate of optimizer step ``step`` (from 0) as a share of the peak.

    Rises linearly over ``warmup`` steps, then falls to ``floor`` at the last step by a half cosine or a line, or stays.
    """
    if step < warmup:
        return (step + 1) / warmup
    if kind == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total - 1 - warmup))
    shape = 0.5 * (1 + math.cos(math.pi * done)) if kind == "cosine" else 1 - done
    return floor + (1 - floor) * shape


def weight_decay_groups(model: PackedLM, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: matrices decay; norms, biases, embedding and head rows do not."""
    rows = {id(model.embedding), id(model.head), id(model.itemic_in), id(model.itemic_out)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [p for p in trained if p.ndim >= 2 and id(p) not in rows]
    rest = [p for p in trained if p.ndim < 2 or id(p) in rows]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class PackedTrainer(Trainer):
    """Trains a `PackedLM` on a `PackedDataset`.

    Args:
        model, dataset: as named. args: transformers' arguments. options: the command line of ``train.py``.
        itemic_range: (first, last) itemic id, for the two losses; None counts every token as text.
        run: what identifies this run; written into checkpoints. validation: rows held out, or None.
        peak_flops: operations a second of all processes' devices together, for MFU; None leaves it out.
        sharding: how the processes share weights and optimizer.
    """

    def __init__(
        self,
        model: PackedLM,
        dataset: PackedDataset,
        args: TrainingArguments,
        options: Any,
        itemic_range: tuple[int, int] | None,
        run: dict[str, Any],
        validation: PackedDataset | None,
        peak_flops: float | None,
        sharding: Whole,
    ) -> None:
        super().__init__(model=model, args=args, train_dataset=dataset, data_collator=collate)
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        self.model_accepts_loss_kwargs = True  # the loss is a sum; `compute_loss` divides it by the learnt tokens
        self.options, self.itemic_range, self.run = options, itemic_range, run
        self.validation, self.peak_flops, self.sharding = validation, peak_flops, sharding
        self.sharding.wrap(self.model, args.device)
        if self.accelerator.ddp_handler:  # else its buckets are a second copy of the gradients
            self.accelerator.ddp_handler.gradient_as_bucket_view = True
        self.sums = LossSums(dataset.samples.source_names, itemic_range)
        self.curves, self.saver = Curves(args.output_dir), Saver()
        if validation is not None:
            self.add_callback(Validate(self))
        self.tokens_seen = 0
        self._flops = 0.0  # of this process since the last report
        self._clock: float | None = None
        self._started: tuple[float, int] | None = None

    # Data, optimizer, schedule.

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """The dataset is the plan of the run, so rows come in its order."""
        names = ("num_workers", "pin_memory", "persistent_workers")
        how = {name: getattr(self.args, f"dataloader_{name}") for name in names}
        how |= {"collate_fn": collate, "worker_init_fn": obey_parent_alone}
        return self.accelerator.prepare(torch.utils.data.DataLoader(self.train_dataset, **how))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            model = self.accelerator.unwrap_model(self.model)
            groups = weight_decay_groups(model, self.options.weight_decay)
            betas = (self.options.beta1, self.options.beta2)
            how = {"lr": self.args.learning_rate, "betas": betas, "fused": True}
            masters = model.masters
            self.optimizer = MasterAdamW(groups, masters, **how) if masters else torch.optim.AdamW(groups, **how)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Warm-up, then the schedule with its floor (`lr_factor`)."""
        if self.lr_scheduler is None:
            options = self.options
            shape = (options.num_warmup_steps, options.min_lr / options.learning_rate, options.lr_scheduler_type)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, lambda step: lr_factor(step, num_training_steps, *shape)
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # Loss.

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Sum of the losses over the learnt tokens of the whole optimizer step, all processes together."""
        source = inputs.pop("source")
        outputs = model(**inputs)
        self.sums.add(outputs, inputs, source)
        if self.peak_flops:
            self._flops += self._row_flops(inputs, len(outputs["losses"]))
        # Gradients are averaged over the processes, so the share of each is scaled up by their number.
        loss = outputs["loss_sum"] * self.accelerator.num_processes / max(1, int(num_items_in_batch))
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One row, forward and backward; stops the run where the loss is no number."""
        if self._clock is None:
            self._clock = time.perf_counter()
            self._started = (self._clock, self.state.global_step)
        self.saver.check()
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            self._stop_at_nan("the loss of step {} is", self.state.global_step + 1)
        return loss

    def _stop_at_nan(self, what: str, step: int) -> None:
        rows = self.args.gradient_accumulation_steps * self.args.world_size
        places = range((step - 1) * rows, min(len(self.train_dataset), step * rows))
        sources = sorted({name for place in places for name in self.train_dataset.sources(place)})
        self.saver.wait()
        good = checkpoint.whole_checkpoints(self.args.output_dir)
        what = f"{what.format(step)} not a number (sources in the batch: {', '.join(sources)})"
        right = "lower --learning_rate or raise --num_warmup_steps"
        # A run of another rate does not go on from checkpoints of this one.
        saved = f", with --overwrite; the last good checkpoint is {good[-1][1]}" if good else "; nothing was saved"
        raise InputError(self.args.output_dir, what, right + saved)

    def _row_flops(self, inputs: dict[str, Any], learnt: int) -> float:
        model = self.accelerator.unwrap_model(self.model)
        config, rows = model.lm.config, model.rows
        lengths = inputs["cu_seq_lens_q"].diff().tolist()
        trained = config.vocab_size if rows is None else rows[1] - rows[0]
        return step_flops(config, lengths, learnt, trained, frozen=rows is not None)

    def _clip_grad_norm(self, model: Any) -> Any:
        if isinstance(self.optimizer.optimizer, MasterAdamW):  # the others' gradients are float32, or DeepSpeed clips
            return self.optimizer.optimizer.clip(self.args.max_grad_norm or math.inf)
        return super()._clip_grad_norm(model)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        if grad_norm is None and isinstance(self.optimizer.optimizer, MasterAdamW):
            grad_norm = self._clip_grad_norm(model)
        norm = super()._get_grad_norm(model, grad_norm)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def reduce(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of all processes' ``values``."""
        if self.accelerator.num_processes == 1:
            return values
        return self.accelerator.reduce(values.to(self.args.device), "sum")

    # Validation and log.

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        """Losses of the rows held out, over all processes; logged and written to ``validation_log.jsonl``."""
        began, model = time.perf_counter(), self.accelerator.unwrap_model(self.model)
        sums = LossSums(self.validation.samples.source_names, self.itemic_range)
        model.eval()
        rows = len(self.validation)
        # Under shards every process takes part in every forward pass, so those without a row run one that does not
        # count.
        for first in range(0, rows, self.args.world_size):
            row = first + self.args.process_index
            inputs = self._prepare_inputs(collate([self.validation[min(row, rows - 1)]]))
            source = inputs.pop("source")
            with self.compute_loss_context_manager():
                outputs = model(**inputs)
            if row < rows:
                sums.add(outputs, inputs, source)
        model.train()
        values = {"step": self.state.global_step, **sums.report(self.reduce), "seconds": time.perf_counter() - began}
        if self._clock is not None:  # the rate of training does not count it
            self._clock += values["seconds"]
        if self.is_world_process_zero():
            sources = "  ".join(f"{name} {loss:.4f}" for name, loss in values["loss_by_source"].items())
            log.info(f"validation at step {values['step']}: loss {values['loss']:.4f}  {sources}")
            with disk_errors(Path(self.args.output_dir)):
                self.curves.write(values, VALIDATION_LOG, "validation")
        return values

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Report the steps since the last report; transformers' own summaries at the end are left out."""
        if "learning_rate" not in logs:
            return
        losses = self.sums.report(self.reduce)
        self.sums.clear()
        tokens = losses.pop("all_tokens")
        self.tokens_seen += tokens
        now = time.perf_counter()
        seconds, (started, first_step) = max(1e-9, now - self._clock), self._started
        step, total = self.state.global_step, self.state.max_steps
        values = {
            "step": step,
            **losses,
            "grad_norm": float(logs["grad_norm"]) if logs.get("grad_norm") is not None else None,
            "learning_rate": logs["learning_rate"],
            "tokens": self.tokens_seen,
            "tokens_per_second": tokens / seconds,
            "mfu": self._mfu(seconds),
            "seconds": now - started,
            "seconds_left": (now - started) / max(1, step - first_step) * (total - step),
        }
        self._clock = now
        if self.is_world_process_zero():
            log.info(log_line(values, total))
            with disk_errors(Path(self.args.output_dir)):
                self.curves.write(values, LOG, "train")

    def _mfu(self, seconds: float) -> float | None:
        if not self.peak_flops:
            return None
        done = float(self.reduce(torch.tensor([self._flops], dtype=torch.float64))[0])
        self._flops = 0.0
        return done / seconds / self.peak_flops

    # Checkpoints.

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers' own; however it ends, no checkpoint is left half written."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self.saver.wait()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Copy the training's state; it is written while the training goes on, and appears when all of it is there."""
        self._check_finite()
        self.saver.wait()
        output_dir, step = Path(self.args.output_dir), self.state.global_step
        temporary, final = output_dir / f".step{step}.tmp", checkpoint.checkpoint_dir(output_dir, step)
        with self._becomes(temporary, final):
            write = self._begin_checkpoint(temporary / final.name)

        def finish() -> None:
            with self._becomes(temporary, final):
                write()
                if self.is_world_process_zero():
                    flush(temporary)
                    replace_folder(temporary, final.parent)
                    checkpoint.keep_newest(output_dir, self.options.keep_checkpoints, step)

        self.saver.start(finish)

    @contextlib.contextmanager
    def _becomes(self, temporary: Path, final: Path) -> Iterator[None]:
        """Raise full disks as `InputError` that name ``final``, and leave nothing of ``temporary`` then."""
        try:
            with disk_errors(final):
                yield
        except BaseException:
            if self.is_world_process_zero():
                shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _check_finite(self) -> None:
        """Stop at weights that are no numbers, before they push out a good checkpoint; a loss may hide them."""
        bad = 0
        for parameter in self.accelerator.unwrap_model(self.model).parameters():
            part = getattr(parameter, "ds_tensor", parameter)  # ZeRO-3 keeps its part there
            local = part.to_local() if hasattr(part, "to_local") else part
            bad += int(parameter.requires_grad and not bool(torch.isfinite(local.sum())))
        if float(self.reduce(torch.tensor([float(bad)]))[0]):
            self._stop_at_nan("the weights after step {} are", self.state.global_step)

    def _begin_checkpoint(self, folder: Path) -> Callable[[], None]:
        """Write what is small, copy what is large; returns what writes the copy."""
        first = self.is_world_process_zero()
        if first:
            shutil.rmtree(folder.parent, ignore_errors=True)
            folder.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        sums = self.reduce(self.sums.values).tolist()
        write = self.sharding.save(self, folder) if self.sharding.name else self._copy_whole(folder)
        self._save_rng_state(str(folder))
        if first:
            torch.save(self.lr_scheduler.state_dict(), folder / SCHEDULER_NAME)
            self.state.save_to_json(str(folder / checkpoint.TRAINER_STATE))
            write_json(folder / checkpoint.LOSS_STATE, {"sums": sums, "tokens_seen": self.tokens_seen})
            write_json(folder / checkpoint.RUN, self.run)
        else:
            flush(folder)
        self.accelerator.wait_for_everyone()
        return write

    def _copy_whole(self, folder: Path) -> Callable[[], None]:
        """Every process has the same, so the first one writes it."""
        if not self.is_world_process_zero():
            return lambda: None
        model = self.accelerator.unwrap_model(self.model)
        state = self.saver.copy({"model": model.state(), "optimizer": self.optimizer.state_dict()})

        def write() -> None:
            save_file(state["model"], folder / checkpoint.WEIGHTS, metadata={"format": "pt"})
            torch.save(state["optimizer"], folder / OPTIMIZER_NAME)

        return write

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        if not (resume_from_checkpoint and self._reads_shards(resume_from_checkpoint)):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        # Shards are read into a model and an optimizer as they train.
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        folder = Path(resume_from_checkpoint)
        self.sharding.load(self, folder)
        self._load_state(self.lr_scheduler, folder / SCHEDULER_NAME)
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        self._load_from_checkpoint(resume_from_checkpoint)
        return prepared

    def _load_callback_state(self) -> None:
        super()._load_callback_state()
        self.state.compute_steps(self.args, self.args.max_steps)  # intervals of this command, not the checkpoint's

    def _reads_shards(self, folder: str | Path) -> bool:
        """Whether a checkpoint is in shards; a run that shares nothing goes on from FSDP2's too."""
        return bool(self.sharding.name) or (Path(folder) / FSDP_FOLDER).is_dir()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        # transformers names the CPU that several processes share cpu:0, a place that torch.load does not know.
        device = self.args.device
        place = device if self.args.world_size > 1 and device.type != "cpu" else "cpu"
        for part, name in ((self.optimizer, OPTIMIZER_NAME), (self.lr_scheduler, SCHEDULER_NAME)):
            self._load_state(part, Path(checkpoint) / name, place)

    def _load_state(self, part: Any, path: Path, place: Any = "cpu") -> None:
        """Load an optimizer's or schedule's state, which must be of the checkpoint's step and of these parameters."""
        with loading(path, OLDER):
            part.load_state_dict(torch.load(path, map_location=place, weights_only=True))
            kept = part.state.items() if part is self.optimizer else ()
            steps = [int(state["step"]) for _, state in kept] or [getattr(part, "last_epoch", 0)]
            if max(steps) != checkpoint.step_of(path.parent):
                raise ValueError(f"it is of step {max(steps)}")
            if any(state["exp_avg"].shape != parameter.shape for parameter, state in kept):
                raise ValueError("it is of other parameters")

    def _load_rng_state(self, resume: str | None) -> None:
        if resume and read_object(Path(resume) / checkpoint.RUN).get("world_size") != self.args.world_size:
            seed_everything(self.args.seed + self.state.global_step)  # those of other processes are of no use
            return
        with loading(f"{resume}: its random states", OLDER):
            super()._load_rng_state(resume)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        if not self._reads_shards(folder):
            self.accelerator.unwrap_model(self.model).load_weights(checkpoint.read_weights(folder))
        with loading(folder / checkpoint.LOSS_STATE, OLDER):
            state = read_object(folder / checkpoint.LOSS_STATE)
            self.tokens_seen = int(state["tokens_seen"])
            if self.is_world_process_zero():
                sums = torch.tensor(state["sums"], dtype=torch.float64)
                self.sums.values = sums.reshape(self.sums.values.shape)
