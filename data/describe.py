"""What is in files of records: rows, tokens, history lengths and SID coverage by source, before a GPU is rented.

    python describe.py output/split_data_sft --tokenizer ../pretrain/models/Qwen3-1.7B_itemic \\
        --pid2sid output/benchmark_data/video_ad_pid2sid.parquet --output_dir output/describe

Prints a table and writes describe.json and describe.html (with histograms). SIDs are counted in every row; tokens,
where a tokenizer is given, in a systematic sample of 1,000 to 2,000 rows a source (every k-th row),
from which totals are extrapolated (marked ~). Rows that the data stage left out are read from the manifest.json
beside the files.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from data.mix import checked, record_files, sized_batches
from onerec.catalog import read_pid2sid
from onerec.cli import cli
from onerec.errors import InputError, reading
from onerec.flags import ArgumentParser
from onerec.records import parse_messages, parse_segments
from onerec.render import RENDERERS, THINK_CLOSE, Renderer, renderer_of
from onerec.run import MANIFEST, Manifest, progress, read_json, write_json, write_text
from onerec.sid import BEGIN, END, SidSpec

_SID = re.compile(re.escape(BEGIN.encode()) + rb"[^|]*" + re.escape(END.encode()))
_ANSWER = b'{"role":"assistant"'
_BINS = 24
SAMPLE = 1000  # rows a source that are tokenized, at least
HEADINGS = (
    *("source", "rows", "MB", "SIDs a row", "most", "distinct SIDs", "coverage", "with thought"),
    *("tokens", "tokens a row", "p95", "most"),
)


class Histogram:
    """Counts of non-negative whole numbers, exact, in memory that grows with the largest."""

    def __init__(self) -> None:
        self._counts = np.zeros(64, np.int64)

    def add(self, values: Sequence[int] | np.ndarray) -> None:
        """Count values."""
        found = np.bincount(np.asarray(values, np.int64), minlength=len(self._counts))
        found[: len(self._counts)] += self._counts
        self._counts = found

    @property
    def n(self) -> int:
        """Values counted."""
        return int(self._counts.sum())

    @property
    def total(self) -> int:
        """Their sum."""
        return int((self._counts * np.arange(len(self._counts))).sum())

    def quantile(self, q: float) -> int:
        """The smallest value that at least a share ``q`` of the values does not exceed; 0 where there is none."""
        return int(np.searchsorted(np.cumsum(self._counts), q * self.n)) if self.n else 0

    def most(self) -> int:
        """The largest value."""
        return int(np.flatnonzero(self._counts)[-1]) if self.n else 0

    def bins(self, n: int = _BINS) -> tuple[list[float], list[int]]:
        """(bounds, counts) of ``n`` bins, or fewer where there are fewer values."""
        width = max(1, -(-(self.most() + 1) // n))
        counts = [int(self._counts[i : i + width].sum()) for i in range(0, self.most() + 1, width)]
        return [float(i * width) for i in range(len(counts) + 1)], counts


class EveryKth:
    """A systematic sample of a stream of unknown length: every k-th item, k doubling so that at most 2n are kept."""

    def __init__(self, n: int) -> None:
        self._n, self._step, self._seen, self.kept = n, 1, 0, []

    def offer(self, item: Any) -> None:
        """See the next item."""
        if self._seen % self._step == 0:
            self.kept.append(item)
            if len(self.kept) >= 2 * self._n:
                self.kept, self._step = self.kept[::2], self._step * 2
        self._seen += 1


@dataclasses.dataclass
class SourceFacts:
    """What is known of one source."""

    sample: EveryKth
    rows: int = 0
    bytes: int = 0
    thoughts: int = 0
    sids: Histogram = dataclasses.field(default_factory=Histogram)
    tokens: Histogram = dataclasses.field(default_factory=Histogram)
    distinct: set[bytes] = dataclasses.field(default_factory=set)

    def see(self, text: bytes, is_chat: bool) -> None:
        """Count one row; a chat's history is what stands before its last answer."""
        prompt = text[: text.rfind(_ANSWER)] if is_chat and _ANSWER in text else text
        self.sids.add([prompt.count(BEGIN.encode())])
        self.distinct.update(_SID.findall(text))
        self.rows += 1
        self.bytes += len(text)
        self.thoughts += THINK_CLOSE.encode() in text
        self.sample.offer((text, is_chat))


