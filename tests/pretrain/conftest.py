"""A tiny base model, its expanded checkpoint and a folder of records, made once a session."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from onerec.files import FILE_LIST
from onerec.records import chat_record, message, record_uuid, text_record, write_records
from onerec.run import write_json
from onerec.sid import SidSpec

CODEBOOKS = (4, 4, 4)
SMALL = [
    "--vocab_size",
    "320",
    "--hidden_size",
    "32",
    "--num_hidden_layers",
    "2",
    "--num_attention_heads",
    "4",
    "--num_key_value_heads",
    "2",
    "--head_dim",
    "8",
    "--intermediate_size",
    "48",
    "--initializer_range",
    "0.2",
]


def make_records(spec: SidSpec) -> tuple[list, list]:
    """(general, recommendation) records: sums as chat and as text, and users' histories with what they watched next."""
    rng = random.Random(0)
    general, recommendation = [], []
    for i in range(30):
        a, b = rng.randrange(30), rng.randrange(30)
        turns = [
            message("user", f"{a}加{b}等于多少？"),
            message("assistant", f"<think>\n{a} and {b}\n</think>\n\n{a + b}" if i % 3 == 0 else f"{a + b}"),
        ]
        general.append(chat_record(record_uuid("chat", i), "arithmetic", {}, turns))
        general.append(
            text_record(
                record_uuid("text", i),
                "facts",
                {},
                [f"The sum of {a} and {b} is {a + b}. "] * rng.randrange(1, 5),
            )
        )
    for i in range(30):
        sids = [spec.text([rng.randrange(4) for _ in range(3)]) for _ in range(rng.randrange(3, 9))]
        turns = [
            message("user", "用户看过" + "".join(sids[:-1]) + "，接下来会看什么？"),
            message("assistant", sids[-1]),
        ]
        recommendation.append(chat_record(record_uuid("video", i), "video_rec", {"uid": i}, turns))
    return general, recommendation


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """``general/``, ``rec/``, ``sid_spec.json``, ``config.json``; the models ``base`` (tied) and two ``…_itemic``."""
    from pretrain import expand_vocab, make_tiny_qwen3

    root = tmp_path_factory.mktemp("pretrain")
    spec = SidSpec(CODEBOOKS)
    spec.save(root)
    general, recommendation = make_records(spec)
    write_records(root / "general" / "part-0.parquet", general)
    for shard in range(3):
        write_records(root / "rec" / f"part-{shard}.parquet", recommendation[shard::3])
    write_json(root / "rec" / FILE_LIST, [f"part-{shard}.parquet" for shard in range(3)])
    for name, extra in (("base", []), ("untied", ["--untied"])):
        make_tiny_qwen3.main(["--corpus", str(root / "general"), "--output_dir", str(root / name), *SMALL, *extra])
        expand_vocab.main(
            [
                "--hf_model_dir",
                str(root / name),
                "--output_model_dir",
                str(root / f"{name}_itemic"),
                "--sid_spec",
                str(root),
            ]
        )
    write_json(root / "config.json", {"sources": ["rec", "general"], "max_length": 256, "add_think_pattern": True})
    return root


@pytest.fixture
def config_file(world, tmp_path):
    """Write a dataset config beside the records: ``config_file(max_length=64)`` gives its path."""

    def write(**keys) -> Path:
        path = world / f"config_{tmp_path.name}.json"
        path.write_text(
            json.dumps({"sources": ["rec", "general"], "max_length": 256, "add_think_pattern": True} | keys)
        )
        return path

    return write
