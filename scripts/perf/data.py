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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))
from measure import ROOT, ArgumentParser, add_numbers, measured

from onerec.cli import cli
from onerec.flags import POSITIVE
from onerec.sid import SidSpec
from onerec.tasks import TASKS

LABELS = {"longview": 0.3, "like": 0.05, "follow": 0.01, "forward": 0.01, "not_interested": 0.01}
SPEC = SidSpec((8192,) * 3)
NAMES = [task.name for task in TASKS.values() if task.default]
USERS_PER_GROUP = 2000
CAPTIONS = 20_000  # items with a caption


def lists(lengths: np.ndarray, values: Callable[[int], np.ndarray]) -> pa.Array:
    """A list column with rows of ``lengths``."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values(int(offsets[-1]))))


def users(rng: np.random.Generator, first: int, n: int, n_items: int) -> pa.Table:
    """A block of users in the release's columns, one in ten of them a test user."""
    history = np.clip(rng.lognormal(6.2, 0.6, n), 20, 4000).astype(np.int64)
    columns: dict[str, Any] = {"uid": np.arange(first, first + n), "split": (rng.random(n) < 0.1).astype(np.int64)}

    def pids(count: int) -> np.ndarray:
        return (n_items * rng.random(count) ** 2).astype(np.int64)  # popular items come more often

    for side, lengths in (("hist", history), ("target", np.full(n, 10))):
        columns[f"{side}_video_pid"] = lists(lengths, pids)
        for label, share in LABELS.items():
            mask = lists(lengths, lambda count, share=share: (rng.random(count) < share).astype(np.int64))
            columns[f"{side}_video_{label}"] = mask
    for domain, mean in (("ad", 60), ("goods", 40)):
        columns[f"hist_{domain}_pid"] = lists(rng.poisson(mean, n), pids)
        columns[f"target_{domain}_pid"] = lists(rng.poisson(5, n), pids)
    sid = "".join(SPEC.text([i] * 3) for i in range(100, 110))
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


def make_release(folder: Path, n_users: int, n_items: int, n_captions: int) -> None:
    """Write the four files of a release of this size."""
    rng = np.random.default_rng(0)
    for name in ("video_ad", "product"):
        codes = pa.FixedSizeListArray.from_arrays(pa.array(rng.integers(8192, size=3 * n_items)), 3)
        table = pa.table({"pid": np.arange(n_items), "sid": codes.cast(pa.list_(pa.int64()))})
        pq.write_table(table, folder / f"{name}_pid2sid.parquet")
    captions = ["画面里有人在做一件有趣的事。" * 6] * n_captions
    pq.write_table(pa.table({"pid": np.arange(n_captions), "dense_caption": captions}), folder / "pid2caption.parquet")
    write(
        folder / "release.parquet",
        (users(rng, at, min(USERS_PER_GROUP, n_users - at), n_items) for at in range(0, n_users, USERS_PER_GROUP)),
    )


def write(path: Path, tables: Iterator[pa.Table]) -> int:
    """Write tables as one file; the bytes that they have in memory."""
    first = next(tables)
    with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
        writer.write_table(first)
        size = first.nbytes
        for table in tables:
            writer.write_table(table)
            size += table.nbytes
    return size


def yardstick(folder: Path) -> None:
    """The video recommendation task as one would first write it: a pandas frame, row by row, one file at the end."""
    import random
    import uuid

    import pandas as pd

    table = pd.read_parquet(folder / "video_ad_pid2sid.parquet")
    sids = dict(zip(table["pid"], table["sid"], strict=True))

    def text(pids: np.ndarray) -> str:
        return "".join(SPEC.text(sids[pid]) for pid in pids if pid in sids)

    records = []
    for _, row in pd.read_parquet(folder / "release.parquet").iterrows():
        if row["split"] != 0:
            continue
        history, answer = text(row["hist_video_pid"][-512:]), text(row["target_video_pid"][:10])
        question = random.choice(["看过的视频：{}\n接下来会看哪些？", "观看记录：{}\n推荐下一批视频。"]).format(history)
        turns = [("system", "你负责视频推荐。"), ("user", question), ("assistant", answer)]
        messages = [{"role": role, "content": [{"type": "text", "text": content}]} for role, content in turns]
        record = {
            "uuid": str(uuid.uuid4()),
            "source": "RecIF_VideoRec",
            "metadata": json.dumps({"uid": int(row["uid"])}),
        }
        records.append({**record, "messages": json.dumps(messages, ensure_ascii=False)})
    pd.DataFrame(records).to_parquet(folder / "yardstick.parquet", index=False)


