"""verl's data set over ``rl_data/{train,test}.parquet``: the rows as they are, and how many rollouts each gets."""

from __future__ import annotations

from typing import Any

from verl.utils.dataset.rl_dataset import RLHFDataset

VALIDATION = "onerec_validation"


class OneRecDataset(RLHFDataset):
    """Rows of `data/prepare_rl.py`; prompts are rendered by the agent loop, and long ones shortened there, not dropped.

    verl counts beams (``rollout.n``) where this project counts rollouts, so a row says itself how many rollouts it
    gets: ``config.onerec_rollouts`` in training, one in validation.
    """

    def __init__(self, data_files: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(data_files, *args, **kwargs)
        files, held_out = ([one] if isinstance(one, str) else list(one) for one in (data_files, self.config.val_files))
        self.validation = files == held_out

    def __getitem__(self, item: int) -> dict[str, Any]:
        row = super().__getitem__(item)
        row["__rollout_n__"] = 1 if self.validation else int(self.config.onerec_rollouts)
        row[VALIDATION] = self.validation
        return row
