"""Recommendation with a templated thought from the tags of the history, for data without a chain of thought.

python data/onerec_data/sft/reco_reason.py --input logs.parquet --pid2sid pid2sid.parquet --caption pid2caption.parquet --output_dir output
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # this clone before what is installed
from data.onerec_data.reasoning import reco_reason
from data.onerec_data.tasks import VIDEO_COLUMNS, Task

TASK = Task(
    name="sft_reco_reason",
    source="RecIF_RecoReason",
    over="users",
    build=reco_reason,
    required=VIDEO_COLUMNS,
    tags=True,
    default=False,
)

if __name__ == "__main__":
    from data.onerec_data.run import run_task

    run_task(TASK)
