"""Check files of records against every rule of the format; the exit status is the verdict (0: whole, 2: not).

    python validate.py output/split_data_sft output/sft_*.parquet --sid_spec output/benchmark_data/sid_spec.json

Rules: uuid valid and never twice (over all files given), source not empty, metadata a JSON object, either segments or
messages, known roles, parts of text, SIDs whole and inside their codebooks (with --sid_spec; whole without it). RL data
(verl's columns): prompt turns, a ground truth of SIDs, a user; no user in train.parquet and test.parquet of one
folder. The first bad rows are named, every reason is counted.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from data.mix import KEY_COLUMNS, RecordFile, file_of, sized_batches
from data.sampling import uuid_halves
from onerec.cli import cli
from onerec.errors import InputError
from onerec.files import RL_TEST, RL_TRAIN
from onerec.flags import ArgumentParser
from onerec.parquet import list_parquet, open_parquet
from onerec.records import check_columns, rl_batches, user_id
from onerec.run import progress
from onerec.sid import BEGIN, END, SidSpec

RL_COLUMNS = ("data_source", "prompt", "reward_model", "extra_info")


class SidRule:
    """SIDs in text: every itemic token stands in a whole SID, and every code is inside its codebook."""

    def __init__(self, spec: SidSpec | None) -> None:
        layers = (
            r"(?:<s_[a-h]_\d+>)+"
            if spec is None
            else "".join(rf"<s_{letter}_\d+>" for letter in "abcdefgh"[: spec.n_layers])
        )
        self._whole = re.compile((re.escape(BEGIN) + layers + re.escape(END)).encode())
        self._token = re.compile(rb"<s_[a-h]_\d+>")
        self._tokens = None if spec is None else {token.encode() for token in spec.tokens}

    def __call__(self, text: bytes) -> str | None:
        """None where ``text`` keeps the rule, otherwise the reason."""
        if b"<s_" not in text and b"<|sid_" not in text:
            return None
        if self._tokens is not None:
            outside = set(self._token.findall(text)) - self._tokens
            if outside:
                return "a code outside its codebook"
        rest = self._whole.sub(b"", text)
        return "a SID that is not whole" if self._token.search(rest) or b"<|sid_" in rest else None


class Findings:
    """Bad rows: counted by reason, the first ones named."""

    def __init__(self, show: int) -> None:
        self.reasons: Counter[str] = Counter()
        self.first: list[dict[str, Any]] = []
        self._show = show

    def add(self, file: Path, row: int, uuid: object, reason: str) -> None:
        """Note a bad row."""
        self.reasons[reason] += 1
        if len(self.first) < self._show:
            self.first.append({"file": str(file), "row": row, "uuid": uuid, "reason": reason})


class RecordCheck:
    """The rules of records over many files; keeps 24 bytes a row, for the doubles."""

    def __init__(self, spec: SidSpec | None, findings: Findings) -> None:
        self._sid, self._findings = SidRule(spec), findings
        self._keys: list[np.ndarray] = []
        self._files: list[tuple[Path, int]] = []

    def file(self, file: RecordFile) -> None:
        """Check one file."""
        start, row = sum(rows for _, rows in self._files), 0
        self._files.append((file.path, file.rows))
        for records in sized_batches(file):
            uuids = records.column("uuid")
            for at, reason in enumerate(self._reasons(records), row):
                if reason:
                    self._findings.add(file.path, at, uuids[at - row].as_py(), reason)
            halves, valid = uuid_halves(uuids)
            places = np.arange(len(halves), dtype=np.uint64) + np.uint64(start + row)
            self._keys.append(np.column_stack([halves, places])[valid])  # what is not valid is bad already
            row += len(halves)

    def _reasons(self, records: pa.RecordBatch) -> list[str | None]:
        reasons = check_columns(records)
        for name in ("segments", "messages"):
            for at, text in enumerate(records.column(name).view(pa.binary()).to_pylist()):
                if text is not None and reasons[at] is None:
                    reasons[at] = self._sid(text)
        return reasons

    def doubles(self) -> None:
        """Note every row whose uuid stood before; call it after the last file."""
        keys = np.concatenate([np.empty((0, 3), np.uint64), *self._keys])
        keys = keys[np.lexsort(keys.T[::-1])]
        again = np.sort(keys[1:, 2][(keys[1:, :2] == keys[:-1, :2]).all(1)])
        ends = np.cumsum([rows for _, rows in self._files])
        for place in again.tolist():
            at = int(np.searchsorted(ends, place, side="right"))
            start = int(ends[at]) - self._files[at][1]
            self._findings.add(self._files[at][0], place - start, None, "uuid stands twice")


class RlCheck:
    """The rules of RL data: verl's columns, SIDs as ground truth, no user on both sides of a folder."""

    def __init__(self, spec: SidSpec | None, findings: Findings) -> None:
        self._sid, self._findings = SidRule(spec), findings
        self._users: dict[Path, set[int | str]] = {}

    def file(self, path: Path) -> None:
        """Check one file; its other half, where both were given, must hold other users."""
        users: set[int | str] = set()
        row = 0
        for batch in rl_batches(path, 512):
            for at, value in enumerate(batch, row):
                if reason := self._reason(value):
                    self._findings.add(path, at, value["extra_info"].get("uuid"), reason)
                else:
                    users.add(user_id(value["extra_info"]["uid"]))
            row += len(batch)
        self._users[path] = users
        if path.name in (RL_TRAIN, RL_TEST):
            other = path.with_name(RL_TEST if path.name == RL_TRAIN else RL_TRAIN)
            for uid in sorted(users & self._users.get(other, set()), key=str):
                self._findings.add(path, -1, f"user {uid}", "a user in train and test")

    def _reason(self, row: dict[str, Any]) -> str | None:
        turns, truth = row["prompt"], row["reward_model"].get("ground_truth")
        if not turns or turns[-1]["role"] != "user":
            return "prompt is not a conversation that ends with the user"
        if not truth or not isinstance(truth, str):
            return "ground truth is empty or not text"
        try:
            if user_id(row["extra_info"].get("uid")) is None:
                return "extra_info names no user"
        except ValueError:
            return "extra_info's uid is no id"
        texts = [truth, *(turn["content"] for turn in turns)]
        return next(filter(None, (self._sid(text.encode()) for text in texts)), None)


