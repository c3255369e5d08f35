"""The prompts of ``onpolicy_distillation.parquet`` as verl's data set."""

from __future__ import annotations

from typing import Any

import torch
from verl.utils.dataset.rl_dataset import RLHFDataset

from onerec.chat import with_switch
from verl_distillation.settings import ANCHOR, ANCHOR_KEY, GENERAL

# Think mode to what `with_switch` appends; the empty think block of `off` is the chat template's
# (enable_thinking=False).
THINK_MODES = {"on": True, "off": False, "auto": None}


class DistillationDataset(RLHFDataset):
    """Rows {prompt, data_source}; the last user turn of a prompt ends in the switch of ``data.think_mode``.

    ``on`` appends /think, ``off`` /no_think, ``auto`` nothing: the student decides whether it thinks.
    """

    def maybe_filter_out_long_prompts(self, dataframe: Any = None) -> Any:
        """Add the switch before lengths are measured; leave every column that distillation does not read behind."""
        thinking = THINK_MODES[self.config.think_mode]
        key = self.prompt_key

        def convert(row: dict[str, Any]) -> dict[str, Any]:
            turns = row[key] if thinking is None else with_switch(row[key], thinking)
            return {key: turns, "data_source": ANCHOR if row.get("data_source") == ANCHOR else GENERAL}

        dataframe = dataframe.map(convert, remove_columns=[n for n in dataframe.column_names if n != key])
        return super().maybe_filter_out_long_prompts(dataframe)

    def __getitem__(self, item: int) -> dict[str, Any]:
        """verl's row, with its kind as a tensor, uint8 [1], that travels to the engine with the answer."""
        row = super().__getitem__(item)
        row[ANCHOR_KEY] = torch.tensor([row["data_source"] == ANCHOR], dtype=torch.uint8)
        return row
