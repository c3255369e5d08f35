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
from onerec.sid import ANY_SID, ITEM_TOKEN, MARK_START, SidSpec

SHOWN = 10  # bad rows that are named
RL_COLUMNS = ("data_source", "prompt", "reward_model", "extra_info")


class SidRule:
    """SIDs in text: every itemic token stands in a whole SID, and every code is inside its codebook."""

    def __init__(self, spec: SidSpec | None) -> None:
        self._whole = re.compile((spec.pattern.pattern if spec else ANY_SID).encode())
        self._token = re.compile(ITEM_TOKEN.encode())
        self._tokens = {token.encode() for token in spec.tokens} if spec else None

    def __call__(self, text: bytes) -> str | None:
        """None where ``text`` keeps the rule, otherwise the reason."""
        if self._tokens is not None and set(self._token.findall(text)) - self._tokens:
            return "a code outside its codebook"
        rest = self._whole.sub(b"", text)
        return "a SID that is not whole" if self._token.search(rest) or MARK_START.encode() in rest else None


class Findings:
    """Bad rows: counted by reason, the first ones named."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.first: list[str] = []

    def add(self, file: Path, row: int, uuid: object, reason: str) -> None:
        """Note a bad row."""
        self.reasons[reason] += 1
        if len(self.first) < SHOWN:
            self.first.append(f"{file}: row {row} (uuid {uuid}): {reason}")


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
            for at, reason in enumerate(self._reasons(records)):
                if reason:
                    self._findings.add(file.path, row + at, uuids[at].as_py(), reason)
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
            path, rows = self._files[at := int(np.searchsorted(ends, place, side="right"))]
            self._findings.add(path, place - int(ends[at]) + rows, None, "uuid stands twice")


class RlCheck:
    """The rules of RL data: verl's columns, SIDs as ground truth, no user on both sides of a folder."""

    def __init__(self, spec: SidSpec | None, findings: Findings) -> None:
        self._sid, self._findings = SidRule(spec), findings
        self._users: dict[Path, set[int | str]] = {}

    def file(self, path: Path) -> None:
        """Check one file; its other half, where both were given, must hold other users."""
        users = self._users.setdefault(path, set())
        for row, value in enumerate(value for batch in rl_batches(path, 512) for value in batch):
            if reason := self._reason(value):
                self._findings.add(path, row, value["extra_info"].get("uuid"), reason)
            else:
                users.add(user_id(value["extra_info"]["uid"]))
        for name in {RL_TRAIN, RL_TEST} - {path.name} if path.name in (RL_TRAIN, RL_TEST) else ():
            for uid in sorted(users & self._users.get(path.with_name(name), set()), key=str):
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


def validate(paths: Sequence[str], spec: SidSpec | None) -> tuple[int, Findings]:
    """(rows, findings) of every file that ``paths`` name."""
    findings = Findings()
    records, rl, rows = RecordCheck(spec, findings), RlCheck(spec, findings), 0
    files = list(dict.fromkeys(file for path in paths for file in list_parquet(path)))
    for path in progress(files, "validate", unit="file"):
        parquet = open_parquet(path)
        names = parquet.schema_arrow.names
        if set(RL_COLUMNS).issubset(names):
            rl.file(path)
        elif set(KEY_COLUMNS).issubset(names):
            records.file(file_of(path))
        else:
            wanted = f"records ({', '.join(KEY_COLUMNS)}) or RL data ({', '.join(RL_COLUMNS)})"
            raise InputError(path, f"has the columns {', '.join(names)}", wanted)
        rows += parquet.metadata.num_rows
    records.doubles()
    return rows, findings


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("paths", nargs="+", help="Parquet files, folders of them or patterns")
    parser.add_argument("--sid_spec", type=Path, help="sid_spec.json of the SIDs; without it any code is right")
    args = parser.parse_args(argv)
    spec = SidSpec.load(args.sid_spec) if args.sid_spec else None
    rows, findings = validate(args.paths, spec)
    for line in findings.first:
        print(line)
    if findings.reasons:
        reasons = ", ".join(f"{count} ({reason})" for reason, count in findings.reasons.most_common())
        what = f"{findings.reasons.total():,} of {rows:,} rows break the format: {reasons}"
        raise InputError(args.paths[0], what, "see the rows above")
    print(f"valid: {rows:,} rows")


if __name__ == "__main__":
    cli(main)()
