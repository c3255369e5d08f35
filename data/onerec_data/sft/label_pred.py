"""Label prediction: will the user watch the candidate for long?.

python data/onerec_data/sft/label_pred.py --input onerec_bench_release.parquet --pid2sid video_ad_pid2sid.parquet --output_dir output
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # this clone before what is installed
from data.onerec_data.interactions import MASK_COLUMNS, label_pred
from data.onerec_data.tasks import VIDEO_COLUMNS, Task

TASK = Task(
    name="sft_label_pred",
    source="RecIF_LabelPred",
    over="users",
    build=label_pred,
    required=VIDEO_COLUMNS,
    optional=(*MASK_COLUMNS, "interaction_type"),
    any_of=("target_video_longview", "interaction_type"),
)

if __name__ == "__main__":
    from data.onerec_data.run import run_task

    run_task(TASK)
