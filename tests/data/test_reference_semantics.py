"""Row counts and SID strings of every task against a plain, row-by-row reading of the reference scripts' rules.

The rules are those of OpenOneRec's data/onerec_data (github.com/Kuaishou-OneRec/OpenOneRec); the code here is a second,
slow implementation of them. Wording, draws and ids may differ, so only SIDs, labels and counts are compared.
"""

import json
import random
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.onerec_data.run import main
from onerec.parquet import write_table
from tests.data.tests_data import LABELS, release_table, user

SID = re.compile(r"<\|sid_begin\|>.*?<\|sid_end\|>")
N_VIDEO, N_PRODUCT = 60, 30  # with a SID; pids go a little further


def make_users(seed):
    """Users with long and empty histories, nulls, pids without SID, masks of a wrong length, odd keyword tables."""
    rng = random.Random(seed)

    def pids(low, high, n):
        return [rng.randint(1, n + 6) for _ in range(rng.randint(low, high))]

    for uid in range(120):
        row = user(uid, split=int(rng.random() < 0.2))
        history = rng.choice([pids(0, 8, N_VIDEO), pids(500, 540, N_VIDEO), pids(30, 150, N_VIDEO), [], None])
        target = rng.choice([pids(1, 14, N_VIDEO), pids(1, 3, N_VIDEO), [], None])
        row |= {"hist_video_pid": history, "target_video_pid": target}
        for side, items in (("hist", history), ("target", target)):
            for label in LABELS:
                mask = [int(rng.random() < 0.3) for _ in items or []]
                row[f"{side}_video_{label}"] = rng.choice([mask] * 8 + [[*mask, 1], None])
        row["hist_ad_pid"], row["target_ad_pid"] = (
            pids(0, 260, N_VIDEO),
            rng.choice([pids(0, 13, N_VIDEO), None]),
        )
        row["hist_goods_pid"] = rng.choice([pids(90, 120, N_PRODUCT), None])
        row["target_goods_pid"] = pids(0, 13, N_PRODUCT)
        row["inter_user_profile_with_sid"] = rng.choice(["喜欢户外", "", None])
        row["inter_user_profile"] = None
        words = {f"词{i}": pids(0, 12, N_VIDEO) for i in range(rng.randint(0, 3))}
        row["inter_keyword_to_items"] = rng.choice([json.dumps(words), json.dumps(words), None])
        row["reco_cot"] = rng.choice(["因为", " ", None])
        yield row


@pytest.fixture
def world(tmp_path):
    rows = list(make_users(7))
    table = release_table(rows)
    table = table.append_column(
        "inter_user_profile_with_sid",
        pa.array([row["inter_user_profile_with_sid"] for row in rows], pa.string()),
    )
    write_table(tmp_path / "release.parquet", table)
    sids = {}
    for name, n in (("video_ad", N_VIDEO), ("product", N_PRODUCT)):
        codes = {pid: [pid * 7 % 8192, pid * 3, pid] for pid in range(1, n + 1)}
        lists = pa.array(list(codes.values()), pa.list_(pa.int64()))
        write_table(tmp_path / f"{name}_pid2sid.parquet", pa.table({"pid": list(codes), "sid": lists}))
        sids[name] = {pid: "<|sid_begin|><s_a_{}><s_b_{}><s_c_{}><|sid_end|>".format(*c) for pid, c in codes.items()}
    argv = ["--input", f"{tmp_path}/release.parquet", "--pid2sid", f"{tmp_path}/video_ad_pid2sid.parquet"]
    argv += ["--product_pid2sid", f"{tmp_path}/product_pid2sid.parquet", "--output_dir", f"{tmp_path}/out"]
    main([*argv, "--max_bad_ratio", "1"])
    return tmp_path / "out", [row for row in rows if row["split"] == 0], sids


def made(folder, task):
    """(uid, SIDs of the prompt, answer) of every record of a task, in order."""
    found = []
    for row in pq.read_table(folder / f"{task}.parquet").to_pylist():
        *prompt, answer = [m["content"][0]["text"] for m in json.loads(row["messages"])]
        found.append((json.loads(row["metadata"])["uid"], SID.findall("".join(prompt)), answer))
    return found


def known(pids, table):
    return [table[pid] for pid in pids or [] if pid in table]


def kinds(row, side, n, sids):
    """label -> SIDs of the items whose mask is 1, where mask and list have one length."""
    items, found = row[f"{side}_video_pid"], {}
    for label in LABELS:
        mask = row[f"{side}_video_{label}"]
        if mask is not None and len(mask) == len(items):
            chosen = [pid for pid, on in zip(items, mask, strict=True) if on == 1]
            if chosen:
                found[label] = known(chosen[n] if isinstance(n, slice) else chosen, sids)
    return found


