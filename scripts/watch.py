"""Run one stage of the quickstart: its output goes to a log; a terminal shows one line with a bar and the time left.

    python3 scripts/watch.py 08_posttrain_sft runs/mine 203 "$expected" bash scripts/08_posttrain_sft.sh
    python3 scripts/watch.py --beside 04_evaluate runs/mine 203 "" bash scripts/11_evaluate.sh base

The four words before the command: the stage, the run's folder, the seconds since the run began, and lines
``<stage>:<seconds>`` of what each stage of the profile took where that was measured ("" where nobody did). How far a
stage is comes from the steps and tasks that it prints; only where it prints none from what it is expected to take.
Where neither says it, no time is shown. Elsewhere than on a terminal: a line when the stage begins and one when it
ends. --beside: another stage runs at the same time and has the line, so this one has a word at its end alone. A
finished stage is noted in the run's folder, .done/<stage>; the last lines of a failed stage's log are shown. Exits with
the command's status.
"""

from __future__ import annotations

import dataclasses
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

TAIL = 20  # lines of a failed stage's log that are shown
_BAR, _REDRAW = 16, 0.5  # characters; seconds
_DRAIN = 2.0  # seconds for what a stage's last process still has to say
_TRAIN = re.compile(r"step (\d+)/(\d+)  (loss [\d.]+).* (\d+):(\d\d) left$")
_VERL = re.compile(r"Training Progress: .*\| (\d+)/(\d+) \[")
_VERL_METRIC = re.compile(
    r"\bstep:\d+ .*? (?:actor/distillation/(loss)|onerec/all/(reward)):(?:np\.float64\()?([-\d.e]+)"
)
_TASKS = re.compile(r"  tasks to run = (.+)")
_RESULT = re.compile(r"(\w+)(?: {2,}(\w+))? +([\w@]+ [\d.]+)  .*\([\d,]+ samples, ")
_ROWS = re.compile(r"[^+:]+: ([\d,]+)/([\d,]+) \w+, ")


@dataclasses.dataclass
class Said:
    """What a stage has printed of itself: how far it is (0 to 1), the seconds that this leaves, its last number."""

    share: float | None = None
    metric: str = ""
    _began: float = 0.0
    _first: float = 0.0
    _left: float | None = None
    _at: float = 0.0
    _tasks: int = 0
    _done: int = 0

    def read(self, line: str, now: float) -> None:
        """Take in one line, printed at ``now`` (seconds of a clock)."""
        if found := _TRAIN.search(line):
            self._reached(int(found[1]) / int(found[2]), now)
            self.metric, self._left = found[3], 60.0 * int(found[4]) + int(found[5])
        elif found := _VERL.search(line):
            self._reached(int(found[1]) / max(int(found[2]), 1), now)
        elif found := _VERL_METRIC.search(line):
            self.metric = f"{found[1] or found[2]} {float(found[3]):.4f}"
        elif found := _TASKS.match(line):
            self._tasks += len(found[1].split(","))
            self._reached(self._done / self._tasks, now)
        elif found := _RESULT.match(line):
            recall = re.search(r"recall@10 [\d.]+", line)
            self.metric = " ".join(filter(None, (found[1], found[2], recall[0] if recall else found[3])))
            self._done += 1
            if self._tasks:
                self._reached(min(self._done / self._tasks, 1), now)
        elif self._tasks and (found := _ROWS.match(line)):
            part = int(found[1].replace(",", "")) / max(int(found[2].replace(",", "")), 1)
            self._reached(min((self._done + part) / self._tasks, 1), now)

    def _reached(self, share: float, now: float) -> None:
        if self.share is None or share < self.share:  # the first, or another training in the same stage
            self._began, self._first = now, share
        done = share - self._first
        self._left = (now - self._began) * (1 - share) / done if done > 0 else None
        self.share, self._at = share, now

    def left(self, now: float) -> float | None:
        """Seconds until the last step; None where the stage has not said enough."""
        return None if self._left is None else max(self._left - (now - self._at), 0.0)


@dataclasses.dataclass
class Plan:
    """What the stages of a run are expected to take: ``measured`` elsewhere, ``done`` here, both in seconds."""

    measured: dict[str, float]
    done: dict[str, float]

    @classmethod
    def of(cls, text: str, folder: Path) -> Plan:
        """From lines ``<stage>:<seconds>`` and the files of ``folder``, one a finished stage."""
        pairs = (line.split(":") for line in text.split())
        done = {path.name: float(path.read_text() or 0) for path in folder.glob("[0-9]*_*")}
        return cls({name: float(seconds) for name, seconds in pairs}, done)

    def expected(self, name: str) -> float | None:
        """Seconds of a stage on this machine: as measured, times how much slower the finished ones were here."""
        both = [stage for stage in self.measured if stage in self.done]
        if name not in self.measured or not both:
            return None
        # The first stages are short and say little, so that a twentieth of the whole is taken to be as measured.
        some = sum(self.measured.values()) / 20
        here, there = (sum(times[stage] for stage in both) for times in (self.done, self.measured))
        return self.measured[name] * (here + some) / (there + some)

    def left(self, name: str, said: Said, passed: float, now: float) -> tuple[float | None, float | None]:
        """Seconds left of the stage and of the whole run; None for what nobody knows. ``passed``: since it began."""
        own, expected = said.left(now), self.expected(name)
        if own is None and expected is not None and passed < expected:
            own = expected - passed
        to_come = [self.expected(stage) for stage in self.measured if stage not in self.done and stage != name]
        known = own is not None and expected is not None and None not in to_come
        return own, own + sum(to_come) if known else None


