"""What every builder is given beside its users: SID tables, tags, the seed and the layout."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from data.onerec_data.layout import Layout
from data.onerec_data.tables import SidTable, TagTable, read_tags
from data.onerec_data.text import Draws
from onerec.errors import InputError
from onerec.tasks import Task

_PID_MARK = re.compile(r"<pid:(\d{1,18})>")


@dataclasses.dataclass(frozen=True)
class Context:
    """Shared, read-only state of a run over the tasks; every worker has one."""

    video: SidTable
    product: SidTable | None
    tags: TagTable | None
    seed: int
    layout: Layout

    def draws(self, task: Task, *what: object) -> Draws:
        """The draws of wording for one thing of a task."""
        return Draws(self.seed, task.name, *what)

    def fill_marks(self, text: str) -> tuple[str, int]:
        """(``text`` with its pid marks turned into SIDs, how many had none)."""
        sids = {pid: self.video.text(int(pid)) for pid in _PID_MARK.findall(text)}
        missing = sum(sids[pid] is None for pid in _PID_MARK.findall(text))
        return _PID_MARK.sub(lambda mark: (sids[mark[1]] or b"").decode(), text), missing


def load_context(
    pid2sid: Path, product_pid2sid: Path | None, caption: Path | None, seed: int, layout: Layout
) -> Context:
    """Read the tables that the tasks need; both SID tables must have the same codebooks."""
    video = SidTable(pid2sid, layout)
    product = SidTable(product_pid2sid, layout) if product_pid2sid else None
    if product and not product.spec.same_codebooks(video.spec):
        right = f"those of {pid2sid}: {video.spec.codebook_sizes}"
        raise InputError(product.path, f"has codebooks {product.spec.codebook_sizes}", right)
    return Context(video, product, read_tags(caption, layout) if caption else None, seed, layout)
