"""Product recommendation: long-viewed videos and product clicks to the next products.

python data/onerec_data/sft/product_rec.py --input onerec_bench_release.parquet --pid2sid video_ad_pid2sid.parquet --product_pid2sid product_pid2sid.parquet --output_dir output
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # this clone before what is installed
from data.onerec_data.tasks import CROSS_COLUMNS, Task, cross_domain

TASK = Task(
    name="sft_product_rec",
    source="RecIF_ProductRec",
    over="users",
    build=cross_domain("goods", lambda context: context.product),
    required=("hist_goods_pid", "target_goods_pid"),
    optional=CROSS_COLUMNS,
    product=True,
)

if __name__ == "__main__":
    from data.onerec_data.run import run_task

    run_task(TASK)