SHOWN = 10  # bad rows that are named


def validate(paths: Sequence[str], spec: SidSpec | None, show: int) -> tuple[int, Findings]:
    """(rows, findings) of every file that ``paths`` name."""
    findings = Findings(show)
    records, rl, rows = RecordCheck(spec, findings), RlCheck(spec, findings), 0
    files = list(dict.fromkeys(file for path in paths for file in list_parquet(path)))
    for path in progress(files, "validate", unit="file"):
        names = open_parquet(path).schema_arrow.names
        if all(name in names for name in RL_COLUMNS):
            rl.file(path)
        elif all(name in names for name in KEY_COLUMNS):
            records.file(file_of(path))
        else:
            wanted = f"records ({', '.join(KEY_COLUMNS)}) or RL data ({', '.join(RL_COLUMNS)})"
            raise InputError(path, f"has the columns {', '.join(names)}", wanted)
        rows += open_parquet(path).metadata.num_rows
    records.doubles()
    return rows, findings


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("paths", nargs="+", help="Parquet files, folders of them or patterns")
    parser.add_argument("--sid_spec", type=Path, help="sid_spec.json of the SIDs; without it any code is right")
    args = parser.parse_args(argv)
    spec = SidSpec.load(args.sid_spec) if args.sid_spec else None
    rows, findings = validate(args.paths, spec, SHOWN)
    for bad in findings.first:
        print(f"{bad['file']}: row {bad['row']} (uuid {bad['uuid']}): {bad['reason']}")
    if findings.reasons:
        reasons = ", ".join(f"{count} ({reason})" for reason, count in findings.reasons.most_common())
        raise InputError(
            args.paths[0],
            f"{findings.reasons.total():,} of {rows:,} rows break the format: {reasons}",
            "see the rows above",
        )
    print(f"valid: {rows:,} rows")


if __name__ == "__main__":
    cli(main)()
