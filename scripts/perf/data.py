"""Speed and memory of the data stage, beside a plain row-by-row pandas implementation of one task.

    python scripts/perf/data.py tasks --users 5000            # eleven tasks, and the yardstick, in one run
    python scripts/perf/data.py tasks --users 200000 --no_yardstick --work_dir /big/disk   # does memory grow?
    python scripts/perf/data.py mix --gb 2 --buffer_mb 200    # shuffle and shard

The input has the shape of the published release: about 600 watched videos a user, five masks over them, ads, products,
a profile with SIDs, keywords, and a chain of thought for every third user. Every command runs in a process of its own;
seconds are the wall clock from its start to its end, memory is its largest resident size (workers included, summed).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))
from measure import ROOT, measured

sys.path.insert(0, str(ROOT))
from onerec.cli import cli
from onerec.flags import COUNT, POSITIVE, PROCESSES, SEED, ArgumentParser

LABELS = {"longview": 0.3, "like": 0.05, "follow": 0.01, "forward": 0.01, "not_interested": 0.01}
TASKS = (
    "pretrain_video_rec", "pretrain_user_profile", "pretrain_item_understand", "sft_video_rec", "sft_interactive_rec",
    "sft_label_cond_rec", "sft_label_pred", "sft_ad_rec", "sft_product_rec", "sft_item_understand", "sft_rec_reason",
)  # fmt: skip
USERS_PER_GROUP = 2000
CODEBOOK = 8192
CAPTIONS = 20_000  # items with a caption


def lists(rng: np.random.Generator, lengths: np.ndarray, values: Callable[[int], np.ndarray]) -> pa.Array:
    """A list column with rows of ``lengths``."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values(int(offsets[-1]))))


def users(rng: np.random.Generator, first: int, n: int, n_items: int) -> pa.Table:
    """A block of users in the release's columns, one in ten of them a test user."""
    history = np.clip(rng.lognormal(6.2, 0.6, n), 20, 4000).astype(np.int64)
    columns: dict[str, Any] = {
        "uid": np.arange(first, first + n),
        "split": (rng.random(n) < 0.1).astype(np.int64),
    }

    def pids(count: int) -> np.ndarray:
        return (n_items * rng.random(count) ** 2).astype(np.int64)  # popular items come more often

    for side, lengths in (("hist", history), ("target", np.full(n, 10))):
        columns[f"{side}_video_pid"] = lists(rng, lengths, pids)
        for label, share in LABELS.items():
            columns[f"{side}_video_{label}"] = lists(
                rng, lengths, lambda count, share=share: (rng.random(count) < share).astype(np.int64)
            )
    for domain, mean in (("ad", 60), ("goods", 40)):
        columns[f"hist_{domain}_pid"] = lists(rng, rng.poisson(mean, n), pids)
        columns[f"target_{domain}_pid"] = lists(rng, rng.poisson(5, n), pids)
    sid = "".join(f"<|sid_begin|><s_a_{i}><s_b_{i}><s_c_{i}><|sid_end|>" for i in range(100, 110))
    columns["inter_user_profile_with_sid"] = [f"用户{i}喜欢户外和美食，经常看{sid}等内容。" * 2 for i in range(n)]
    words = [{f"词{k}": pids(4).tolist() for k in range(3)} for _ in range(n)]
    columns["inter_keyword_to_items"] = [json.dumps(value, ensure_ascii=False) for value in words]
    thought = "用户近期反复观看同一主题，说明兴趣集中，因此下一个点击与之相关。" * 10
    has = np.arange(n) % 3 == 0
    columns["reco_gsu_caption"] = pa.array(["一段视频的描述。" * 20 if h else None for h in has])
    columns["reco_target_caption"] = pa.array(["另一段视频的描述。" * 5 if h else None for h in has])
    columns["reco_cot"] = pa.array([thought if h else None for h in has])
    columns["target_pid"] = pids(n)
    return pa.table(columns)


