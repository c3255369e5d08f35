"""Prompts for on-policy distillation: a uniform sample of the general text, without the answers.

    python prepare_distillation.py --input raw_data/general_text/sft/*.parquet --output output/onpolicy_distillation.parquet

Chats lose their last answer; plain text becomes a request to go on with its beginning. The columns are those of a record
and ``prompt`` (list of {role, content}), which verl reads.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data.mix import rows_of
from onerec.errors import InputError, cli
from onerec.parquet import write_table
from onerec.records import SCHEMA, check_record, dumps, message, parse_messages, parse_segments
from onerec.run import Manifest

PROMPT_TYPE = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
CONTINUE = "请接着写下去：\n{text}"
MAX_TEXT = 200  # characters of a plain text that the request to go on shows


def repair(text: str) -> str:
    r"""Turn literal ``\uXXXX`` escapes, which some corpora carry, into their characters; lone surrogates are left."""
    fixed = _ESCAPE.sub(lambda m: chr(int(m[1], 16)), text)
    return fixed.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def to_prompt(row: dict[str, Any]) -> list[dict[str, str]]:
    """The turns before the last answer; empty where there are none."""
    if row.get("messages"):
        turns = [
            {"role": t["role"], "content": repair(t["content"])} for t in parse_messages(row["messages"])
        ]
        while turns and turns[-1]["role"] == "assistant":
            turns.pop()
        return turns
    text = repair(parse_segments(row["segments"])).strip()
    return [{"role": "user", "content": CONTINUE.format(text=text[:MAX_TEXT])}] if text else []


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input", nargs="+", required=True, help="record files, folders or patterns of general text"
    )
    parser.add_argument("--output", type=Path, required=True, help="Parquet file to write")
    parser.add_argument("--num_samples", type=int, default=200_000, help="prompts; all where there are fewer")
    parser.add_argument("--seed", type=int, default=42, help="seed of the sample")
    parser.add_argument(
        "--max_bad_ratio", type=float, default=0.01, help="share of bad rows past which the run fails"
    )
    args = parser.parse_args(argv)
    if args.num_samples < 1:
        raise InputError("--num_samples", f"{args.num_samples} is not a positive number", "at least 1")
    manifest, rows, bad, total = Manifest("prepare_distillation", args), [], 0, 0
    for path in args.input:
        before = total
        for row in rows_of(path):
            total += 1
            if reason := check_record(row):
                bad += 1
                manifest.drop(reason)
                continue
            if prompt := to_prompt(row):
                turns = dumps([message(turn["role"], turn["content"]) for turn in prompt])
                base = {name: row.get(name) for name in ("uuid", "source", "metadata")}
                rows.append({**base, "segments": None, "messages": turns, "prompt": prompt})
            else:
                manifest.drop("no prompt")
        manifest.input(path, total - before)
    manifest.check_bad_ratio(args.input[0], bad, total, args.max_bad_ratio)
    if not rows:
        raise InputError(args.input[0], "gives no prompt", "at least one chat or text")
    found = len(rows)
    if found > args.num_samples:
        chosen = np.random.default_rng(args.seed).choice(found, args.num_samples, replace=False)
        rows = [rows[i] for i in np.sort(chosen)]
    schema = SCHEMA.append(pa.field("prompt", PROMPT_TYPE))
    write_table(args.output, pa.Table.from_pylist(rows, schema=schema))
    manifest.output(args.output, len(rows))
    manifest.write(args.output.parent, f"{args.output.stem}.manifest.json")
    print(f"{len(rows):,} of {found:,} prompts in {args.output}; {manifest.dropped_text()}")


if __name__ == "__main__":
    cli(main)()