def clock(seconds: float) -> str:
    """``1:05``, ``1:01:05``."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def about(seconds: float) -> str:
    """A time that is not known to the second."""
    return f"about {seconds / 60:.0f} min left" if seconds >= 100 else f"about {max(round(seconds, -1), 10):.0f} s left"


class Display:
    """What a person sees of a stage: a line that is drawn over and over, or, off a terminal, its begin and its end."""

    def __init__(self, name: str, plan: Plan, before: int, beside: bool = False) -> None:
        self.name, self.plan, self.before, self.beside = name, plan, before, beside
        self.live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self.said, self.began = Said(), time.monotonic()
        if not self.live and not beside:
            print(f"== {name}", flush=True)

    def passed(self) -> float:
        """Seconds since the stage began."""
        return time.monotonic() - self.began

    def draw(self) -> None:
        """The line as it is now."""
        if not self.live or self.beside:
            return
        now, passed = time.monotonic(), self.passed()
        stage, run = self.plan.left(self.name, self.said, passed, now)
        share, expected = self.said.share, self.plan.expected(self.name)
        if share is None and expected:
            share = min(passed / expected, 0.99)
        left = f"{about(run)} in all" if run is not None else f"{about(stage)} of this" if stage is not None else ""
        # A block that moves says that the stage is alive, and nothing of how far it is.
        bar = "." * (int(passed) % _BAR) + "#" if share is None else "#" * int(share * _BAR)
        self._print(bar, passed, left)

    def _print(self, bar: str, passed: float, *texts: str, end: str = "") -> None:
        line = f"{self.name:<17} [{bar:.<{_BAR}}] {clock(passed):>7}"
        line = "  ".join(filter(None, (line, self.said.metric, *texts)))
        width = shutil.get_terminal_size().columns - 1
        sys.stdout.write(f"\r\x1b[K{line[:width]}{end}")
        sys.stdout.flush()

    def end(self, status: int, interrupted: bool, log: Path) -> None:
        """The last word on a stage: what it took, or the end of its log."""
        passed = self.passed()
        if self.live:
            word = "stopped" if interrupted else "failed" if status else ""
            self._print("#" * _BAR if not status else "", passed, word, end="\n")
        if status and not interrupted:
            print("\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]), flush=True)
        elif not status and not self.live:
            print(f"== {self.name}: {passed:.0f} s, {self.before + passed:.0f} s in all", flush=True)


def run(command: Sequence[str], log: Path, display: Display) -> int:
    """Run ``command`` with its output in ``log``; its status, as a shell gives it."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0)
    output, rest, ended = process.stdout.fileno(), "", None
    with open(log, "wb", buffering=0) as file:
        while ended is None or time.monotonic() - ended < _DRAIN:
            if ended is None and process.poll() is not None:
                ended = time.monotonic()
            if select.select([output], [], [], _REDRAW if ended is None else 0.1)[0]:
                chunk = os.read(output, 1 << 16)
                if not chunk:
                    break
                file.write(chunk)
                *lines, rest = re.split(r"[\r\n]", rest + chunk.decode("utf-8", "replace"))
                for line in lines:
                    display.said.read(line, time.monotonic())
            display.draw()
    status = process.wait()
    return status if status >= 0 else 128 - status


def main() -> None:
    beside = sys.argv[1] == "--beside"
    name, run_dir, before, expected, *command = sys.argv[2 if beside else 1 :]
    log = Path(run_dir) / "logs" / f"{name}.log"
    signals: list[int] = []
    # What ends the run reaches the stage by its keeper; this process writes down what the stage says at its end.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: signals.append(number))
    display = Display(name, Plan.of(expected, Path(run_dir) / ".done"), int(before), beside)
    status = run(command, log, display)
    if not status:
        note = Path(run_dir) / ".done" / name
        note.with_suffix(".new").write_text(f"{display.passed():.0f}\n")
        note.with_suffix(".new").replace(note)
    display.end(status, bool(signals), log)
    sys.exit(status)


if __name__ == "__main__":
    main()
