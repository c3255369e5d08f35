"""Digests of what the smoke profile's data stages write, from logs to the token ids of training.

    python tests/golden/refresh.py          # writes digests.json anew: say in the commit what changed and why

SIDs are given, not trained, and embeddings and weights are left out: nothing here depends on a processor's
floating point. A digest is of columns and rows, not of a file's bytes, which follow the version of pyarrow.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this clone before what is installed
from onerec.model_folder import open_model_folder
from onerec.run import Manifest
from pretrain.dataset import PackedDataset, load_samples
from pretrain.dataset_config import load_config

ROOT = Path(__file__).resolve().parents[2]
DIGESTS = Path(__file__).with_name("digests.json")
# Sizes of the model whose vocabulary is used; its weights are not.
_TINY = ["--vocab_size", "800", "--hidden_size", "64", "--num_hidden_layers", "2"]
_TABLES = {"video_ad_pid2sid": "item_embedding", "product_pid2sid": "product_embedding"}


def build(run: Path) -> None:
    """Run the stages into ``run``: the world, tables of given SIDs, the data stage, a vocabulary with itemic tokens."""
    environment = {**os.environ, "PROFILE": "smoke", "RUN_DIR": str(run), "SEED": "0", "PYTHONPATH": str(ROOT)}

    def command(*words: str | Path) -> None:
        done = subprocess.run(list(map(str, words)), env=environment, cwd=run, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(map(str, words))}\n{done.stdout}{done.stderr}")

    items, text = run / "raw_data/onerec_data", run / "raw_data/general_text"
    command("bash", ROOT / "scripts/01_world.sh")
    for table, embeddings in _TABLES.items():
        pids = sorted(pq.read_table(items / f"{embeddings}.parquet", columns=["pid"])["pid"].to_pylist())
        # Any codes do; some of these items share a SID.
        codes = {str(pid): [i % 16, i // 16 % 5, i * i % 7] for i, pid in enumerate(pids)}
        (run / f"{table}.json").write_text(json.dumps(codes))
        importer = [sys.executable, ROOT / "tokenizer/import_codes.py", "--codebook_size", "16"]
        command(*importer, "--codes", run / f"{table}.json", "--output_path", items / f"{table}.parquet")
    command("bash", ROOT / "scripts/03_data.sh")
    corpus = [text / "pretrain", text / "sft", *sorted(items.glob("*pid2caption.parquet"))]
    tiny, itemic = ["--output_dir", run / "models/tiny"], ["--output_model_dir", run / "models/itemic"]
    expand = [
        ROOT / "pretrain/expand_vocab.py",
        "--hf_model_dir",
        run / "models/tiny",
        "--sid_spec",
        items / "sid_spec.json",
    ]
    command(sys.executable, ROOT / "pretrain/make_tiny_qwen3.py", "--corpus", *corpus, *tiny, *_TINY, "--seed", "0")
    command(sys.executable, *expand, *itemic)


def digests(run: Path) -> dict[str, str]:
    """sha256 by name: every Parquet file without embeddings, every sid_spec.json and file_list.json, the token rows."""
    found = {}
    for folder in ("raw_data", "output"):
        for file in sorted((run / folder).rglob("*.parquet")):
            table = pq.read_table(file)
            if "embedding" not in table.column_names:
                columns = [f"{field.name}: {field.type}" for field in table.schema]
                found[str(file.relative_to(run))] = _sha256([columns, table.to_pylist()])
        for name in ("sid_spec.json", "file_list.json"):
            for file in sorted((run / folder).rglob(name)):
                found[str(file.relative_to(run))] = _sha256(json.loads(file.read_text()))
    for mix, config in (("pretrain", "toy_pretrain"), ("sft", "toy_sft")):
        found[f"tokens of {mix}"] = _sha256(
            token_rows(run, mix, ROOT / f"pretrain/examples/dataset_config/{config}.json")
        )
    return found


def token_rows(run: Path, mix: str, config_path: Path) -> list[dict[str, list[int]]]:
    """The packed rows of one epoch of a mix, as training reads them."""
    sources = (str(run / f"output/split_data_{mix}/file_list.json"),)
    config = load_config(config_path, sources=sources, max_length=2048, num_epochs=1)
    model = run / "models/itemic"
    samples = load_samples(config, config_path, model, open_model_folder(model).spec, Manifest("golden", {}), 0.0)
    dataset = PackedDataset(samples, config, seed=0)
    keys = ("input_ids", "labels", "position_ids", "cu_seq_lens")
    return [{key: dataset[i][key].tolist() for key in keys} for i in range(len(dataset))]


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def made() -> dict[str, str]:
    """Build in a temporary folder and take the digests."""
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        build(Path(folder))
        return digests(Path(folder))


if __name__ == "__main__":
    DIGESTS.write_text(json.dumps(made(), indent=1) + "\n")
    print(f"wrote {DIGESTS.relative_to(ROOT)}")
