"""Check files of records against every rule of the format; the exit status is the verdict (0: whole, 2: not).

    python validate.py output/split_data_sft output/sft_*.parquet --sid_spec output/benchmark_data/sid_spec.json

Rules: uuid valid and never twice (over all files given), source not empty, metadata a JSON object, either segments or
messages, known roles, parts of text, SIDs whole and inside their codebooks (with --sid_spec; whole without it). RL data
(verl's columns): prompt turns, a ground truth of SIDs, a user; no user in train.parquet and test.parquet of one
folder. The first bad rows are named, every reason is counted. --runner ray: a task a file.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from data.mix import KEY_COLUMNS, file_of, sized_batches
from data.sampling import uuid_halves
from onerec.cli import cli
from onerec.errors import InputError
from onerec.files import RL_TEST, RL_TRAIN
from onerec.flags import LOCAL, ArgumentParser
from onerec.parquet import list_parquet, open_parquet
from onerec.records import check_columns, rl_batches, user_id
from onerec.run import progress
from onerec.sid import ANY_SID, ITEM_TOKEN, MARK_START, SidSpec
from onerec.workers import map_in_order

SHOWN = 10  # bad rows that are named
_PART_BITS = 6  # of a uuid, which say in which part of the sort it is
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

    def take(self, other: Findings) -> None:
        """Note what another file's check has found."""
        self.reasons += other.reasons
        self.first += other.first[: SHOWN - len(self.first)]


@dataclasses.dataclass
class Checked:
    """What a file alone says: bad rows, the users of RL data, and the uuids of records as uint64 [rows, 3].

    That are the halves of each that is valid, and its row.
    """

    path: Path
    rows: int
    findings: Findings
    users: set[int | str] | None = None
    uuids: np.ndarray | None = None


# Of the process of a task: the rule of SIDs.
_rule = SidRule(None)


def begin(spec: SidSpec | None) -> None:
    """Tell the process of a task the codebooks."""
    global _rule
    _rule = SidRule(spec)


def check_file(path: Path) -> Checked:
    """Check one file by the rules of its format."""
    parquet = open_parquet(path)
    names, checked = parquet.schema_arrow.names, Checked(path, parquet.metadata.num_rows, Findings())
    if set(RL_COLUMNS).issubset(names):
        checked.users = set()
        for row, value in enumerate(value for batch in rl_batches(path, 512) for value in batch):
            if reason := _rl_reason(value):
                checked.findings.add(path, row, value["extra_info"].get("uuid"), reason)
            else:
                checked.users.add(user_id(value["extra_info"]["uid"]))
    elif set(KEY_COLUMNS).issubset(names):
        checked.uuids = _check_records(path, checked.findings)
    else:
        wanted = f"records ({', '.join(KEY_COLUMNS)}) or RL data ({', '.join(RL_COLUMNS)})"
        raise InputError(path, f"has the columns {', '.join(names)}", wanted)
    return checked


def _check_records(path: Path, findings: Findings) -> np.ndarray:
    """Check a file of records; returns the uuids of `Checked`."""
    found, row = [np.empty((0, 3), np.uint64)], 0
    for records in sized_batches(file_of(path)):
        uuids = records.column("uuid")
        for at, reason in enumerate(_record_reasons(records)):
            if reason:
                findings.add(path, row + at, uuids[at].as_py(), reason)
        halves, valid = uuid_halves(uuids)
        places = np.arange(row, row + len(halves), dtype=np.uint64)
        found.append(np.column_stack([halves, places])[valid])  # what is not valid is bad already
        row += len(halves)
    return np.concatenate(found)


def _record_reasons(records: pa.RecordBatch) -> list[str | None]:
    reasons = check_columns(records)
    for name in ("segments", "messages"):
        for at, text in enumerate(records.column(name).view(pa.binary()).to_pylist()):
            if text is not None and reasons[at] is None:
                reasons[at] = _rule(text)
    return reasons


def _rl_reason(row: dict[str, Any]) -> str | None:
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
    return next(filter(None, (_rule(text.encode()) for text in texts)), None)


class Doubles:
    """uuids that stand twice over many files; keeps some 30 bytes a row, of which a part is sorted at a time."""

    def __init__(self) -> None:
        self._parts: list[list[np.ndarray]] = [[] for _ in range(1 << _PART_BITS)]
        self._files: list[tuple[Path, int]] = []
        self._rows = 0

    def add(self, checked: Checked) -> None:
        """Add a file of records."""
        keys = checked.uuids + np.array([0, 0, self._rows], np.uint64)
        part = (keys[:, 0] >> np.uint64(64 - _PART_BITS)).astype(np.int64)
        order = np.argsort(part, kind="stable")
        bounds = np.searchsorted(part[order], np.arange(len(self._parts) + 1))
        for held, (start, end) in zip(self._parts, itertools.pairwise(bounds.tolist()), strict=True):
            if start < end:
                held.append(keys[order[start:end]])
        self._files.append((checked.path, checked.rows))
        self._rows += checked.rows

    def note(self, findings: Findings) -> None:
        """Note every row whose uuid stood before."""
        again = [np.empty(0, np.uint64)]
        for held in filter(None, self._parts):
            keys = np.concatenate(held)
            keys = keys[np.lexsort(keys.T[::-1])]
            again.append(keys[1:, 2][(keys[1:, :2] == keys[:-1, :2]).all(1)])
        ends = np.cumsum([rows for _, rows in self._files])
        for place in np.sort(np.concatenate(again)).tolist():
            path, rows = self._files[at := int(np.searchsorted(ends, place, side="right"))]
            findings.add(path, place - int(ends[at]) + rows, None, "uuid stands twice")


def validate(paths: Sequence[str], spec: SidSpec | None, runner: str = LOCAL) -> tuple[int, Findings]:
    """(rows, findings) of every file that ``paths`` name."""
    findings, doubles, rows = Findings(), Doubles(), 0
    users: dict[Path, set[int | str]] = {}
    files = list(dict.fromkeys(file for path in paths for file in list_parquet(path)))
    found = map_in_order(check_file, files, None, begin, (spec,), runner)
    for checked in progress(found, "validate", len(files), unit="file"):
        path, rows = checked.path, rows + checked.rows
        findings.take(checked.findings)
        if checked.uuids is not None:
            doubles.add(checked)
            continue
        users[path] = checked.users
        for name in {RL_TRAIN, RL_TEST} - {path.name} if path.name in (RL_TRAIN, RL_TEST) else ():
            for uid in sorted(checked.users & users.get(path.with_name(name), set()), key=str):
                findings.add(path, -1, f"user {uid}", "a user in train and test")
    doubles.note(findings)
    return rows, findings


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("paths", nargs="+", help="Parquet files, folders of them or patterns")
    parser.add_argument("--sid_spec", type=Path, help="sid_spec.json of the SIDs; without it any code is right")
    parser.add_runner()
    args = parser.parse_args(argv)
    spec = SidSpec.load(args.sid_spec) if args.sid_spec else None
    rows, findings = validate(args.paths, spec, args.runner)
    for line in findings.first:
        print(line)
    if findings.reasons:
        reasons = ", ".join(f"{count} ({reason})" for reason, count in findings.reasons.most_common())
        what = f"{findings.reasons.total():,} of {rows:,} rows break the format: {reasons}"
        raise InputError(args.paths[0], what, "see the rows above")
    print(f"valid: {rows:,} rows")


if __name__ == "__main__":
    cli(main)()
