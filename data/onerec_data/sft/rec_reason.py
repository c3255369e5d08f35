"""Recommendation reasoning: what was watched to why the next one is.

python data/onerec_data/sft/rec_reason.py --input onerec_bench_release.parquet --pid2sid video_ad_pid2sid.parquet --output_dir output
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # this clone before what is installed
from data.onerec_data.tasks import PROFILE_COLUMNS, Task, rec_reason

TASK = Task(
    name="sft_rec_reason",
    source="RecIF_RecoReason",
    over="users",
    build=rec_reason,
    required=("reco_gsu_caption", "reco_target_caption", "reco_cot"),
    optional=(*PROFILE_COLUMNS, "target_pid"),
)

if __name__ == "__main__":
    from data.onerec_data.run import run_task

    run_task(TASK)