def make_release(folder: Path, n_users: int, n_items: int, n_captions: int, seed: int) -> None:
    """Write the four files of a release of this size."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("video_ad", n_items), ("product", n_items)):
        codes = pa.FixedSizeListArray.from_arrays(pa.array(rng.integers(CODEBOOK, size=3 * count)), 3)
        table = pa.table({"pid": np.arange(count), "sid": codes.cast(pa.list_(pa.int64()))})
        pq.write_table(table, folder / f"{name}_pid2sid.parquet")
    captions = ["画面里有人在做一件有趣的事。" * 6] * n_captions
    pq.write_table(pa.table({"pid": np.arange(n_captions), "dense_caption": captions}), folder / "pid2caption.parquet")
    writer = None
    for first in range(0, n_users, USERS_PER_GROUP):
        block = users(rng, first, min(USERS_PER_GROUP, n_users - first), n_items)
        writer = writer or pq.ParquetWriter(folder / "release.parquet", block.schema)
        writer.write_table(block)
    writer.close()


YARDSTICK_HISTORY, YARDSTICK_TARGETS = 512, 10


def yardstick(folder: Path) -> None:
    """The video recommendation task as one would first write it: a pandas frame, row by row, one file at the end."""
    import random
    import uuid

    import pandas as pd

    table = pd.read_parquet(folder / "video_ad_pid2sid.parquet")
    sids = dict(zip(table["pid"], table["sid"], strict=True))

    def text(pids: np.ndarray) -> str:
        found = [sids[pid] for pid in pids if pid in sids]
        return "".join(f"<|sid_begin|><s_a_{a}><s_b_{b}><s_c_{c}><|sid_end|>" for a, b, c in found)

    records = []
    for _, row in pd.read_parquet(folder / "release.parquet").iterrows():
        if row["split"] != 0:
            continue
        history = text(row["hist_video_pid"][-YARDSTICK_HISTORY:])
        answer = text(row["target_video_pid"][:YARDSTICK_TARGETS])
        question = random.choice(["看过的视频：{}\n接下来会看哪些？", "观看记录：{}\n推荐下一批视频。"]).format(history)
        turns = [("system", "你负责视频推荐。"), ("user", question), ("assistant", answer)]
        messages = [{"role": role, "content": [{"type": "text", "text": content}]} for role, content in turns]
        records.append(
            {
                "uuid": str(uuid.uuid4()),
                "source": "RecIF_VideoRec",
                "metadata": json.dumps({"uid": int(row["uid"])}),
                "messages": json.dumps(messages, ensure_ascii=False),
            }
        )
    pd.DataFrame(records).to_parquet(folder / "yardstick.parquet", index=False)


def run_command(folder: Path, workers: int, *more: str) -> list[str]:
    """The command line of the data stage's run on this input."""
    return [
        sys.executable, str(ROOT / "data/onerec_data/run.py"), "--input", str(folder / "release.parquet"),
        "--pid2sid", str(folder / "video_ad_pid2sid.parquet"), "--product_pid2sid", str(folder / "product_pid2sid.parquet"),
        "--caption", str(folder / "pid2caption.parquet"), "--output_dir", str(folder / "output"),
        "--workers", str(workers), *more,
    ]  # fmt: skip


def rows_of(folder: Path, task: str) -> int:
    """Rows that the last run wrote for a task."""
    return pq.read_metadata(folder / "output" / f"{task}.parquet").num_rows


def bench_tasks(args: argparse.Namespace, folder: Path) -> None:
    """Every task alone, all of them together, and the yardstick."""
    start = time.perf_counter()
    make_release(folder, args.users, args.items, CAPTIONS, args.seed)
    print(
        f"input: {args.users:,} users, {args.items:,} items, seed {args.seed} (made in {time.perf_counter() - start:.0f} s)"
    )
    names = list(TASKS)
    print(f"{'task':<28}{'rows':>10}{'seconds':>10}{'rows/s':>10}{'GiB':>8}")

    def line(name: str, rows: int, seconds: float, gib: float) -> None:
        print(f"{name:<28}{rows:>10,}{seconds:>10.2f}{rows / seconds:>10,.0f}{gib:>8.2f}", flush=True)

    if args.each:
        for name in names:
            seconds, gib = measured(run_command(folder, args.workers, "--tasks", name, "--benchmark", "0"))
            line(name, rows_of(folder, name), seconds, gib)
    runs = [
        measured(run_command(folder, args.workers, "--tasks", *names, "--benchmark", "0")) for _ in range(args.repeats)
    ]
    seconds, gib = min(runs)[0], max(peak for _, peak in runs)
    line("all eleven", sum(rows_of(folder, name) for name in names), seconds, gib)
    alone = min(
        measured(run_command(folder, args.workers, "--tasks", "sft_video_rec", "--benchmark", "0"))
        for _ in range(args.repeats)
    )
    line("sft_video_rec alone", rows_of(folder, "sft_video_rec"), *alone)
    if args.yardstick:
        command = [sys.executable, __file__, "yardstick", "--work_dir", str(folder)]
        plain = min(measured(command) for _ in range(args.repeats))
        rows = pq.read_metadata(folder / "yardstick.parquet").num_rows
        line("yardstick (sft_video_rec)", rows, *plain)
        print(f"sft_video_rec alone: {plain[0] / alone[0]:.1f} times the yardstick's rows per second")
        print(
            f"all eleven tasks in {seconds / plain[0]:.2f} of the time that the yardstick takes for one; "
            f"{sum(rows_of(folder, n) for n in names) / seconds / (rows / plain[0]):.1f} times its rows per second"
        )


