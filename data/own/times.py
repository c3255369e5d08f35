"""Times of a log: numbers since 1970 (in seconds, milliseconds, microseconds, nanoseconds), dates, ISO text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from onerec.errors import InputError
from onerec.parquet import plain

# Up to which number since 1970 a time is in a unit: seconds until 5138; as milliseconds it would be before 1973.
UNITS = {"seconds": 1e11, "milliseconds": 1e14, "microseconds": 1e17, "nanoseconds": 1e20}
PER_SECOND = {"seconds": 1, "milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}
DATES = "dates"
# Below it a number says no unit: it may be a counter, or a time that is missing.
UNSAID = 1e8
_NUMBER = r"^\s*[+-]?\d+(\.\d*)?([eE][+-]?\d+)?\s*$"
RIGHT = "ISO dates, or seconds, milliseconds or microseconds since 1970"


class Clock:
    """Reads the times of one log and remembers their kind; several kinds are refused, with a time of each."""

    def __init__(self) -> None:
        self.kinds: dict[str, str] = {}  # kind to where it was found first

    def read(self, values: pa.Array | pa.ChunkedArray, path: Path, name: str) -> np.ndarray:
        """float64 [n]: times as the log counts them, dates in seconds; NaN where there is none that can be read.

        Raises `InputError` where the column, or a column read before, has times of another kind.
        """
        values = plain(values)
        kind = values.type
        if pa.types.is_temporal(kind) and not (pa.types.is_time(kind) or pa.types.is_duration(kind)):
            found = _seconds(pd.Series(values.cast(pa.timestamp("us")).to_pandas()))
            self._note(DATES, ~np.isnan(found), found, path, name)
        elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            found = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).copy()
            self._numbers(found, path, name)
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind):
            found = self._text(values.cast(pa.string()), path, name)
        else:
            raise InputError(path, f"column {name} is {kind}", RIGHT)
        return found

    def _text(self, values: pa.Array, path: Path, name: str) -> np.ndarray:
        found = np.full(len(values), np.nan)
        number = pc.match_substring_regex(values, _NUMBER).fill_null(False).to_numpy(zero_copy_only=False)
        if number.any():
            text = pc.utf8_trim_whitespace(values.filter(pa.array(number)))
            found[number] = text.cast(pa.float64()).to_numpy(zero_copy_only=False)
            self._numbers(found, path, name)
        rest = ~number & values.is_valid().to_numpy(zero_copy_only=False)
        if rest.any():
            text = values.filter(pa.array(rest))
            zoned = pc.replace_substring_regex(text, r"\s*(UTC|GMT)\s*$", "Z").to_pandas()
            found[rest] = _seconds(pd.to_datetime(zoned, format="ISO8601", utc=True, errors="coerce"))
            self._note(DATES, rest & ~np.isnan(found), values, path, name)
            if np.isnan(found).all():
                raise InputError(path, f"column {name}: {text[0].as_py()} cannot be read as a time", RIGHT)
        return found

    def _numbers(self, found: np.ndarray, path: Path, name: str) -> None:
        size, low = np.abs(found), UNSAID
        found[~np.isfinite(found)] = np.nan
        for unit, high in UNITS.items():
            self._note(unit, (size >= low) & (size < high), found, path, name)
            low = high

    def _note(self, kind: str, where: np.ndarray, values: np.ndarray | pa.Array, path: Path, name: str) -> None:
        if not where.any():
            return
        value = values[int(np.flatnonzero(where)[0])]
        shown = value.as_py() if isinstance(value, pa.Scalar) else f"{value:.0f}"
        self.kinds.setdefault(kind, f"{kind} ({shown} in {path})")
        if len(self.kinds) > 1:
            raise InputError(path, f"column {name}: times are {' and '.join(self.kinds.values())}", "one kind for all")

    def moment(self, text: str) -> float:
        """A moment of a flag, as the log counts; raises `InputError` where it is none of the log's kind."""
        try:
            number = float(text)
        except ValueError:
            number = np.nan
        if np.isnan(number) and not self.kinds:
            what = "is no number, as the times of the logs are, which have no unit"
            raise InputError("--split_time", f"{text} {what}", "a number of theirs")
        if np.isnan(number) or (self.kinds and abs(number) < UNSAID):  # 2024 is a year
            seconds = _seconds(pd.Series(pd.to_datetime([text], format="ISO8601", utc=True, errors="coerce")))[0]
            number = seconds * PER_SECOND.get(next(iter(self.kinds), DATES), 1)
        if not np.isfinite(number):
            raise InputError("--split_time", f"is {text}", RIGHT)
        return number

    def shown(self, time: float) -> str:
        """A time of the log for a message."""
        kind = next(iter(self.kinds), "")
        seconds = time / PER_SECOND.get(kind, 1)
        return str(pd.Timestamp(seconds, unit="s").floor("s")) if kind else f"{time:g}"


def _seconds(times: pd.Series) -> np.ndarray:
    """Seconds since 1970, float64, to the microsecond; a time without a zone is UTC's; NaN for none."""
    if times.dt.tz is not None:
        times = times.dt.tz_convert("UTC").dt.tz_localize(None)
    whole = times.to_numpy("datetime64[us]")
    found = whole.astype(np.int64) / 1e6
    found[np.isnat(whole)] = np.nan
    return found