def bench_tasks(args: argparse.Namespace, folder: Path) -> None:
    """All eleven tasks together, one of them alone, and the yardstick."""
    make_release(folder, args.users, args.items, CAPTIONS)
    print(f"input: {args.users:,} users, {args.items:,} items")
    print(f"{'task':<28}{'rows':>10}{'seconds':>10}{'rows/s':>10}{'GiB':>8}")
    inputs = {"input": "release", "pid2sid": "video_ad_pid2sid", "product_pid2sid": "product_pid2sid"}
    inputs |= {"caption": "pid2caption"}
    command = [sys.executable, str(ROOT / "data/onerec_data/run.py"), "--output_dir", str(folder / "output")]
    command += [part for flag, name in inputs.items() for part in (f"--{flag}", str(folder / f"{name}.parquet"))]
    command += ["--workers", str(args.workers), "--benchmark", "0"]

    def line(name: str, runs: list[tuple[float, float]], files: list[Path]) -> tuple[int, float]:
        rows = sum(pq.read_metadata(file).num_rows for file in files)
        seconds, gib = min(runs)[0], max(peak for _, peak in runs)
        print(f"{name:<28}{rows:>10,}{seconds:>10.2f}{rows / seconds:>10,.0f}{gib:>8.2f}", flush=True)
        return rows, seconds

    def repeated(*more: str) -> list[tuple[float, float]]:
        return [measured([*command, *more]) for _ in range(args.repeats)]

    runs = repeated("--tasks", *NAMES)
    rows, seconds = line("all eleven", runs, [folder / "output" / f"{name}.parquet" for name in NAMES])
    _, alone = line(
        "sft_video_rec alone", repeated("--tasks", "sft_video_rec"), [folder / "output/sft_video_rec.parquet"]
    )
    if args.yardstick:
        plain = [
            measured([sys.executable, __file__, "yardstick", "--work_dir", str(folder)]) for _ in range(args.repeats)
        ]
        own_rows, own = line("yardstick (sft_video_rec)", plain, [folder / "yardstick.parquet"])
        print(f"sft_video_rec alone: {own / alone:.1f} times the yardstick's rows per second")
        print(
            f"all eleven tasks in {seconds / own:.2f} of the time that the yardstick takes for one; "
            f"{rows / seconds / (own_rows / own):.1f} times its rows per second"
        )


def records(n: int, size: int) -> Iterator[pa.Table]:
    """Record tables of about ``size`` bytes of text a row: SIDs at random, so that they compress as real ones do."""
    import uuid

    rng = np.random.default_rng(0)
    for first in range(0, n, 1000):
        count = min(1000, n - first)
        codes = rng.integers(8192, size=(count, size // 48, 3)).tolist()
        texts = ["".join(map(SPEC.text, row)) for row in codes]
        columns = {
            "uuid": [str(uuid.UUID(bytes=rng.bytes(16), version=5)) for _ in range(count)],
            "source": ["perf"] * count,
            "metadata": [f'{{"uid":{first + i}}}' for i in range(count)],
            "segments": [json.dumps([{"type": "text", "text": text}], separators=(",", ":")) for text in texts],
            "messages": pa.nulls(count, pa.string()),
        }
        yield pa.table(columns)


def bench_mix(args: argparse.Namespace, folder: Path) -> None:
    """Shuffle and shard record text, with buffers far smaller than the input."""
    per_row, n = 12_000, int(args.gb * 1e9 / 12_000)
    (folder / "in").mkdir()
    text = write(folder / "in" / "records.parquet", records(n, per_row))
    (folder / "mix.json").write_text(json.dumps({"sources": [{"name": "perf", "path": "in"}]}))
    command = [sys.executable, str(ROOT / "data/prepare_mix.py"), "--config", str(folder / "mix.json")]
    command += ["--base_dir", str(folder), "--output_dir", str(folder / "out"), "--buffer_mb", str(args.buffer_mb)]
    runs = [measured(command) for _ in range(args.repeats)]
    plain = min(measured([sys.executable, __file__, "copy", "--work_dir", str(folder)]) for _ in range(args.repeats))
    seconds, gib = min(runs)[0], max(peak for _, peak in runs)
    print(f"{text / 1e9:.2f} GB of record text, {n:,} rows, buffers of {args.buffer_mb} MB")
    print(f"shuffle and shard: {seconds:.1f} s, {text / 1e6 / seconds:.0f} MB/s, {gib:.2f} GiB")
    ratio = seconds / plain[0]
    print(f"reading and writing it in order, whole: {plain[0]:.1f} s, {plain[1]:.2f} GiB; ratio {ratio:.2f}")


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
    add_numbers(parser, users=(5000, "tasks: users of the input"), items=(500_000, "tasks: items of each SID table"))
    add_numbers(parser, workers=(1, "tasks: processes"))
    add_numbers(parser, buffer_mb=(512, "mix: memory for rows"))
    add_numbers(parser, repeats=(3, "runs of each side; the fastest counts, the largest peak"))
    parser.add_argument("--no_yardstick", dest="yardstick", action="store_false", help="tasks: without the yardstick")
    parser.add_argument("--gb", type=POSITIVE, default=2.0, help="mix: GB of record text")
    parser.add_argument("--work_dir", type=Path, help="folder for the files; a temporary one by default")
    args = parser.parse_args()
    if args.what in ("yardstick", "copy"):
        (yardstick if args.what == "yardstick" else copy)(args.work_dir)
        return
    with tempfile.TemporaryDirectory(dir=args.work_dir) as folder:
        (bench_tasks if args.what == "tasks" else bench_mix)(args, Path(folder))


if __name__ == "__main__":
    cli(main)()