def records(rng: np.random.Generator, n: int, size: int) -> Iterator[pa.Table]:
    """Record tables of about ``size`` bytes of text a row: SIDs at random, so that they compress as real ones do."""
    import uuid

    for first in range(0, n, 1000):
        count = min(1000, n - first)
        codes = rng.integers(CODEBOOK, size=(count, size // 48, 3))
        texts = [
            "".join(f"<|sid_begin|><s_a_{a}><s_b_{b}><s_c_{c}><|sid_end|>" for a, b, c in row.tolist()) for row in codes
        ]
        yield pa.table(
            {
                "uuid": [str(uuid.UUID(bytes=rng.bytes(16), version=5)) for _ in range(count)],
                "source": ["perf"] * count,
                "metadata": [f'{{"uid":{first + i}}}' for i in range(count)],
                "segments": [f'[{{"type":"text","text":"{text}"}}]' for text in texts],
                "messages": pa.nulls(count, pa.string()),
            }
        )


def bench_mix(args: argparse.Namespace, folder: Path) -> None:
    """Shuffle and shard record text, with buffers far smaller than the input."""
    per_row, n = 12_000, int(args.gb * 1e9 / 12_000)
    rng = np.random.default_rng(args.seed)
    (folder / "in").mkdir(parents=True, exist_ok=True)
    writer, text = None, 0
    for table in records(rng, n, per_row):
        writer = writer or pq.ParquetWriter(folder / "in" / "records.parquet", table.schema, compression="zstd")
        writer.write_table(table)
        text += table.nbytes
    writer.close()
    config = folder / "mix.json"
    config.write_text(json.dumps({"sources": [{"name": "perf", "path": "in"}]}))
    command = [
        sys.executable, str(ROOT / "data/prepare_mix.py"), "--config", str(config), "--base_dir", str(folder),
        "--output_dir", str(folder / "out"), "--buffer_mb", str(args.buffer_mb),
    ]  # fmt: skip
    copy = [sys.executable, __file__, "copy", "--work_dir", str(folder)]
    runs = [measured(command) for _ in range(args.repeats)]
    plain = min(measured(copy) for _ in range(args.repeats))
    seconds, gib = min(runs)[0], max(peak for _, peak in runs)
    print(f"{text / 1e9:.2f} GB of record text, {n:,} rows, buffers of {args.buffer_mb} MB, seed {args.seed}")
    print(f"shuffle and shard: {seconds:.1f} s, {text / 1e6 / seconds:.0f} MB/s, {gib:.2f} GiB")
    print(
        f"reading and writing it in order, whole: {plain[0]:.1f} s, {plain[1]:.2f} GiB; ratio {seconds / plain[0]:.2f}"
    )


def copy(folder: Path) -> None:
    """The least that the mix could cost: read the file, write shards of 1,000 rows in its order."""
    table = pq.read_table(folder / "in" / "records.parquet")
    shutil.rmtree(folder / "copy", ignore_errors=True)
    (folder / "copy").mkdir()
    for i in range(0, table.num_rows, 1000):
        pq.write_table(table.slice(i, 1000), folder / "copy" / f"{i}.parquet", compression="zstd")


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("what", choices=["tasks", "mix", "yardstick", "copy"])
    parser.add_argument("--users", type=COUNT, default=5000, help="tasks: users of the input")
    parser.add_argument("--items", type=COUNT, default=500_000, help="tasks: items of each SID table")
    parser.add_argument("--workers", type=PROCESSES, default=1, help="tasks: processes")
    parser.add_argument("--each", action="store_true", help="tasks: also every task alone")
    parser.add_argument("--no_yardstick", dest="yardstick", action="store_false", help="tasks: without the yardstick")
    parser.add_argument("--gb", type=POSITIVE, default=2.0, help="mix: GB of record text")
    parser.add_argument("--buffer_mb", type=COUNT, default=512, help="mix: memory for rows")
    parser.add_argument(
        "--repeats", type=COUNT, default=3, help="runs of each side; the fastest counts, the largest peak"
    )
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument(
        "--work_dir", type=Path, help="folder for the input and the outputs; a temporary one by default"
    )
    args = parser.parse_args()
    if args.what in ("yardstick", "copy"):
        (yardstick if args.what == "yardstick" else copy)(args.work_dir)
        return
    with tempfile.TemporaryDirectory(dir=args.work_dir) as folder:
        (bench_tasks if args.what == "tasks" else bench_mix)(args, Path(folder))


if __name__ == "__main__":
    cli(main)()