def texts(row: tuple[bytes, bool], renderer: Renderer) -> str:
    """What a tokenizer sees of a row: the rendered conversation, or the plain text."""
    text, is_chat = row
    if not is_chat:
        return parse_segments(text)
    return renderer.text(parse_messages(text))


def read_facts(paths: Iterable[str], sample: int, manifest: Manifest) -> dict[str, SourceFacts]:
    """Facts by source of the good rows of every record file that ``paths`` name; the others are counted."""
    files = list({f.path: f for path in paths for f in record_files(path, manifest)}.values())
    facts: dict[str, SourceFacts] = {}
    batches = (checked(batch, manifest) for file in files for batch in sized_batches(file))
    total = sum(file.rows for file in files)
    for batch in progress(batches, "describe", total, size=lambda b: b.num_rows):
        texts = (batch.column(name).view(pa.binary()).to_pylist() for name in ("segments", "messages"))
        for source, segments, turns in zip(batch.column("source").to_pylist(), *texts, strict=True):
            if source not in facts:
                facts[source] = SourceFacts(EveryKth(sample))
            facts[source].see(segments if turns is None else turns, turns is not None)
    return dict(sorted(facts.items()))


def count_tokens(facts: dict[str, SourceFacts], folder: Path) -> None:
    """Tokenize the samples, rendered for its family, with ``tokenizer.json`` of a checkpoint's folder."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json" if folder.is_dir() else folder
    if not file.is_file():
        raise InputError(file, "no such file", "the folder of a checkpoint, or its tokenizer.json")
    with reading(file, "is no tokenizer"):
        tokenizer = Tokenizer.from_file(str(file))
    # A tokenizer alone does not say its family; then it is the first that is known.
    known = (file.parent / "config.json").is_file()
    renderer = renderer_of(file.parent) if known else next(iter(RENDERERS.values()))
    for fact in progress(facts.values(), "tokenize", unit="source"):
        for i in range(0, len(fact.sample.kept), 256):
            encoded = tokenizer.encode_batch_fast([texts(row, renderer) for row in fact.sample.kept[i : i + 256]])
            fact.tokens.add([len(encoding.ids) for encoding in encoded])


def summary(name: str, fact: SourceFacts, catalogue: set[bytes] | None) -> dict[str, Any]:
    """One source as numbers."""
    value: dict[str, Any] = {
        "source": name,
        "rows": fact.rows,
        "bytes": fact.bytes,
        "sids_per_row": fact.sids.total / max(fact.rows, 1),
        "sids_most": fact.sids.most(),
        "distinct_sids": len(fact.distinct),
        "coverage": None if catalogue is None else len(fact.distinct & catalogue) / max(len(catalogue), 1),
        "thought_share": fact.thoughts / max(fact.rows, 1),
    }
    if fact.tokens.n:
        mean = fact.tokens.total / fact.tokens.n
        value |= {
            "tokens": round(mean * fact.rows),
            "tokens_extrapolated": fact.tokens.n < fact.rows,
            "tokens_per_row": mean,
            "tokens_p95": fact.tokens.quantile(0.95),
            "tokens_most": fact.tokens.most(),
        }
    return value


def cells(value: dict[str, Any]) -> list[str]:
    """A summary as the cells of the table."""
    found = [
        value["source"],
        f"{value['rows']:,}",
        f"{value['bytes'] / 1e6:,.1f}",
        f"{value['sids_per_row']:.1f}",
        f"{value['sids_most']:,}",
        f"{value['distinct_sids']:,}",
        "–" if value["coverage"] is None else f"{value['coverage']:.1%}",
        f"{value['thought_share']:.1%}",
    ]
    if "tokens" not in value:
        return [*found, *"––––"]
    about, mean = "~" if value["tokens_extrapolated"] else "", value["tokens_per_row"]
    return [
        *found,
        f"{about}{value['tokens']:,}",
        f"{mean:,.0f}",
        *(f"{value[f'tokens_{n}']:,}" for n in ("p95", "most")),
    ]


def dropped_rows(paths: Iterable[str]) -> dict[str, int]:
    """What the data stage left out, from the manifests beside the files."""
    folders = {Path(path) if Path(path).is_dir() else Path(path).parent for path in paths}
    files = [folder / MANIFEST for folder in sorted(folders) if (folder / MANIFEST).is_file()]
    return {reason: n for file in files for reason, n in read_json(file).get("dropped", {}).items()}


def page(title: str, rows: list[list[str]], facts: dict[str, SourceFacts], dropped: dict[str, int]) -> str:
    """The self-contained HTML page."""
    from onerec.pages import charts, histogram, html_page, lines, table

    blocks = [table(HEADINGS, rows)]
    for name, fact in facts.items():
        found = [{"heading": "SIDs a row (history)", "svg": histogram(*fact.sids.bins())}] if fact.sids.total else []
        if fact.tokens.n:
            found.append({"heading": "tokens a row", "svg": histogram(*fact.tokens.bins())})
        blocks += charts(name, found)
    left_out = [f"{count}: {reason}" for reason, count in sorted(dropped.items(), key=lambda pair: -pair[1])]
    blocks += lines("Left out by the data stage", left_out)
    return html_page(title, "SIDs a row are those before the answer. ~: extrapolated from a sample.", blocks)


def print_table(rows: list[list[str]]) -> None:
    """The table, columns as wide as they need; the first one to the left."""
    rows = [list(HEADINGS), *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        others = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        print("  ".join([first.ljust(widths[0]), *others]))


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("paths", nargs="+", help="record files, folders of them or patterns")
    add("--tokenizer", type=Path, help="folder of a checkpoint (or a tokenizer.json) to count tokens with")
    add("--pid2sid", type=Path, nargs="*", default=[], help="item tables: what share of their SIDs occurs")
    add("--output_dir", type=Path, help="folder for describe.json and describe.html")
    args = parser.parse_args(argv)
    manifest = Manifest("describe", args)
    facts = read_facts(args.paths, SAMPLE, manifest)
    if args.tokenizer:
        count_tokens(facts, args.tokenizer)
    catalogue = read_catalogue(args.pid2sid)
    values = [summary(name, fact, catalogue) for name, fact in facts.items()]
    rows, dropped = [cells(value) for value in values], dropped_rows(args.paths)
    print_table(rows)
    if args.output_dir:
        write_json(args.output_dir / "describe.json", {"sources": values, "dropped": dropped})
        write_text(args.output_dir / "describe.html", page("Training data", rows, facts, dropped))
    tokens = sum(value.get("tokens", 0) for value in values)
    about = f", about {tokens:,} tokens" if tokens else ""
    dropped_text = f"; {manifest.dropped_text()}" if manifest.dropped else ""
    print(f"{sum(value['rows'] for value in values):,} rows{about}{dropped_text}")


def read_catalogue(paths: Sequence[Path]) -> set[bytes] | None:
    """The SIDs of item tables; None where there is no table."""
    if not paths:
        return None
    found: set[bytes] = set()
    for path in paths:
        spec = SidSpec.of_folder(path.parent)
        found.update(spec.format(row).encode() for row in read_pid2sid(path, spec)[1].tolist())
    return found


if __name__ == "__main__":
    cli(main)()
