"""Prompts for on-policy distillation: a uniform sample of the general text, without the answers.

    python prepare_distillation.py --input raw_data/general_text/sft --output output/onpolicy_distillation.parquet

Chats lose their last answer; plain text becomes a request to go on with its beginning, in the words of --prompts. The
columns are those of a record and ``prompt`` (list of {role, content}), which verl reads. The input passes twice, in
batches: its size does not matter.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from data.mix import checked, record_files, sized_batches
from data.onerec_data.text import Draws, Template
from data.onerec_data.wording import add_prompts, load_prompts
from data.sampling import uuid_keys
from onerec.cli import cli
from onerec.errors import InputError
from onerec.flags import COUNT, COUNT_OR_ALL, SEED, ArgumentParser
from onerec.parquet import write_batches
from onerec.records import CHAT_MARK, SCHEMA, check_record, dumps, message, parse_messages, parse_segments
from onerec.run import Manifest

PROMPT_TYPE = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
OUTPUT_SCHEMA = SCHEMA.append(pa.field("prompt", PROMPT_TYPE))
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
MAX_TEXT = 200  # characters of a plain text that the request to go on shows; at most the half of it


def repair(text: str) -> str:
    r"""Turn literal ``\uXXXX`` escapes, which some corpora carry, into their characters; lone surrogates are left."""
    fixed = _ESCAPE.sub(lambda m: chr(int(m[1], 16)), text)
    fixed = text if CHAT_MARK.search(fixed) else fixed  # an escape must not become the mark of a turn
    return fixed.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def to_prompt(row: dict[str, Any], wordings: Sequence[Template], seed: int) -> list[dict[str, str]]:
    """The turns before the last answer; of a plain text one of ``wordings`` with its beginning; empty where none."""
    if row.get("messages"):
        turns = [{"role": t["role"], "content": repair(t["content"])} for t in parse_messages(row["messages"])]
        while turns and turns[-1]["role"] == "assistant":
            turns.pop()
        return turns
    text = repair(parse_segments(row["segments"])).strip()
    start = text[: min(MAX_TEXT, (len(text) + 1) // 2)]
    asked = Draws(seed, "continue", row["uuid"]).pick(wordings).text(text=start)
    return [{"role": "user", "content": asked}] if start else []


def keys_of_prompts(
    paths: Sequence[str], wordings: Sequence[Template], seed: int, manifest: Manifest, max_bad_ratio: float
) -> dict[str, np.ndarray]:
    """First pass: the sampling keys (uint64, by seed and uuid) of the rows that give a prompt, once each, by source."""
    found: dict[str, list[np.ndarray]] = {}
    bad = total = 0
    for file in (file for path in paths for file in record_files(path, manifest)):
        manifest.input(file.path, file.rows)
        for batch in sized_batches(file):
            good = checked(batch, manifest)
            total, bad = total + batch.num_rows, bad + batch.num_rows - good.num_rows
            has = np.array([bool(to_prompt(row, wordings, seed)) for row in good.to_pylist()], bool)
            manifest.drop("no prompt", len(has) - int(has.sum()))
            keys = uuid_keys(good.column("uuid"), seed)[0]
            sources = np.array(good.column("source").to_pylist(), object)
            for source in set(sources[has]):
                found.setdefault(source, []).append(keys[has & (sources == source)])
    manifest.check_bad_ratio(paths[0], bad, total, max_bad_ratio)
    by_source = {source: np.unique(np.concatenate(parts)) for source, parts in sorted(found.items())}
    if not by_source:
        raise InputError(paths[0], "gives no prompt", "at least one chat or text")
    passed = sum(len(part) for parts in found.values() for part in parts)
    manifest.drop("uuid stands twice", passed - len(np.unique(np.concatenate(list(by_source.values())))))
    return by_source


def limits(by_source: dict[str, np.ndarray], num_samples: int, max_per_source: int) -> dict[str, np.uint64]:
    """The largest key of each source that is taken: ``max_per_source`` (-1: all) a source, then ``num_samples`` in all.

    ``by_source``: sorted keys. The smallest keys of a hash of seed and uuid are a uniform sample that neither order nor
    batches can change. A source of which nothing is taken is left out.
    """
    capped = {source: keys if max_per_source < 0 else keys[:max_per_source] for source, keys in by_source.items()}
    together = np.concatenate(list(capped.values()))
    last = np.partition(together, num_samples - 1)[num_samples - 1] if len(together) > num_samples else together.max()
    taken = {source: keys[keys <= last] for source, keys in capped.items()}
    return {source: keys[-1] for source, keys in taken.items() if len(keys)}


def chosen_rows(
    paths: Sequence[str], wordings: Sequence[Template], seed: int, last: dict[str, np.uint64], manifest: Manifest
) -> Iterator[pa.RecordBatch]:
    """Second pass: the prompts whose key is at most ``last`` of their source, in the input's order; doubles once."""
    seen: set[str] = set()  # uuids, for those of two rows may have one key
    for batch in (b for path in paths for file in record_files(path, manifest) for b in sized_batches(file)):
        keys, valid = uuid_keys(batch.column("uuid"), seed)
        most = np.array([last.get(source, -1) for source in batch.column("source").to_pylist()], object)
        rows = []
        for row in batch.filter(pa.array(valid & (keys.astype(object) <= most), pa.bool_())).to_pylist():
            if row["uuid"].lower() in seen or check_record(row) or not (prompt := to_prompt(row, wordings, seed)):
                continue
            seen.add(row["uuid"].lower())
            turns = dumps([message(turn["role"], turn["content"]) for turn in prompt])
            rows.append({**row, "segments": None, "messages": turns, "prompt": prompt})
        if rows:
            yield pa.RecordBatch.from_pylist(rows, schema=OUTPUT_SCHEMA)


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--input", nargs="+", required=True, help="record files, folders or patterns of general text")
    add("--output", type=Path, required=True, help="Parquet file to write")
    add("--num_samples", type=COUNT, default=200_000, help="prompts; all where there are fewer")
    cap = "prompts of one `source` at most, so that a large corpus does not drown a small one (-1: all)"
    add("--max_per_source", type=COUNT_OR_ALL, default=-1, help=cap)
    add_prompts(parser, noun=False)
    add("--seed", type=SEED, default=42, help="seed of the sample")
    parser.add_max_bad_ratio()
    args = parser.parse_args(argv)
    manifest = Manifest("prepare_distillation", args)
    wordings = load_prompts(args.prompts)["continue"]
    by_source = keys_of_prompts(args.input, wordings, args.seed, manifest, args.max_bad_ratio)
    last = limits(by_source, args.num_samples, args.max_per_source)
    chosen = chosen_rows(args.input, wordings, args.seed, last, Manifest("again"))
    rows = write_batches(args.output, OUTPUT_SCHEMA, chosen)
    manifest.output(args.output, rows)
    manifest.write(args.output.parent, f"{args.output.stem}.manifest.json")
    print(f"{rows:,} of {sum(map(len, by_source.values())):,} prompts in {args.output}; {manifest.dropped_text()}")


if __name__ == "__main__":
    cli(main)()
