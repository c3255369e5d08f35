"""Label-conditional recommendation: interactions to the items of one interaction kind.

python data/onerec_data/sft/label_cond_rec.py --input onerec_bench_release.parquet --pid2sid video_ad_pid2sid.parquet --output_dir output
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # this clone before what is installed
from data.onerec_data.interactions import MASK_COLUMNS, label_cond_rec
from data.onerec_data.layout import LABELS
from data.onerec_data.tasks import VIDEO_COLUMNS, Task

TASK = Task(
    name="sft_label_cond_rec",
    source="RecIF_LabelCondRec",
    over="users",
    build=label_cond_rec,
    required=VIDEO_COLUMNS,
    optional=(*MASK_COLUMNS, "interaction_type"),
    any_of=(*(f"target_video_{label}" for label in LABELS), "interaction_type"),
)

if __name__ == "__main__":
    from data.onerec_data.run import run_task

    run_task(TASK)
