"""What the prompts of the toy world's label prediction tell, without any model.

python experiments/2026-11-28-toy-label-prediction/measure.py --run_dir <a run of the laptop profile>
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from sklearn.metrics import roc_auc_score

from data.toy.items import STYLES, SUBTOPICS
from onerec.flags import ArgumentParser

SHOWN = 10  # long-viewed videos in a prompt


def main() -> None:
    """Print the AUC of three scores of the candidates on the test users."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--run_dir", type=Path, required=True)
    items = parser.parse_args().run_dir / "raw_data" / "onerec_data"
    captions = pq.read_table(items / "pid2caption.parquet").to_pylist()
    words = {row["pid"]: row.get("dense_caption") or row["caption"] for row in captions}
    style = {pid: next(i for i, name in enumerate(STYLES) if name in text) for pid, text in words.items()}
    topic = {pid: next(i for i, (_, name) in enumerate(SUBTOPICS) if name in text) for pid, text in words.items()}
    code = {row["pid"]: row["codes"][1] for row in pq.read_table(items / "video_ad_pid2sid.parquet").to_pylist()}
    truth: list[int] = []
    scores: dict[str, list[float]] = {"styles and subtopics": [], "styles": [], "second code": []}
    for row in pq.read_table(items / "onerec_bench_release.parquet").to_pylist():
        if row["split"] != 1:
            continue
        watched = np.array(row["hist_video_pid"])[np.array(row["hist_video_longview"]) == 1][-SHOWN:].tolist()
        styles = np.bincount([style[pid] for pid in watched], minlength=len(STYLES)) + 0.1
        topics = np.bincount([topic[pid] for pid in watched], minlength=len(SUBTOPICS)) + 0.1
        for pid, label in zip(row["target_video_pid"], row["target_video_longview"], strict=True):
            truth.append(label)
            fit = styles[style[pid]]
            scores["styles and subtopics"].append(fit / styles.sum() * (1 + np.log(topics[topic[pid]]) / 4))
            scores["styles"].append(fit)
            scores["second code"].append([code[other] for other in watched].count(code[pid]))
    for name, values in scores.items():
        print(f"{name:22s} {len(truth):6,d} rows  AUC {roc_auc_score(truth, values):.4f}")


if __name__ == "__main__":
    main()
