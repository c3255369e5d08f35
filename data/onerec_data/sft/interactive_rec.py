"""Interactive recommendation: profile and keyword to items.

python data/onerec_data/sft/interactive_rec.py --input onerec_bench_release.parquet --pid2sid video_ad_pid2sid.parquet --output_dir output
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # this clone before what is installed
from data.onerec_data.tasks import PROFILE_COLUMNS, VIDEO_COLUMNS, Task, interactive_rec

TASK = Task(
    name="sft_interactive_rec",
    source="RecIF_InteractiveRec",
    over="users",
    build=interactive_rec,
    required=VIDEO_COLUMNS,
    optional=(*PROFILE_COLUMNS, "inter_keyword_to_items", "query"),
    any_of=("inter_keyword_to_items", "query"),
)

if __name__ == "__main__":
    from data.onerec_data.run import run_task

    run_task(TASK)
