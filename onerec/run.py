"""Run directories: atomic outputs, manifests, progress lines and logging, the same for every stage."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlparse

from onerec import __version__
from onerec.errors import InputError
from onerec.folders import MANIFEST, atomic_path

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
WARNINGS = "warnings"  # of a manifest


def processes() -> tuple[int, int]:
    """(rank, processes) under torchrun; (0, 1) without."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def own_code_first() -> None:
    """What this process starts runs this clone's code as well; says so where the environment is another clone's.

    ``scripts/entry.sh`` does the same for shell scripts, and says it for all that they start.
    """
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if path[0] != str(ROOT):
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, path)])
    if os.environ.get("ONEREC_CODE") != str(ROOT):
        os.environ["ONEREC_CODE"] = str(ROOT)
        if (other := _installed_from()) not in (None, ROOT):
            print(f"code: {ROOT} (the environment was installed from {other})", flush=True)


def _installed_from() -> Path | None:
    """The clone that this environment's editable install points at, if any."""
    for found in importlib.metadata.distributions(name="onerec-factory"):
        if text := found.read_text("direct_url.json"):
            return Path(unquote(urlparse(json.loads(text)["url"]).path))
    return None


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and, where it is already imported, torch."""
    import numpy as np

    random.seed(seed)
    np.random.seed(seed % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


class _StdoutHandler(logging.StreamHandler):
    """Writes to whatever ``sys.stdout`` is when a line comes, so that a redirected output is followed."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self):  # type: ignore[override]
        return sys.stdout


def get_logger(name: str) -> logging.Logger:
    """A logger that writes ``HH:MM:SS name: message`` lines to standard output, once per process."""
    logger = logging.getLogger(name)
    if not logger.handlers:
        handler = _StdoutHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.setLevel(os.environ.get("ONEREC_LOG_LEVEL", "INFO"))
        logger.propagate = False
    return logger


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        # Half a surrogate pair (a cut emoji) has no UTF-8; the escape that it becomes is JSON's own.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented UTF-8 JSON, atomically; paths become strings."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file; raises `InputError` where it is missing or does not parse."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(path, "no such file", "give the path of a JSON file") from None
    except (ValueError, RecursionError) as error:
        raise InputError(path, f"is not JSON ({error})", "give a UTF-8 JSON file") from None


def read_json_lines(path: str | os.PathLike[str], right: str) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; raises `InputError` (with what would be ``right``) where it is not one.

    A line ends at a line feed alone: texts may hold the others that Unicode has (U+2028, U+0085), which JSON leaves as
    they are.
    """
    lines = []
    try:
        for number, line in enumerate(Path(path).read_bytes().split(b"\n"), 1):
            lines += [json.loads(line)] if line.strip() else []
            if lines and not isinstance(lines[-1], dict):
                raise InputError(path, f"line {number} is no JSON object", right)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(path, "no such file", right) from None
    except (ValueError, RecursionError):
        raise InputError(path, f"line {number} is not JSON", right) from None
    return lines


def say_warning(text: str) -> None:
    """One line on standard error, as errors have it; the exit status stays 0."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


class Manifest:
    """What a stage did, written as ``manifest.json`` beside its output when it has finished.

    Holds arguments, input paths and row counts, output row counts, dropped rows by reason, seed, version, seconds and
    warnings. `drop` counts a bad row; `check_bad_ratio` fails the run when too many were dropped; `warn` says what
    failed nothing and yet makes the result doubtful.
    """

    def __init__(self, stage: str, args: Any = None, seed: int | None = None) -> None:
        values = dict(vars(args)) if hasattr(args, "__dict__") else dict(args or {})
        self.stage, self.seed = stage, values.get("seed") if seed is None else seed
        self.args = {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
        self.inputs: dict[str, int | None] = {}
        self.outputs: dict[str, int | None] = {}
        self.dropped: Counter[str] = Counter()
        self.extra: dict[str, Any] = {}
        self._start = time.monotonic()

    def input(self, path: object, rows: int | None = None) -> None:
        """Note an input file and its row count."""
        self.inputs[str(path)] = rows

    def output(self, path: object, rows: int | None = None) -> None:
        """Note an output file and its row count."""
        self.outputs[str(path)] = rows

    def drop(self, reason: str, count: int = 1) -> None:
        """Count ``count`` bad rows dropped for ``reason``."""
        if count:
            self.dropped[reason] += count

    def dropped_text(self) -> str:
        """Dropped rows by reason, for the last line that a stage prints."""
        if not self.dropped:
            return "dropped 0"
        return "dropped " + ", ".join(f"{count} ({reason})" for reason, count in self.dropped.most_common())

    def warn(self, what: str, right: str) -> None:
        """Note a warning, which the report repeats, and say it on standard error: ``warning: <what>; <right>``."""
        self.extra.setdefault(WARNINGS, []).append(f"{what}; {right}")
        say_warning(self.extra[WARNINGS][-1])

    def check_bad_ratio(self, file: object, bad: int, total: int, max_bad_ratio: float) -> None:
        """Raise `InputError` when more than ``max_bad_ratio`` of ``total`` rows of ``file`` were bad."""
        if total and bad / total > max_bad_ratio:
            raise InputError(
                file,
                f"{bad} of {total} rows are bad ({self.dropped_text()})",
                f"at most {max_bad_ratio:.2%} may be (--max_bad_ratio)",
            )

    def as_dict(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "version": __version__,
            "seed": self.seed,
            "args": self.args,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "dropped": dict(sorted(self.dropped.items())),
            **self.extra,
            "seconds": round(time.monotonic() - self._start, 3),
        }

    def write(self, folder: str | os.PathLike[str], name: str = MANIFEST, whole_folder: bool = False) -> Path:
        """Write the manifest into ``folder`` and return its path.

        ``whole_folder``: all that is in the folder is the stage's, which may replace it another time
        (`onerec.folders.made_by`).
        """
        path = Path(folder) / name
        if whole_folder:
            self.extra["files"] = sorted(os.listdir(folder))
        write_json(path, self.as_dict())
        return path


def progress(
    items: Iterable[T], label: str, total: int | None = None, unit: str = "row", size=lambda item: 1, every: float = 5.0
) -> Iterator[T]:
    """Pass ``items`` through and report rate and time left on standard error.

    On a terminal a tqdm bar; in a log file one line at most every ``every`` seconds, and nothing for what takes
    under two seconds. ``size(item)`` says how many units an item counts for.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, desc=label, unit=unit) as bar:
            for item in items:
                yield item
                bar.update(size(item))
        return
    start = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += size(item)
        now = time.monotonic()
        if now - last >= every or (now - start >= 2 and last == start):
            last = now
            rate = done / max(now - start, 1e-9)
            left = f", {(total - done) / rate:.0f} s left" if total and rate else ""
            share = f"{done:,}/{total:,}" if total else f"{done:,}"
            print(f"{label}: {share} {unit}s, {rate:,.0f} {unit}s/s{left}", file=sys.stderr, flush=True)
