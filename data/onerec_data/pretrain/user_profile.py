"""User profiles with SIDs as plain text, for pretraining.

python data/onerec_data/pretrain/user_profile.py --input onerec_bench_release.parquet --pid2sid video_ad_pid2sid.parquet --output_dir output
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # this clone before what is installed
from data.onerec_data.tasks import PROFILE_COLUMNS, Task, user_profile

TASK = Task(
    name="pretrain_user_profile",
    source="RecIF_UserProfile_Pretrain",
    over="users",
    build=user_profile,
    optional=PROFILE_COLUMNS,
    any_of=PROFILE_COLUMNS,
)

if __name__ == "__main__":
    from data.onerec_data.run import run_task

    run_task(TASK)
