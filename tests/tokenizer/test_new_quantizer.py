"""CONTRIBUTING.md's steps for a quantiser, done in a copy: a file with its class, and its line in `KINDS`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from onerec.parquet import embedding_table, write_table

ROOT = Path(__file__).resolve().parents[2]
BINS = '''
import numpy as np
import torch

from tokenizer.quantizer import Quantizer


class Bins(Quantizer):
    """Layer l cuts dimension l at the quantiles of the training vectors."""

    kind = "bins"
    residual = False

    def __init__(self, centers, dim, normalize):
        self.centers, self.dim, self.normalize = centers, dim, normalize  # [n_layers, codebook_size]

    @classmethod
    def train(cls, vectors, args):
        shares = (np.arange(args.codebook_size) + 0.5) / args.codebook_size
        centers = np.quantile(vectors[:, : args.n_layers], shares, axis=0).T.astype(np.float32)
        return cls(centers, vectors.shape[1], args.normalize), []

    @property
    def codebook_sizes(self):
        return (self.centers.shape[1],) * len(self.centers)

    def encode(self, vectors, n_layers=None, beam=1):
        values = self.prepare(vectors)[:, : n_layers or self.n_layers, None]
        return np.abs(values - self.centers[: values.shape[1]]).argmin(2).astype(np.int32)

    def decode(self, codes):
        found = np.zeros((len(codes), self.dim), np.float32)
        found[:, : codes.shape[1]] = self.centers[np.arange(codes.shape[1]), codes]
        return found

    def state(self):
        return {"centers": torch.from_numpy(self.centers)}, {"dim": self.dim, "normalize": self.normalize}

    @classmethod
    def from_state(cls, tensors, config):
        return cls(tensors["centers"].numpy(), config["dim"], config["normalize"])
'''


@pytest.fixture
def copy(tmp_path):
    for folder in ("onerec", "tokenizer", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / "copy" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "copy"


def test_a_quantiser_is_one_file_and_one_line(copy, tmp_path):
    (copy / "tokenizer" / "bins.py").write_text(BINS)
    table = copy / "tokenizer" / "quantizer.py"
    line = '    "res_kmeans": "tokenizer.res_kmeans:ResKmeans",\n'
    assert line in table.read_text()
    table.write_text(table.read_text().replace(line, line + '    "bins": "tokenizer.bins:Bins",\n'))
    vectors = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    write_table(tmp_path / "items.parquet", embedding_table(np.arange(60), vectors))
    items, model = str(tmp_path / "items.parquet"), str(tmp_path / "model")
    sizes = ["--codebook_size", "4", "--n_layers", "2", "--dim", "8"]
    for command in (
        ["train_baselines.py", "--kind", "bins", "--data_path", items, "--model_path", model, *sizes],
        ["infer_res_kmeans.py", "--model_path", model, "--emb_path", items, "--output_path", model],
    ):
        environment = os.environ | {"PYTHONPATH": str(copy)}
        run = [sys.executable, str(copy / "tokenizer" / command[0]), *command[1:]]
        done = subprocess.run(run, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    codes = np.array(pq.read_table(tmp_path / "model" / "pid2sid.parquet")["codes"].to_pylist())
    assert codes.shape == (60, 2)
    assert [len(set(column)) for column in codes.T.tolist()] == [4, 4]
    assert (codes[np.argsort(vectors[:, 0]), 0] == np.sort(codes[:, 0])).all()
