"""PQ, OPQ and RQ-VAE behind the quantiser's interface: against faiss, on hand-made clusters, through their files."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from onerec.errors import InputError
from tests.tokenizer.test_kmeans import hand_made, save
from tokenizer.compare_quantizers import main as compare
from tokenizer.infer_res_kmeans import main as infer
from tokenizer.product import ProductQuantizer
from tokenizer.quantizer import layer_reports, load_quantizer
from tokenizer.rq_vae import RqVae, RqVaeConfig, _Network, _reseed
from tokenizer.train_baselines import main as train

SMALL = RqVaeConfig(hidden=(32,), latent_dim=8, epochs=60, batch_size=256, lr=3e-3)


def correlated(n=2000, dim=12, seed=0):
    """Gaussian points whose variance lies in few directions across the axes."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    return ((rng.standard_normal((n, dim)) * 2.0 ** -np.arange(dim)) @ basis).astype(np.float32)


def test_pq_codes_are_faiss_s():
    import faiss

    vectors = correlated()
    model = ProductQuantizer.fit(vectors, 3, 256, rotate=False)
    plain = faiss.ProductQuantizer(12, 3, 8)
    faiss.copy_array_to_vector(model.centroids.ravel(), plain.centroids)
    assert np.array_equal(model.encode(vectors), plain.compute_codes(vectors))
    assert np.allclose(model.decode(model.encode(vectors)), plain.decode(plain.compute_codes(vectors)), atol=1e-5)


def test_opq_is_better_than_pq_on_correlated_axes():
    vectors = correlated()
    errors = [
        layer_reports(ProductQuantizer.fit(vectors, 3, 16, rotate=rotate), vectors)[-1].mse for rotate in (False, True)
    ]
    assert errors[1] < 0.9 * errors[0]


def test_a_dimension_that_the_layers_do_not_divide_is_padded():
    vectors = correlated(dim=10)
    for rotate in (False, True):
        model = ProductQuantizer.fit(vectors, 3, 16, rotate=rotate)
        codes = model.encode(vectors)
        assert model.dim == 10 and model.decode(codes).shape == vectors.shape
        errors = [((vectors - model.decode(codes[:, :n])) ** 2).sum(1).mean() for n in (1, 2, 3)]
        assert errors[0] > errors[1] > errors[2]


def test_rq_vae_learns_and_every_layer_lowers_the_error():
    vectors, losses = correlated(), []
    model = RqVae.fit(vectors, 3, 16, SMALL, on_epoch=losses.append)
    assert losses[-1] < 0.5 * losses[0]
    errors = [report.relative for report in layer_reports(model, vectors)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.2
    beam = ((vectors - model.decode(model.encode(vectors, beam=8))) ** 2).sum(1).mean()
    assert beam < 1.02 * layer_reports(model, vectors)[-1].mse


def test_rq_vae_is_the_same_for_the_same_seed():
    vectors = correlated(500)
    codes = [RqVae.fit(vectors, 2, 8, SMALL).encode(vectors) for _ in range(2)]
    assert np.array_equal(*codes)


def test_rq_vae_finds_hand_made_clusters():
    vectors, far, _ = hand_made()
    codes = RqVae.fit(vectors, 1, 4, SMALL).encode(vectors)
    assert len(set(zip(codes[:, 0].tolist(), far.tolist(), strict=True))) == 4


def test_dead_codes_are_put_onto_residuals():
    network = _Network(4, 2, 3, (8,), 2)
    latents = torch.tensor([[5.0, 5.0], [6.0, 5.0]])
    with torch.no_grad():
        network.codebooks[0].copy_(torch.tensor([[5.0, 5.0], [99.0, 99.0], [-99.0, 0.0]]))
    used = [torch.tensor([True, False, True]), torch.tensor([True, True, True])]
    _reseed(network, used, latents, torch.Generator().manual_seed(0))
    assert any(torch.equal(network.codebooks[0][1], latent) for latent in latents)
    assert network.codebooks[0][2].tolist() == [-99.0, 0.0]


@pytest.mark.parametrize("kind", ["pq", "opq", "rq_vae"])
def test_the_file_encodes_as_the_model_did(tmp_path, kind):
    vectors = correlated(600)
    path = save(tmp_path / "emb.parquet", vectors)
    argv = ["--kind", kind, "--data_path", path, "--codebook_size", "8", "--dim", "12"]
    if kind == "rq_vae":
        argv += ["--epochs", "5"]
    for name in "ab":
        train([*argv, "--model_path", str(tmp_path / name)])
    infer(["--model_path", str(tmp_path / "a"), "--emb_path", path, "--output_path", str(tmp_path / "a")])
    codes = np.array(pq.read_table(tmp_path / "a" / "pid2sid.parquet")["codes"].to_pylist())
    model = load_quantizer(tmp_path / "b")
    assert model.kind == kind and np.array_equal(codes, model.encode(vectors))
    layers = json.loads((tmp_path / "a" / "manifest.json").read_text())["layers"]
    assert [layer["layer"] for layer in layers] == [1, 2, 3]
    assert np.isclose(layers[-1]["mse"], ((vectors - model.decode(codes)) ** 2).sum(1).mean(), rtol=1e-4)


def test_what_cannot_be_trained_is_one_line(tmp_path):
    path = save(tmp_path / "emb.parquet", correlated(50))
    flags = ["--data_path", path, "--model_path", str(tmp_path / "m"), "--dim", "12"]
    for more, match in (
        (["--kind", "pq", "--codebook_size", "12"], "12 is not a power of two"),
        (["--kind", "rq_vae", "--codebook_size", "64"], "has 50 points for 64 codes"),
        (["--kind", "rq_vae", "--codebook_size", "8", "--lr", "0"], "--lr: is 0; give a number above 0"),
        (["--kind", "rq_vae", "--codebook_size", "8", "--lr", "1e30", "--epochs", "3"], "loss is not finite"),
    ):
        with pytest.raises(InputError, match=match):
            train([*flags, *more])
    assert not (tmp_path / "m").exists()
    train([*flags, "--kind", "pq", "--codebook_size", "8"])
    with pytest.raises(InputError, match="has no residual paths to search"):
        infer(["--model_path", str(tmp_path / "m"), "--emb_path", path, "--output_path", str(tmp_path), "--beam", "2"])


def test_the_quantisers_are_compared_in_one_table(tmp_path, capsys):
    path = save(tmp_path / "emb.parquet", correlated(300))
    names = ["residual k-means", "residual k-means, beam 8", "PQ"]
    flags = ["--codebook_size", "8", "--dim", "12", "--quantizers", *names]
    compare(["--emb_path", path, "--output_dir", str(tmp_path / "out"), *flags])
    rows = [line.split(" | ") for line in (tmp_path / "out" / "compare.md").read_text().splitlines()[2:]]
    assert [row[0].removeprefix("| ") for row in rows] == names
    errors = [float(row[1]) for row in rows]
    assert errors[1] < errors[0] < errors[2], "a beam is better than greedy, residuals better than sub-spaces"
    assert capsys.readouterr().out == (tmp_path / "out" / "compare.md").read_text()
