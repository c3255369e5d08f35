"""The recipes from the raw files to the table over seeds: on an invented log, and on one per cent of the real ones."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.results import load_predictions

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow

# A few steps of a model of a few thousand parameters: what is tested is the chain, not its numbers.
SMALL = """
world.N_USERS=150 world.N_VIDEOS=240 world.N_ADS=24 world.N_GOODS=48 world.N_FACTS=10 world.N_TEXTS=40
tokenizer.CODEBOOK_SIZE=32 tokenizer.EMBEDDING_DIM=16 data.TEST_SIZE=5
base.VOCAB_SIZE=300 base.HIDDEN_SIZE=32 base.NUM_HIDDEN_LAYERS=1 base.NUM_ATTENTION_HEADS=1 base.NUM_KEY_VALUE_HEADS=1
base.INTERMEDIATE_SIZE=64 base.NUM_TRAINING_STEPS=4 base.MAX_LENGTH=1024
stg1.NUM_TRAINING_STEPS=4 stg1.MAX_LENGTH=1024 stg2.NUM_TRAINING_STEPS=12 stg2.MAX_LENGTH=1024
stg2.SAVE_CHECKPOINT_PER_STEP=6 sft.NUM_TRAINING_STEPS=8 sft.MAX_LENGTH=1024 sft.SAVE_CHECKPOINT_PER_STEP=4
evaluate.VALIDATION_USERS=40 evaluate.SAMPLE_SIZE=60 evaluate.BEAM_WIDTHS=10 evaluate.BEAM_SAMPLES=10
evaluate.NUM_BEAMS=10 evaluate.FREE_SIDS=5 evaluate.TEXT_SAMPLE_SIZE=2 evaluate.MAX_ANSWER_TOKENS=8
evaluate.EVAL_STAGES=sft evaluate.TASKS=video evaluate.BASELINES=popularity,sasrec evaluate.EPOCHS=1
"""


def recipe(name: str, data: Path, runs: Path, *settings: str, seeds: str = "0") -> subprocess.CompletedProcess[str]:
    sets = [word for setting in (*SMALL.split(), *settings) for word in ("--set", setting)]
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / "recipes" / f"{name}.sh"), str(data), *sets],
        cwd=ROOT,
        env=os.environ | {"RUNS": str(runs), "SEEDS": seeds, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=7200,
    )


def finished(done: subprocess.CompletedProcess[str], runs: Path) -> dict[str, dict]:
    """The rows of the table, by name."""
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "| sft |" in done.stdout and (runs / "seed0" / "report" / "report.html").exists()
    rows = json.loads((runs / "seeds.json").read_text())["rows"]
    return {row["name"]: row for row in rows}


def one_in_a_hundred(path: Path, seed: int = 0) -> dict[str, list[int]]:
    """One per cent of the users of a sequence file."""
    if path.suffix == ".json":
        users = json.loads(path.read_text())
    else:
        users = {user: items for user, *items in map(str.split, path.read_text().splitlines())}
    return {user: users[user] for user in random.Random(seed).sample(sorted(users), len(users) // 100)}


def write_beauty(folder: Path, sequences: dict[str, list[int]], codes: dict[str, list[int]]) -> Path:
    folder.mkdir()
    items = {str(item) for sequence in sequences.values() for item in sequence}
    (folder / "inter.json").write_text(json.dumps(sequences))
    (folder / "index_rqkmeans.json").write_text(json.dumps({item: codes[item] for item in items}))
    return folder


@pytest.fixture(scope="module")
def invented(tmp_path_factory) -> Path:
    """Sequences of eighty users, each among the twenty items of a group."""
    rng = np.random.default_rng(0)
    sequences = {
        str(user): (rng.permutation(20)[: rng.integers(5, 12)] + 20 * rng.integers(10)).tolist() for user in range(80)
    }
    path = tmp_path_factory.mktemp("invented") / "Beauty.json"
    path.write_text(json.dumps(sequences))
    return path


def test_amazon_on_an_invented_log(invented, tmp_path):
    rows = finished(recipe("amazon", invented, tmp_path), tmp_path)
    ranked = ("sft", "sft_prior", "popularity", "sasrec")
    assert {"TIGER", *ranked, *(f"{name}_unseen" for name in ranked)} <= set(rows)
    assert rows["sft"]["users"] == 60 and rows["TIGER"]["source"] == "arXiv 2305.05065"
    run = tmp_path / "seed0"
    # What went on is the checkpoint that the validation targets chose, which are not the test's.
    for stage, steps in (("stage2", [6, 12]), ("sft", [4, 8])):
        choice = json.loads((run / "models" / stage / "choice.json").read_text())
        assert [point["step"] for point in choice["curve"]] == steps and choice["users"] == 40
        best = run / "models" / stage / f"step{choice['best']}" / f"global_step{choice['best']}" / "model.safetensors"
        assert weights(run / "models" / stage / "hf" / "model.safetensors") == weights(best)
        metrics = json.loads((run / "benchmarks/results/v1.0/results_sft/metrics.json").read_text())
        assert choice["data"] != metrics["data"]["tests"]["video"]
    # Both protocols on the same users: one may recommend what a history holds, the other never does.
    histories = {int(user): items[:-1] for user, items in json.loads(invented.read_text()).items()}
    for name in (f"{name}{protocol}" for name in ("sft", "sft_prior", "popularity") for protocol in ("", "_unseen")):
        lines = load_predictions(run / "benchmarks/results/v1.0" / f"results_{name}", "video")
        repeats = sum(item in histories[line["uid"]] for line in lines for item in line["items"])
        assert len(lines) == 60 and (repeats == 0 if name.endswith("_unseen") else repeats > 0)
    other = recipe("amazon", invented, tmp_path, "stg2.DROPOUT=0.3")
    assert other.returncode == 2 and "was begun with other settings" in other.stderr
    # In the same folder what is there stays, and the table is of both seeds: the second is the first's run, renamed.
    shutil.copytree(run, tmp_path / "seed1")
    settings = tmp_path / "seed1/.done/settings"
    settings.write_text(settings.read_text().replace("\nSEED=0\n", "\nSEED=1\n"))
    again = recipe("amazon", invented, tmp_path, seeds="0 1")
    assert again.stdout.count("== 08_posttrain_sft: finished before") == 2
    recall = finished(again, tmp_path)["sft"]["metrics"]["recall@10"]
    assert len(recall["seeds"]) == 2 and recall["seeds"][0] == recall["seeds"][1]


def weights(path: Path) -> dict[str, bytes]:
    from safetensors.numpy import load_file

    return {name: value.tobytes() for name, value in load_file(path).items()}


def prepared(profile: str, run: Path, *settings: str, **files: Path) -> Path:
    """Files of the real data through the numbered scripts to records, mixes and test files, with a profile's settings.

    What follows knows nothing of where the records came from: the invented log goes all the way.
    """
    env = {"PROFILE": profile, "RUN_DIR": str(run), "OMP_NUM_THREADS": "2"} | {k: str(v) for k, v in files.items()}
    env["ONEREC_SETTINGS"] = "\n".join([*SMALL.split(), *settings])
    for script in ("01_world", "02_tokenizer", "03_data"):
        done = subprocess.run(
            ["bash", str(ROOT / "scripts" / f"{script}.sh")],
            cwd=ROOT,
            env=os.environ | env,
            capture_output=True,
            text=True,
            timeout=3600,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for mix in ("pretrain", "sft"):
        assert list((run / "output" / f"split_data_{mix}").glob("*.parquet"))
    return run


def users_of(run: Path) -> int:
    return pq.read_metadata(run / "output/benchmark_data/video/video_test.parquet").num_rows


def test_beauty_on_one_per_cent_with_the_published_codes_as_they_are(shared_data, tmp_path):
    real = shared_data("amazon2014/beauty_sids")
    codes = json.loads((real / "index_rqkmeans.json").read_text())
    users = one_in_a_hundred(real / "inter.json")
    data = write_beauty(tmp_path / "data", users, codes)
    imported = (
        "tokenizer.SIDS=imported",
        "tokenizer.N_LAYERS=3",
        "tokenizer.CODEBOOK_SIZE=256",
        "tokenizer.COLLISIONS=own",
    )
    files = {"AMAZON_SEQUENCES": data / "inter.json", "SID_CODES": data / "index_rqkmeans.json"}
    run = prepared("amazon_beauty", tmp_path / "run", *imported, **files)
    assert users_of(run) == len(users)
    spec = json.loads((run / "raw_data/onerec_data/sid_spec.json").read_text())
    assert spec["codebook_sizes"][:3] == [256] * 3 and len(spec["codebook_sizes"]) == 4
    assert spec["collision"] == "extra_layer"


def test_toys_on_one_per_cent(shared_data, tmp_path):
    real = shared_data("amazon2014")
    users = one_in_a_hundred(real / "Toys_and_Games.txt")
    sequences = tmp_path / "Toys_and_Games.txt"
    sequences.write_text("".join(" ".join([user, *map(str, items)]) + "\n" for user, items in users.items()))
    files = {"AMAZON_SEQUENCES": sequences, "AMAZON_ATTRIBUTES": real / "Toys_and_Games_item2attributes.json"}
    assert users_of(prepared("amazon", tmp_path / "run", **files)) == len(users)


def test_movielens_on_one_per_cent(shared_data, tmp_path):
    real, data = shared_data("ml-100k"), tmp_path / "data"
    data.mkdir()
    head, *lines = (real / "ml-100k.inter").read_text().splitlines()
    kept = set(random.Random(0).sample(sorted({line.split("\t")[0] for line in lines}), 10))
    (data / "ml-100k.inter").write_text("\n".join([head, *(x for x in lines if x.split("\t")[0] in kept)]) + "\n")
    for name in ("ml-100k.item", "ml-100k.user"):
        (data / name).write_bytes((real / name).read_bytes())
    assert users_of(prepared("movielens100k", tmp_path / "run", MOVIELENS_DIR=data)) == 10


@pytest.mark.parametrize("name", ["amazon", "amazon_beauty", "movielens100k"])
def test_a_missing_folder_is_one_line(name, tmp_path):
    wrong = recipe(name, tmp_path / "nowhere", tmp_path / "runs")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: ") and wrong.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()
