"""Video recommendation: watch history to the next videos.

python data/onerec_data/sft/video_rec.py --input onerec_bench_release.parquet --pid2sid video_ad_pid2sid.parquet --output_dir output
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # this clone before what is installed
from data.onerec_data.tasks import VIDEO_COLUMNS, Task, video_rec

TASK = Task(
    name="sft_video_rec",
    source="RecIF_VideoRec",
    over="users",
    build=video_rec,
    required=VIDEO_COLUMNS,
)

if __name__ == "__main__":
    from data.onerec_data.run import run_task

    run_task(TASK)
