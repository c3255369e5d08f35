"""Every task's builder, by the name of its row in `onerec.tasks`."""

from __future__ import annotations

from data.onerec_data import explain, interactions, recommend
from data.onerec_data.samples import Builder

BUILDERS: dict[str, Builder] = {
    found.name: found
    for module in (recommend, interactions, explain)
    for found in vars(module).values()
    if isinstance(found, Builder)
}
