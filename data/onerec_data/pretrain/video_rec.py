"""Watch sequences as plain text, for pretraining.

python data/onerec_data/pretrain/video_rec.py --input onerec_bench_release.parquet --pid2sid video_ad_pid2sid.parquet --output_dir output
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # this clone before what is installed
from data.onerec_data.tasks import VIDEO_COLUMNS, Task, watch_sequence

TASK = Task(
    name="pretrain_video_rec",
    source="RecIF_VideoRec_Pretrain",
    over="users",
    build=watch_sequence,
    required=VIDEO_COLUMNS,
)

if __name__ == "__main__":
    from data.onerec_data.run import run_task

    run_task(TASK)