def test_video_rec(world):
    folder, rows, sids = world
    expected = []
    for row in rows:
        history = known((row["hist_video_pid"] or [])[-512:], sids["video_ad"])
        target = known((row["target_video_pid"] or [])[:10], sids["video_ad"])
        if history and target:
            expected.append((row["uid"], history, "".join(target)))
    assert made(folder, "sft_video_rec") == expected
    texts = pq.read_table(folder / "pretrain_video_rec.parquet")["segments"].to_pylist()
    assert [SID.findall(text) for text in texts] == [h + SID.findall(t) for _, h, t in expected]
    assert any(len(history) > 400 for _, history, _ in expected)


@pytest.mark.parametrize(
    ("task", "domain", "table", "n"), [("ad", "ad", "video_ad", 200), ("product", "goods", "product", 100)]
)
def test_cross_domain(world, task, domain, table, n):
    folder, rows, sids = world
    expected = []
    for row in rows:
        pairs = zip(row["hist_video_pid"] or [], row["hist_video_longview"] or [], strict=False)
        watched = known([pid for pid, on in pairs if on == 1][-100:], sids["video_ad"])
        clicks = known((row[f"hist_{domain}_pid"] or [])[-n:], sids[table])
        target = known((row[f"target_{domain}_pid"] or [])[:10], sids[table])
        if target and (watched or clicks):
            expected.append((row["uid"], watched + clicks, "".join(target)))
    assert made(folder, f"sft_{task}_rec") == expected and len(expected) > 20


def interactions(row, sids):
    if row["hist_video_pid"] is None:
        return []
    return [sid for found in kinds(row, "hist", slice(-10, None), sids).values() for sid in found]


def test_label_pred(world):
    folder, rows, sids = world
    expected = []
    for row in rows:
        body, target = interactions(row, sids["video_ad"]), row["target_video_pid"]
        mask = row["target_video_longview"]
        if not body or not target or mask is None or len(mask) != len(target):
            continue
        for pid, on in list(zip(target, mask, strict=True))[:10]:
            if pid in sids["video_ad"]:
                expected.append((row["uid"], [*body, sids["video_ad"][pid]], "是" if on else "否"))
    assert made(folder, "sft_label_pred") == expected and len(expected) > 100


def test_label_cond_rec(world):
    folder, rows, sids = world
    labels = [
        json.loads(m)["target_interaction"]
        for m in pq.read_table(folder / "sft_label_cond_rec.parquet")["metadata"].to_pylist()
    ]
    found = {
        uid: (prompt, answer, label)
        for (uid, prompt, answer), label in zip(made(folder, "sft_label_cond_rec"), labels, strict=True)
    }
    possible = {}
    for row in rows:
        body = interactions(row, sids["video_ad"])
        if body and row["target_video_pid"] is not None:
            choices = kinds(row, "target", slice(0, 10), sids["video_ad"])
            if choices:
                possible[row["uid"]] = (body, choices)
    for uid, (prompt, answer, label) in found.items():
        body, choices = possible[uid]
        assert prompt == body and answer == "".join(choices[label])
    # Every user with an item of some kind that has a SID gives a row, though other kinds of theirs have none.
    assert {uid for uid, (_, choices) in possible.items() if any(choices.values())} == set(found)
    assert any(not all(choices.values()) for _, choices in map(possible.get, found))
    assert len(set(labels)) == len(LABELS)


def test_interactive_rec(world):
    folder, rows, sids = world
    expected = []
    for row in rows:
        if not row["inter_user_profile_with_sid"] or row["inter_keyword_to_items"] is None:
            continue
        for pids in json.loads(row["inter_keyword_to_items"]).values():
            if target := known(pids[:10], sids["video_ad"]):
                expected.append((row["uid"], [], "".join(target)))
    assert made(folder, "sft_interactive_rec") == expected and len(expected) > 20


def test_rec_reason_and_profiles(world):
    folder, rows, _ = world
    profiled = [row for row in rows if row["inter_user_profile_with_sid"]]
    assert pq.read_metadata(folder / "pretrain_user_profile.parquet").num_rows == len(profiled)
    reasoned = [row["uid"] for row in profiled if (row["reco_cot"] or "").strip()]
    assert [uid for uid, _, _ in made(folder, "sft_rec_reason")] == reasoned
