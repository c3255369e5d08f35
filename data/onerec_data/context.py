"""What every task builder is given: SID tables, captions, seeded draws from the prompt lists, and drop counters."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from onerec.catalog import read_pid2sid
from onerec.errors import InputError
from onerec.files import SID_SPEC
from onerec.parquet import open_parquet, read_table
from onerec.run import Manifest, read_json
from onerec.sid import SidSpec

PROMPTS = Path(__file__).parent / "prompts"
PID_MARK = re.compile(r"<pid:(\d+)>")
# The release comes without a specification beside its mapping: three layers of 8,192 codes.
RELEASE_SPEC = SidSpec((8192, 8192, 8192))


@functools.cache
def prompts(name: str) -> dict[str, Any]:
    """A prompt file of the ``prompts`` folder."""
    return read_json(PROMPTS / f"{name}.json")


class SidTable:
    """pid to SID text of one pid space (video and ad, or product)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        beside = path.parent / SID_SPEC
        self.spec = SidSpec.load(beside) if beside.exists() else RELEASE_SPEC
        pids, codes = read_pid2sid(path, self.spec)
        self.text = {
            pid: self.spec.format(row) for pid, row in zip(pids.tolist(), codes.tolist(), strict=True)
        }


@dataclasses.dataclass
class Context:
    """Shared state of a run over the tasks; `count` and `count_pids` keep what is left out, by task and reason."""

    video: SidTable
    product: SidTable | None
    captions: dict[int, str]
    seed: int
    manifest: Manifest
    bad_rows: int = 0

    def draw(self, options: Sequence[str], *what: object) -> str:
        """One of ``options``, drawn from the seed and from what the row is: never from order or workers."""
        key = json.dumps([self.seed, *map(str, what)]).encode()
        return options[int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") % len(options)]

    def skip(self, task: str, reason: str) -> None:
        """Count a row that has nothing for ``task`` (an empty history, no target): legitimate, not bad."""
        self.manifest.drop(f"{task}: {reason}")

    def bad(self, task: str, reason: str) -> None:
        """Count a row that is malformed; these go into the bad ratio."""
        self.bad_rows += 1
        self.manifest.drop(f"{task}: {reason}")

    def sids(self, pids: Iterable[int], table: SidTable, task: str) -> tuple[str, list[int]]:
        """(SID texts joined, the pids that have one); a pid without SID is skipped and counted."""
        known = [pid for pid in pids if pid in table.text]
        missing = sum(1 for pid in pids if pid not in table.text)
        self.manifest.drop(f"{task}: pid without SID skipped", missing)
        return "".join(table.text[pid] for pid in known), known

    def profile(self, row: dict[str, Any], task: str) -> str | None:
        """The user's profile with SIDs: the released one as it is, or the text with its pid marks turned into SIDs."""
        released = row.get("inter_user_profile_with_sid")
        if isinstance(released, str) and released.strip():
            return released
        text = row.get("inter_user_profile")
        if not isinstance(text, str) or not text.strip():
            return None
        return PID_MARK.sub(lambda mark: self.sids([int(mark[1])], self.video, task)[0], text)


def int_list(value: Any) -> list[int]:
    """A list column's value as integers, nulls and NaN left out; empty where the value is absent."""
    if value is None or isinstance(value, float):
        return []
    return [int(x) for x in value if x is not None and not (isinstance(x, float) and math.isnan(x))]


def read_captions(path: Path | None) -> dict[int, str]:
    """pid to caption from ``pid2caption.parquet`` (``dense_caption`` as released, or ``caption``)."""
    if path is None:
        return {}
    names = open_parquet(path, ["pid"]).schema_arrow.names
    column = "dense_caption" if "dense_caption" in names else "caption"
    table = read_table(path, ["pid", column])
    pairs = zip(table["pid"].to_pylist(), table[column].to_pylist(), strict=True)
    return {
        int(pid): text.strip()
        for pid, text in pairs
        if pid is not None and isinstance(text, str) and text.strip()
    }


def load_context(
    pid2sid: Path, product_pid2sid: Path | None, caption: Path | None, seed: int, manifest: Manifest
) -> Context:
    """Read the tables that the tasks need; both SID tables must have the same codebooks."""
    video = SidTable(pid2sid)
    product = SidTable(product_pid2sid) if product_pid2sid else None
    manifest.input(pid2sid, len(video.text))
    if product:
        manifest.input(product_pid2sid, len(product.text))
        if not product.spec.same_codebooks(video.spec):
            raise InputError(
                product.path,
                f"has codebooks {product.spec.codebook_sizes}",
                f"those of {pid2sid}: {video.spec.codebook_sizes}",
            )
    captions = read_captions(caption)
    if caption:
        manifest.input(caption, len(captions))
    return Context(video, product, captions, seed, manifest)
