"""The task sft_product_rec alone, with the flags of run.py."""

from pathlib import Path
from runpy import run_path

if __name__ == "__main__":
    run_path(str(Path(__file__).parents[1] / "run.py"))["run_task"]("sft_product_rec")
