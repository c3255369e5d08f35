"""Residual k-means finds the structure that is there, gives the same bytes again, and refuses what it cannot use."""

import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from onerec.errors import InputError
from onerec.parquet import embedding_table, write_table
from onerec.run import Manifest
from onerec.sid import SidSpec
from tests.arguments import as_flags
from tokenizer import embeddings
from tokenizer.infer_res_kmeans import main as infer
from tokenizer.kmeans import KmeansConfig
from tokenizer.quantizer import layer_reports, load_quantizer
from tokenizer.res_kmeans import ResKmeans
from tokenizer.train_res_kmeans import main as train


def hand_made(n=400, dim=8):
    """Points at the sums of one of 4 far and one of 4 near directions, with little noise; (vectors, far, near)."""
    rng = np.random.default_rng(0)
    far, near = rng.integers(4, size=n), rng.integers(4, size=n)
    vectors = 10 * np.eye(dim)[far] + 1 * np.eye(dim)[4 + near] + 0.01 * rng.standard_normal((n, dim))
    return vectors.astype(np.float32), far, near


def save(path, vectors, pids=None, kind=None):
    lists = pa.array(list(vectors), kind or pa.list_(pa.float32()))
    write_table(path, pa.table({"pid": pa.array(range(len(vectors)) if pids is None else pids), "embedding": lists}))
    return str(path)


def train_on(tmp_path, vectors, *more, kind=None, size=4, dim=8):
    path = save(tmp_path / "emb.parquet", vectors, kind=kind)
    train(
        [
            "--data_path",
            path,
            "--model_path",
            str(tmp_path / "model"),
            "--n_layers",
            "2",
            "--codebook_size",
            str(size),
            "--dim",
            str(dim),
            *more,
        ]
    )
    return path


def test_layers_recover_hand_made_clusters():
    vectors, far, near = hand_made()
    model = ResKmeans.fit(vectors, 2, 4, KmeansConfig(nredo=60, seed=1))
    codes = model.encode(vectors)
    for layer, truth in enumerate((far, near)):
        pairs = {(int(c), int(t)) for c, t in zip(codes[:, layer], truth, strict=True)}
        assert len(pairs) == 4, "each code is one cluster"
    assert np.abs(model.decode(codes) - vectors).max() < 0.1


def test_every_layer_lowers_the_error():
    vectors = np.random.default_rng(1).standard_normal((500, 16)).astype(np.float32)
    reports = []
    model = ResKmeans.fit(vectors, 3, 16, on_layer=reports.append)
    errors = [report.mse for report in reports]
    assert errors == sorted(errors, reverse=True) and reports[0].relative < 1
    decoded = model.decode(model.encode(vectors))
    assert np.isclose(((vectors - decoded) ** 2).sum(1).mean(), errors[-1], rtol=1e-3)


def test_first_layer_is_as_good_as_plain_faiss():
    import faiss

    vectors = np.random.default_rng(2).standard_normal((1000, 16)).astype(np.float32)
    reports = []
    ResKmeans.fit(vectors, 1, 32, on_layer=reports.append)
    plain = faiss.Kmeans(16, 32, niter=20, seed=5)
    plain.train(vectors)
    assert reports[0].mse < 1.05 * plain.obj[-1] / len(vectors)


