"""The recipes from the raw files to the table over seeds: on an invented log, and on one per cent of the real ones."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path

import numpy as np
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

# Of the real files the chain alone: stage 1, the choice among Amazon's checkpoints, the second protocol and SASRec are
# asked of the invented log.
CHAIN = [
    "stg1.NUM_TRAINING_STEPS=0",
    "evaluate.VALIDATION_USERS=0",
    "evaluate.ALSO_EXCLUDE_SEEN=0",
    "evaluate.BASELINES=popularity",
]


def recipe(name: str, data: Path, runs: Path, *settings: str, seeds: str = "0") -> subprocess.CompletedProcess[str]:
    sets = [word for setting in (*SMALL.split(), *settings) for word in ("--set", setting)]
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / "recipes" / f"{name}.sh"), str(data), *sets],
        cwd=ROOT,
        env=os.environ | {"RUNS": str(runs), "SEEDS": seeds, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=1800,
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
    """Eighty users of two hundred items; the codes say which of ten groups an item is of."""
    rng = np.random.default_rng(0)
    sequences = {
        str(user): (rng.permutation(20)[: rng.integers(5, 12)] + 20 * rng.integers(10)).tolist() for user in range(80)
    }
    codes = {str(item): [item // 20, item % 5, item % 3, item % 7] for item in range(200)}
    return write_beauty(tmp_path_factory.mktemp("invented") / "data", sequences, codes)


def test_beauty_on_an_invented_log(invented, tmp_path):
    rows = finished(recipe("amazon_beauty", invented, tmp_path), tmp_path)
    assert {"sft", "sft_unseen", "popularity", "popularity_unseen", "sasrec", "TIGER"} <= set(rows)
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
    histories = {int(user): items[:-1] for user, items in json.loads((invented / "inter.json").read_text()).items()}
    for name, least in (("sft", 1), ("sft_unseen", 0), ("popularity", 1), ("popularity_unseen", 0)):
        lines = load_predictions(run / "benchmarks/results/v1.0" / f"results_{name}", "video")
        repeats = sum(item in histories[line["uid"]] for line in lines for item in line["items"])
        assert len(lines) == 60 and (repeats >= least if least else repeats == 0)
    other = recipe("amazon_beauty", invented, tmp_path, "stg2.DROPOUT=0.3")
    assert other.returncode == 2 and "was begun with other settings" in other.stderr


def weights(path: Path) -> dict[str, bytes]:
    from safetensors.numpy import load_file

    return {name: value.tobytes() for name, value in load_file(path).items()}


def test_beauty_on_one_per_cent_with_the_published_codes_as_they_are(shared_data, tmp_path):
    real = shared_data("amazon2014/beauty_sids")
    codes = json.loads((real / "index_rqkmeans.json").read_text())
    data, runs = (
        write_beauty(tmp_path / "data", one_in_a_hundred(real / "inter.json"), codes),
        tmp_path / "runs",
    )
    imported = [
        "tokenizer.SIDS=imported",
        "tokenizer.N_LAYERS=3",
        "tokenizer.CODEBOOK_SIZE=256",
        "tokenizer.COLLISIONS=own",
        "base.INIT=mean",
    ]
    assert finished(recipe("amazon_beauty", data, runs, *CHAIN, *imported), runs)["sft"]["users"] == 60
    spec = json.loads((runs / "seed0/raw_data/onerec_data/sid_spec.json").read_text())
    assert spec["codebook_sizes"][:3] == [256] * 3 and len(spec["codebook_sizes"]) == 4
    assert spec["collision"] == "extra_layer"


def test_toys_on_one_per_cent_and_again_with_another_seed(shared_data, tmp_path):
    real = shared_data("amazon2014")
    users = one_in_a_hundred(real / "Toys_and_Games.txt")
    lines = [" ".join([user, *map(str, items)]) for user, items in users.items()]
    (tmp_path / "Toys_and_Games.txt").write_text("\n".join(lines) + "\n")
    name = "Toys_and_Games_item2attributes.json"
    (tmp_path / name).write_text((real / name).read_text())
    runs = tmp_path / "runs"
    assert finished(recipe("amazon_toys", tmp_path, runs, *CHAIN), runs)["sft"]["users"] == 60
    # In the same folder what is there stays, and the table is of both.
    again = recipe("amazon_toys", tmp_path, runs, *CHAIN, seeds="0 1")
    assert "== 08_posttrain_sft: finished before" in again.stdout
    rows = finished(again, runs)
    assert len(rows["sft"]["metrics"]["recall@10"]["seeds"]) == 2 and rows["sft"]["users"] == 60


def test_movielens_on_one_per_cent(shared_data, tmp_path):
    real, data = shared_data("ml-100k"), tmp_path / "data"
    data.mkdir()
    head, *lines = (real / "ml-100k.inter").read_text().splitlines()
    kept = set(random.Random(0).sample(sorted({line.split("\t")[0] for line in lines}), 10))
    (data / "ml-100k.inter").write_text("\n".join([head, *(x for x in lines if x.split("\t")[0] in kept)]) + "\n")
    for name in ("ml-100k.item", "ml-100k.user"):
        (data / name).write_bytes((real / name).read_bytes())
    # Histories are long here: a shorter row would leave their samples out.
    longer = [f"{stage}.MAX_LENGTH=4096" for stage in ("stg1", "stg2", "sft")]
    runs = tmp_path / "runs"
    rows = finished(recipe("movielens100k", data, runs, *CHAIN, *longer, "evaluate.VALIDATION_USERS=40"), runs)
    assert rows["sft"]["users"] == 10


@pytest.mark.parametrize("name", ["amazon_beauty", "amazon_toys", "movielens100k"])
def test_a_missing_folder_is_one_line(name, tmp_path):
    wrong = recipe(name, tmp_path / "nowhere", tmp_path / "runs")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: ") and wrong.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()
