"""What happens at the end of a training's steps: validation, and the end of the run where a signal asks for it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import TracebackType
from typing import Any

import torch
from transformers.trainer_callback import TrainerCallback

from onerec.cli import Stopped, signals_to
from onerec.keeper import STOP_SIGNALS, stop_status

_STOPS = (*STOP_SIGNALS, signal.SIGINT)


class Validate(TrainerCallback):
    """Validates with every checkpoint, and after the last step."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        every = self._trainer.options.save_checkpoint_per_step
        if state.global_step % every == 0 or state.global_step == state.max_steps:
            self._trainer.validate()


class StopAfterStep(TrainerCallback):
    """SIGTERM (a cluster takes the node back), SIGHUP and Ctrl-C end the training after the running step, saved.

    A context manager; ``status`` is then the exit status, else 0. The processes of a run agree at every step's end, as
    a signal may reach one of them a step later than the others. A second Ctrl-C ends the program at once.
    """

    def __init__(self, trainer: Any) -> None:
        self.status = 0
        self._trainer = trainer
        self._asked = 0
        self._signals: contextlib.AbstractContextManager[None] | None = None

    def __enter__(self) -> StopAfterStep:
        self._trainer.add_callback(self)
        self._signals = signals_to(self._note, _STOPS)
        self._signals.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._signals.__exit__(None, None, None)
        if error is None and self._asked and not self.status:  # it came when no step was left
            raise (KeyboardInterrupt if self._asked == signal.SIGINT else Stopped(signal.Signals(self._asked).name))

    def _note(self, number: int, frame: object) -> None:
        if number == signal.SIGINT and self._asked:
            raise KeyboardInterrupt
        self._asked = self._asked or number

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        asked = [float(bool(self._asked)), float(self._asked == signal.SIGINT)]
        some, interrupts = self._trainer.reduce(torch.tensor(asked)).tolist()
        if some:
            self.status = stop_status(signal.SIGINT if interrupts else signal.SIGTERM)
            control.should_save = control.should_training_stop = True


def obey_parent_alone(worker: int) -> None:
    """Begin a process that loads rows: it ends by SIGTERM of the training that started it, and by nobody else's.

    torchrun and SLURM send the signals of `StopAfterStep` to all processes of a training, which goes on with its step.
    PyTorch lets such a process die of it, and the training with it before its checkpoint is written.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    threading.Thread(target=_end_at_word_of, args=(os.getppid(),), daemon=True).start()


def _end_at_word_of(parent: int) -> None:
    while signal.sigwaitinfo(_STOPS).si_pid != parent:
        pass
    os._exit(0)
