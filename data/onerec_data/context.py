"""What every task builder is given beside its users: SID tables, tags, the seed and the layout."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from data.onerec_data.batch import Batch
from data.onerec_data.layout import Layout
from data.onerec_data.tables import SidTable, TagTable, read_tags
from data.onerec_data.text import Draws, escaped
from onerec.errors import InputError

PID_MARK = re.compile(r"<pid:(\d{1,18})>")


@dataclasses.dataclass(frozen=True)
class Context:
    """Shared, read-only state of a run over the tasks; every worker has one."""

    video: SidTable
    product: SidTable | None
    tags: TagTable | None
    seed: int
    layout: Layout

    def draws(self, task: str, *what: object) -> Draws:
        """Draws of wording for one row of a task."""
        return Draws(self.seed, task, *what)

    def profiles(self, batch: Batch, task: str) -> list[bytes | None]:
        """Profiles with SIDs, escaped: the released text as it is, or the text with its pid marks turned into SIDs."""
        released = batch.texts("inter_user_profile_with_sid")
        marked = batch.texts("inter_user_profile")
        found: list[bytes | None] = []
        for row, (text, raw) in enumerate(zip(released, marked, strict=True)):
            if text is None and raw is not None:
                text = self._fill_marks(batch, row, task, raw)
            found.append(None if text is None else escaped(text))
        return found

    def _fill_marks(self, batch: Batch, row: int, task: str, text: str) -> str:
        missing = 0

        def replace(mark: re.Match[str]) -> str:
            nonlocal missing
            sid = self.video.text(int(mark[1]))
            missing += sid is None
            return (sid or b"").decode()

        filled = PID_MARK.sub(replace, text)
        batch.skip(row, task, "pid without SID skipped", missing)
        return filled


def load_context(
    pid2sid: Path, product_pid2sid: Path | None, caption: Path | None, seed: int, layout: Layout
) -> Context:
    """Read the tables that the tasks need; both SID tables must have the same codebooks."""
    video = SidTable(pid2sid, layout)
    product = SidTable(product_pid2sid, layout) if product_pid2sid else None
    if product and not product.spec.same_codebooks(video.spec):
        raise InputError(
            product.path,
            f"has codebooks {product.spec.codebook_sizes}",
            f"those of {pid2sid}: {video.spec.codebook_sizes}",
        )
    return Context(video, product, read_tags(caption, layout) if caption else None, seed, layout)
