"""The torch k-means and the tiles it runs on: against faiss, against brute force, balanced, by several processes."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from onerec.errors import InputError
from onerec.sid import SidSpec
from tests.arguments import as_flags, torchrun
from tests.tokenizer.test_kmeans import hand_made, save
from tokenizer.infer_res_kmeans import main as infer
from tokenizer.infer_res_kmeans import sid_keys
from tokenizer.kmeans import Kmeans, KmeansConfig, cluster_sums
from tokenizer.quantizer import load_quantizer
from tokenizer.res_kmeans import ResKmeans
from tokenizer.tiles import Codebook, assign, beam_codes, residual_codes
from tokenizer.train_res_kmeans import main as train

ROOT = Path(__file__).resolve().parents[2]


def gaussian(n=3000, dim=16, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def books(vectors, layers=3, size=8):
    return [Codebook(torch.from_numpy(layer)) for layer in ResKmeans.fit(vectors, layers, size).centroids]


def best_by_brute_force(vectors, codebooks):
    """Codes of the best of all paths, and of the greedy one."""
    left = vectors.copy()
    greedy = []
    for book in codebooks:
        greedy.append(((left[:, None] - book.centroids.numpy()[None]) ** 2).sum(2).argmin(1))
        left = left - book.centroids.numpy()[greedy[-1]]
    sums, paths = np.zeros((1, vectors.shape[1])), np.zeros((1, 0), int)
    for book in codebooks:
        k = len(book)
        sums = (sums[:, None] + book.centroids.numpy()[None]).reshape(-1, vectors.shape[1])
        paths = np.concatenate([np.repeat(paths, k, 0), np.tile(np.arange(k), len(paths))[:, None]], 1)
    best = ((vectors[:, None] - sums[None]) ** 2).sum(2).argmin(1)
    return paths[best], np.stack(greedy, 1)


@pytest.mark.parametrize("threads", [1, 3])
def test_codes_are_those_of_brute_force_with_any_number_of_threads(threads):
    vectors = gaussian(3000)
    codebooks = books(vectors)
    _, greedy = best_by_brute_force(vectors[:200], codebooks)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        codes = residual_codes(torch.from_numpy(vectors), codebooks).numpy()
        big = Codebook(torch.from_numpy(gaussian(2000, seed=1)))  # many codes, so that there are many tiles
        nearest, scores = assign(torch.from_numpy(vectors), big)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(codes[:200], greedy)
    distances = ((vectors[:, None] - big.centroids.numpy()[None]) ** 2).sum(2)
    assert np.array_equal(nearest.numpy(), distances.argmin(1))
    norms = (vectors**2).sum(1)
    assert np.allclose(norms - 2 * scores.numpy(), distances.min(1), rtol=1e-3, atol=1e-3)


def test_scores_are_the_same_bytes_with_any_number_of_threads_in_one_tile_too():
    points, book = (torch.from_numpy(gaussian(n, 4096, seed=n)) for n in (8000, 32))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(assign(points, Codebook(book))[1])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_cluster_of_more_points_than_float32_can_count_has_the_right_sum():
    points = torch.ones(2**24 + 5000, 1)
    sums, counts = cluster_sums(points, torch.zeros(len(points), dtype=torch.int64), 1)
    assert sums.item() == counts.item() == len(points)


def test_a_wide_beam_finds_the_best_path_and_a_beam_of_one_is_greedy():
    vectors = gaussian(150)
    codebooks = books(vectors)
    best, greedy = best_by_brute_force(vectors, codebooks)
    points = torch.from_numpy(vectors)
    assert np.array_equal(beam_codes(points, codebooks, 1).numpy(), greedy)
    assert np.array_equal(beam_codes(points, codebooks, 64).numpy(), best)
    assert not np.array_equal(best, greedy), "the test would show nothing"


def test_a_beam_lowers_the_error_of_what_is_written(tmp_path):
    vectors = gaussian(400)
    path = save(tmp_path / "emb.parquet", vectors)
    train(["--data_path", path, "--model_path", str(tmp_path), "--codebook_size", "8", "--dim", "16"])
    model, errors = load_quantizer(tmp_path), []
    for beam in (1, 4):
        infer(as_flags(model_path=tmp_path, emb_path=path, output_path=tmp_path / "o.parquet", beam=beam))
        codes = np.array(pq.read_table(tmp_path / "o.parquet")["codes"].to_pylist())
        errors.append(((vectors - model.decode(codes)) ** 2).sum(1).mean())
    assert errors[1] < 0.99 * errors[0]


@pytest.mark.parametrize("init", ["random", "kmeans++"])
def test_torch_and_faiss_agree_within_noise(init):
    vectors, errors = gaussian(), {}
    for backend in ("faiss", "torch"):
        runs = []
        for seed in range(4):
            reports = []
            ResKmeans.fit(vectors, 2, 32, KmeansConfig(seed=seed, init=init), backend=backend, on_layer=reports.append)
            runs.append(reports[-1].mse)
        errors[backend] = np.mean(runs)
    assert abs(errors["torch"] / errors["faiss"] - 1) < 0.01


def test_spread_seeds_are_better_than_random_ones():
    rng = np.random.default_rng(0)
    centres = 20 * rng.standard_normal((40, 8))
    share = rng.permutation(1.0 / np.arange(1, 41))
    vectors = centres[rng.choice(40, 4000, p=share / share.sum())] + 0.1 * rng.standard_normal((4000, 8))
    points = torch.from_numpy(vectors.astype(np.float32))
    error = {
        init: np.mean([Kmeans(40, KmeansConfig(seed=seed, init=init)).fit(points).objective[-1] for seed in range(3)])
        for init in ("random", "kmeans++")
    }
    assert error["kmeans++"] < 0.5 * error["random"]


def test_restarts_keep_the_best():
    points = torch.from_numpy(hand_made(n=300)[0])
    one = [Kmeans(16, KmeansConfig(seed=seed, nredo=1)).fit(points).objective[-1] for seed in range(5)]
    many = [Kmeans(16, KmeansConfig(seed=seed, nredo=20)).fit(points).objective[-1] for seed in range(5)]
    assert all(m <= o for m, o in zip(many, one, strict=True)) and np.mean(many) < np.mean(one)


def test_no_cluster_stays_empty():
    # Two places only, so that most of the first centroids are doubles and run empty.
    vectors = np.repeat(np.eye(2, 8, dtype=np.float32) * 10, 50, axis=0)
    vectors += 0.01 * gaussian(100, 8)
    clusters = Kmeans(10, KmeansConfig(seed=3)).fit(torch.from_numpy(vectors))
    codes, _ = assign(torch.from_numpy(vectors), Codebook(clusters.centroids))
    assert len(codes.unique()) == 10


def test_balanced_codes_are_used_evenly_and_the_price_is_kept(tmp_path):
    rng = np.random.default_rng(0)
    share = 1.0 / np.arange(1, 65)
    centres = 3 * rng.standard_normal((64, 16))
    vectors = centres[rng.choice(64, 3000, p=share / share.sum())] + rng.standard_normal((3000, 16))
    path = save(tmp_path / "emb.parquet", vectors.astype(np.float32))
    argv = ["--data_path", path, "--codebook_size", "32", "--dim", "16", "--n_layers", "2"]
    perplexity = {}
    for name, flags in (("plain", ["--backend", "torch"]), ("even", ["--balanced"])):
        train([*argv, "--model_path", str(tmp_path / name), *flags])
        infer(["--model_path", str(tmp_path / name), "--emb_path", path, "--output_path", str(tmp_path / name)])
        codes = np.array(pq.read_table(tmp_path / name / "pid2sid.parquet")["codes"].to_pylist())
        shares = np.bincount(codes[:, 0], minlength=32) / len(codes)
        perplexity[name] = 2 ** -(shares[shares > 0] * np.log2(shares[shares > 0])).sum()
        layers = json.loads((tmp_path / name / "manifest.json").read_text())["layers"]
        assert np.isclose(layers[0]["perplexity"], perplexity[name]), "inference uses the price too"
    assert perplexity["even"] > 31 > perplexity["plain"]


def test_balanced_codes_are_even_though_the_items_stand_by_category():
    rng = np.random.default_rng(0)
    share = 1.0 / np.arange(1, 17)
    kinds = np.sort(rng.choice(16, 4000, p=share / share.sum()))
    vectors = 3 * rng.standard_normal((16, 8))[kinds] + rng.standard_normal((4000, 8))
    points = torch.from_numpy(vectors.astype(np.float32))
    clusters = Kmeans(8, KmeansConfig(balanced=True)).fit(points)
    codes, _ = assign(points, Codebook(clusters.centroids, clusters.price))
    shares = torch.bincount(codes, minlength=8) / len(codes)
    assert shares.min() > 0.08 and shares.max() < 0.18


def test_normalize_is_kept_in_the_model(tmp_path):
    vectors = gaussian(200)
    path = save(tmp_path / "emb.parquet", vectors)
    train(["--data_path", path, "--model_path", str(tmp_path), "--codebook_size", "8", "--dim", "16", "--normalize"])
    model = load_quantizer(tmp_path)
    assert model.normalize and np.array_equal(model.encode(vectors), model.encode(7 * vectors))


def test_a_sample_is_uniform_and_the_rest_is_not_used(tmp_path, capsys):
    vectors = np.arange(1, 1001, dtype=np.float32)[:, None] * np.ones(4, np.float32)
    path = save(tmp_path / "emb.parquet", vectors)
    argv = ["--data_path", path, "--codebook_size", "1", "--n_layers", "1", "--dim", "4"]
    train([*argv, "--model_path", str(tmp_path / "a"), "--max_points", "200"])
    assert "training on 200 of 1,000 points (--max_points 200)" in capsys.readouterr().out
    train([*argv, "--model_path", str(tmp_path / "b"), "--max_points", "200", "--seed", "1"])
    means = [load_quantizer(tmp_path / name).centroids[0][0, 0] for name in "ab"]
    assert means[0] != means[1] and all(abs(mean - 500.5) < 100 for mean in means)


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--balanced", "--backend", "faiss"], "--balanced: faiss has no balanced k-means"),
        (["--niter", "0"], "--niter: is 0; give a whole number from 1"),
        (["--codebook_size", "1000"], "has 200 points for 1000 codes; fewer codes or more items"),
    ]
    + ([] if torch.cuda.is_available() else [(["--device", "cuda"], "--device: cuda is not available")]),
)
def test_settings_that_do_not_go_together_are_one_line(tmp_path, flags, match):
    path = save(tmp_path / "emb.parquet", gaussian(200))
    with pytest.raises(InputError, match=match):
        train(["--data_path", path, "--model_path", str(tmp_path / "m"), "--codebook_size", "8", "--dim", "16", *flags])
    assert not (tmp_path / "m").exists()


def test_models_of_another_shape_are_refused(tmp_path):
    path = save(tmp_path / "emb.parquet", gaussian(50))
    states = {
        "dim": ({"centroids.0": torch.zeros(4, 32)}, "has embeddings of 16 dimensions; at least --dim 32"),
        "gap": ({"centroids.0": torch.zeros(4, 16), "centroids.2": torch.zeros(4, 16)}, "holds no centroids"),
        "mixed": ({"centroids.0": torch.zeros(4, 16), "centroids.1": torch.zeros(4, 8)}, "different dimensions"),
        "kind": ({"kind": "vq"}, "holds a quantiser of kind vq"),
    }
    for name, (state, match) in states.items():
        torch.save(state, tmp_path / f"{name}.pt")
        with pytest.raises(InputError, match=match):
            infer(["--model_path", str(tmp_path / f"{name}.pt"), "--emb_path", path, "--output_path", str(tmp_path)])
    assert not (tmp_path / "pid2sid.parquet").exists()


def test_bad_rows_are_listed(tmp_path):
    vectors = gaussian(300)
    vectors[3, 2], vectors[7] = np.inf, 0
    path = save(tmp_path / "emb.parquet", vectors, pids=range(1000, 1300))
    train(["--data_path", path, "--model_path", str(tmp_path), "--codebook_size", "8", "--dim", "16"])
    listed = json.loads((tmp_path / "manifest.json").read_text())["bad_rows"]
    assert [(bad["row"], bad["pid"], bad["reason"]) for bad in listed] == [
        (3, 1003, "embedding is not finite or too large"),
        (7, 1007, "embedding is all zero"),
    ]


def test_an_interrupted_encoding_leaves_nothing_half_written(tmp_path, monkeypatch):
    path = save(tmp_path / "emb.parquet", gaussian(200))
    train(["--data_path", path, "--model_path", str(tmp_path / "m"), "--codebook_size", "8", "--dim", "16"])
    encode, calls = ResKmeans.encode, []

    def stop(self, *args):
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, *args)

    monkeypatch.setattr(ResKmeans, "encode", stop)
    argv = as_flags(model_path=tmp_path / "m", emb_path=path, output_path=tmp_path / "out", batch_size=50)
    with pytest.raises(KeyboardInterrupt):
        infer(argv)
    assert not (tmp_path / "out").exists()
    infer(argv)
    assert pq.read_table(tmp_path / "out" / "pid2sid.parquet").num_rows == 200


def test_a_run_that_is_stopped_leaves_codes_and_codebooks_of_one_run(tmp_path, monkeypatch):
    path, out = save(tmp_path / "emb.parquet", gaussian(200)), tmp_path / "out"
    names = ("model.pt", "pid2sid.parquet", "sid_spec.json", "manifest.json", "pid2sid.manifest.json")
    flags = ["--data_path", path, "--model_path", str(out), "--dim", "16"]
    encoding = ["--model_path", str(out), "--emb_path", path, "--output_path", str(out)]
    train([*flags, "--codebook_size", "8"])
    infer(encoding)
    before = {name: (out / name).read_bytes() for name in names}
    assert sorted(before) == sorted(file.name for file in out.iterdir() if file.is_file())

    def stop(self, folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(SidSpec, "save", stop)
    for main, given in ((train, [*flags, "--codebook_size", "4"]), (infer, [*encoding, "--n_layers", "2"])):
        with pytest.raises(KeyboardInterrupt):
            main(given)
        assert {name: (out / name).read_bytes() for name in names} == before


def test_sids_are_told_apart_where_int64_cannot_number_them():
    codes = np.array([[1, 2, 3, 4, 5], [1, 2, 3, 4, 6], [1, 2, 3, 4, 5]], np.int32)
    for size in (10, 8192):
        assert len(np.unique(sid_keys(codes, SidSpec((size,) * 5)))) == 2


@pytest.mark.slow
def test_several_processes_train_the_model_of_one(tmp_path):
    path = save(tmp_path / "emb.parquet", gaussian(2001))
    flags = as_flags("--balanced", data_path=path, codebook_size=32, dim=16, backend="torch", init="kmeans++")
    train([*flags, "--model_path", str(tmp_path / "one")])
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = torchrun(2, ROOT / "tokenizer/train_res_kmeans.py")
    subprocess.run([*command, *flags, "--model_path", str(tmp_path / "two")], env=env, check=True, timeout=1800)
    layers = {}
    for name in ("one", "two"):
        layers[name] = json.loads((tmp_path / name / "manifest.json").read_text())["layers"]
    for one, two in zip(layers["one"], layers["two"], strict=True):
        assert abs(two["mse"] / one["mse"] - 1) < 0.02 and two["perplexity"] > 30
    assert load_quantizer(tmp_path / "two").codebook_sizes == (32, 32, 32)