def test_train_and_infer_from_files_give_the_same_bytes_again(tmp_path, capsys):
    vectors, _, _ = hand_made()
    outputs = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        path = train_on(folder, vectors, "--nredo", "60")
        infer(["--model_path", str(folder / "model"), "--emb_path", path, "--output_path", str(folder)])
        outputs.append((folder / "pid2sid.parquet").read_bytes())
    assert outputs[0] == outputs[1]
    table = pq.read_table(tmp_path / "a" / "pid2sid.parquet")
    assert table.schema.field("codes").type == pa.list_(pa.int32()) and table["pid"].to_pylist() == list(range(400))
    assert SidSpec.load(tmp_path / "a") == SidSpec((4, 4))
    assert "16 distinct SIDs" in capsys.readouterr().out


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.float64()), pa.list_(pa.float32(), 8), pa.list_(pa.float16()), pa.large_list(pa.float32())],
)
def test_any_column_of_floats_is_read(tmp_path, kind):
    vectors, far, _ = hand_made()
    values = vectors.astype(np.float16) if kind.value_type == pa.float16() else vectors
    path = train_on(tmp_path, values, "--nredo", "60", kind=kind)
    infer(
        [
            "--model_path",
            str(tmp_path / "model"),
            "--emb_path",
            path,
            "--output_path",
            str(tmp_path / "out.parquet"),
            "--batch_size",
            "64",
        ]
    )
    codes = np.array(pq.read_table(tmp_path / "out.parquet")["codes"].to_pylist())
    assert len({(c, t) for c, t in zip(codes[:, 0], far, strict=True)}) == 4


def test_n_layers_takes_the_first_layers(tmp_path):
    path = train_on(tmp_path, hand_made()[0])
    argv = ["--model_path", str(tmp_path / "model"), "--emb_path", path, "--output_path", str(tmp_path)]
    infer([*argv, "--n_layers", "1"])
    assert pq.read_table(tmp_path / "pid2sid.parquet")["codes"][0].as_py().__len__() == 1
    assert SidSpec.load(tmp_path) == SidSpec((4,))
    with pytest.raises(InputError, match="has 2 layers, not 3"):
        infer([*argv, "--n_layers", "3"])


def test_without_an_output_path_the_codes_stand_beside_the_embeddings(tmp_path):
    path = train_on(tmp_path, hand_made()[0])
    infer(["--model_path", str(tmp_path / "model"), "--emb_path", path])
    assert pq.read_table(path.removesuffix(".parquet") + "_codes.parquet").num_rows == 400


def test_the_originals_plain_state_dict_loads(tmp_path):
    centroids = np.random.default_rng(0).standard_normal((2, 4, 8)).astype(np.float32)
    torch.save({f"centroids.{i}": torch.from_numpy(c) for i, c in enumerate(centroids)}, tmp_path / "model.pt")
    model = load_quantizer(tmp_path / "model.pt")
    assert model.n_layers == 2 and np.array_equal(model.centroids[1], centroids[1])


def test_bad_rows_are_counted_and_past_the_ratio_the_run_fails(tmp_path, capsys):
    vectors, _, _ = hand_made()
    vectors[3, 2], vectors[7] = np.nan, 0
    path = train_on(tmp_path, vectors)
    assert "dropped 1 (embedding is not finite or too large), 1 (embedding is all zero)" in capsys.readouterr().out
    infer(["--model_path", str(tmp_path / "model"), "--emb_path", path, "--output_path", str(tmp_path)])
    assert pq.read_table(tmp_path / "pid2sid.parquet").num_rows == 398
    vectors[:50] = np.inf
    with pytest.raises(InputError, match="rows are bad"):
        train_on(tmp_path, vectors)


