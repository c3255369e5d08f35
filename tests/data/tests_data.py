"""Builders of a very small release, for the tests of the data stage."""

from __future__ import annotations

import pyarrow as pa

LABELS = ("longview", "like", "follow", "forward", "not_interested")
LISTS = pa.list_(pa.int64())


def user(uid: int, split: int = 0, **changes):
    """A user with three watched videos, two targets, ads, products, profile, keywords and reasoning."""
    row = {
        "uid": uid,
        "split": split,
        "hist_video_pid": [1, 2, 3],
        "target_video_pid": [4, 5],
        "hist_longview_video_list": [1, 3],
        "hist_ad_pid": [6],
        "target_ad_pid": [7],
        "hist_goods_pid": [1],
        "target_goods_pid": [2, 3],
        "inter_user_profile": "喜欢<pid:1>和<pid:99>",
        "inter_keyword_to_items": '{"猫": [4, 5], "狗": [99]}',
        "reco_gsu_caption": "看过猫",
        "reco_target_caption": "小狗",
        "reco_cot": "因为喜欢动物",
        "target_pid": 4,
    }
    for label in LABELS:
        row[f"hist_video_{label}"] = [1, 0, 1] if label == "longview" else [0, 1, 0] if label == "like" else [0, 0, 0]
        row[f"target_video_{label}"] = [1, 0] if label == "longview" else [0, 0]
    return row | changes


def release_table(rows) -> pa.Table:
    fields = []
    for name, value in user(0).items():
        kind = pa.string() if isinstance(value, str) else LISTS if isinstance(value, list) else pa.int64()
        fields.append(pa.field(name, kind))
    return pa.Table.from_pylist(rows, schema=pa.schema(fields))
