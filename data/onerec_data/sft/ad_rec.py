"""The task sft_ad_rec alone, with the flags of run.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # this clone before what is installed
from data.onerec_data.run import run_task

if __name__ == "__main__":
    run_task("sft_ad_rec")