def test_a_sample_takes_memory_for_itself_not_for_all_rows(tmp_path, monkeypatch):
    write_table(tmp_path / "items.parquet", embedding_table([1, 2], np.ones((2, 4), np.float32)))
    monkeypatch.setattr(embeddings, "count_rows", lambda file: 20_000_000)
    tracemalloc.start()
    sample, _, total = embeddings.sample_vectors([tmp_path], 4, 1000, 0, Manifest("test"), 1.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == 20_000_000 and len(sample) <= 2 and peak < 16 << 20  # numbers of all rows: 160 MB


def test_a_sample_that_bad_rows_make_too_small_is_one_line(tmp_path):
    vectors, _, _ = hand_made(1000)
    vectors[::20] = np.nan
    train_on(tmp_path, vectors, "--max_bad_ratio", "0.1", "--max_points", "50")
    points = json.loads((tmp_path / "model" / "manifest.json").read_text())["points"]
    assert 40 < points < 50
    with pytest.raises(InputError, match=f"has {points} points for 50 codes"):
        train_on(tmp_path, vectors, "--max_bad_ratio", "0.1", "--max_points", "50", size=50)


def test_empty_shards_are_no_reason_to_stop(tmp_path):
    vectors, _, _ = hand_made()
    empty = embedding_table([], np.zeros((0, 8), np.float32))
    for name, table in (("0", empty), ("1", embedding_table(range(400), vectors)), ("2", empty)):
        write_table(tmp_path / "emb" / f"{name}.parquet", table)
    assert embeddings.embedding_dim(tmp_path / "emb") == 8
    folders = as_flags(model_path=tmp_path / "sids", codebook_size=4, dim=8, data_path=tmp_path / "emb")
    train(folders)
    infer(as_flags(model_path=tmp_path / "sids", emb_path=tmp_path / "emb", output_path=tmp_path / "sids"))
    assert pq.read_table(tmp_path / "sids" / "pid2sid.parquet").num_rows == 400
    (tmp_path / "emb" / "1.parquet").unlink()
    with pytest.raises(InputError, match="emb: is an empty table; give at least one item"):
        train(folders)


def test_reports_take_memory_for_some_vectors_at_a_time():
    vectors = np.random.default_rng(0).standard_normal((60_000, 32)).astype(np.float32)
    model = ResKmeans([vectors[:8], vectors[8:16] / 2])
    tracemalloc.start()
    reports = layer_reports(model, vectors, [1.0])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < vectors.nbytes
    left = ((vectors - model.decode(model.encode(vectors))) ** 2).sum(1)
    assert np.isclose(reports[1].mse, left.mean(), rtol=1e-5) and reports[1].objective == [1.0]
    assert np.isclose(reports[0].mse / reports[0].relative, (vectors**2).sum(1).mean(), rtol=1e-5)


def test_a_pid_that_stands_twice_is_dropped_and_counted(tmp_path):
    vectors, _, _ = hand_made()
    train_on(tmp_path, vectors)
    path = save(tmp_path / "twice.parquet", vectors[:200], [*range(199), 0])
    infer(
        [
            "--model_path",
            str(tmp_path / "model"),
            "--emb_path",
            path,
            "--output_path",
            str(tmp_path / "o.parquet"),
        ]
    )
    assert pq.read_table(tmp_path / "o.parquet").num_rows == 199
    assert json.loads((tmp_path / "o.manifest.json").read_text())["dropped"] == {"pid stands twice": 1}


@pytest.mark.parametrize(
    ("vectors", "more", "match"),
    [
        (np.ones((3, 8)), {}, "has 3 points for 4 codes"),
        (np.ones((9, 4)), {}, "has embeddings of 4 dimensions; at least --dim 8"),
        (
            [[1.0] * 8, [1.0] * 7] * 5,
            {},
            r"5 of 10 rows are bad \(dropped 5 \(embedding has another dimension",
        ),
        (
            np.ones((9, 8), np.int64),
            {"kind": pa.list_(pa.int64())},
            "is list<element: int64>; lists of floats",
        ),
    ],
)
def test_unusable_embeddings_are_one_line(tmp_path, vectors, more, match):
    with pytest.raises(InputError, match=match):
        train_on(tmp_path, vectors, **more)
    assert not (tmp_path / "model").exists()


def test_a_model_that_is_none_is_refused(tmp_path):
    path = save(tmp_path / "emb.parquet", hand_made()[0])
    (tmp_path / "model.pt").write_text("no")
    for model, match in (("model.pt", "cannot be loaded"), ("none.pt", "no such file")):
        with pytest.raises(InputError, match=match):
            infer(["--model_path", str(tmp_path / model), "--emb_path", path, "--output_path", str(tmp_path)])
