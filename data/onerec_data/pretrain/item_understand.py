"""Items' SIDs and captions as plain text, for pretraining.

python data/onerec_data/pretrain/item_understand.py --caption pid2caption.parquet --pid2sid video_ad_pid2sid.parquet --output_dir output
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # this clone before what is installed
from data.onerec_data.tasks import Task, item_text

TASK = Task(
    name="pretrain_item_understand",
    source="RecIF_ItemUnderstand_Pretrain",
    over="items",
    build=item_text,
)

if __name__ == "__main__":
    from data.onerec_data.run import run_task

    run_task(TASK)
