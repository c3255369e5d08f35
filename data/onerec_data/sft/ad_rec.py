"""Ad recommendation: long-viewed videos and ad clicks to the next ads.

python data/onerec_data/sft/ad_rec.py --input onerec_bench_release.parquet --pid2sid video_ad_pid2sid.parquet --output_dir output
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # this clone before what is installed
from data.onerec_data.tasks import CROSS_COLUMNS, Task, cross_domain

TASK = Task(
    name="sft_ad_rec",
    source="RecIF_AdRec",
    over="users",
    build=cross_domain("ad", lambda context: context.video),
    required=("hist_ad_pid", "target_ad_pid"),
    optional=CROSS_COLUMNS,
)

if __name__ == "__main__":
    from data.onerec_data.run import run_task

    run_task(TASK)
