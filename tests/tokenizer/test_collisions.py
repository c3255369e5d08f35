"""Code quality is measured right on codes made by hand, and every way out of a collision keeps what it promises."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from onerec.catalog import ItemIndex, read_pid2sid
from onerec.errors import InputError
from onerec.parquet import write_table
from onerec.sid import SidSpec
from tests.arguments import as_flags
from tests.tokenizer.test_kmeans import save
from tokenizer.evaluate_codes import main as evaluate
from tokenizer.res_kmeans import ResKmeans
from tokenizer.resolve_collisions import main as resolve


def table(folder, codes, pids=None, sizes=(4, 4), name="pid2sid.parquet", collision="none"):
    folder.mkdir(parents=True, exist_ok=True)
    pids = list(range(len(codes))) if pids is None else pids
    lists = pa.array([list(map(int, row)) for row in codes], pa.list_(pa.int32()))
    write_table(folder / name, pa.table({"pid": pa.array(pids, pa.int64()), "codes": lists}))
    SidSpec(sizes, collision=collision).save(folder)
    return folder / name


def line_model(tmp_path):
    """Layer 1: 0, 10, 20, 30 on the first axis; layer 2: 0, 1, 2, 3 on the second."""
    model = ResKmeans([np.outer(np.arange(4) * 10, [1, 0]), np.outer(np.arange(4), [0, 1])])
    model.save(tmp_path / "model.pt")
    return model


def report_of(tmp_path, *flags):
    evaluate([*map(str, flags), "--output_dir", str(tmp_path / "report")])
    return json.loads((tmp_path / "report" / "codes_report.json").read_text())


def test_collisions_and_use_of_codes_are_counted(tmp_path, capsys):
    path = table(tmp_path, [(0, 0), (0, 0), (0, 0), (0, 1), (1, 1), (1, 1), (2, 3), (0, 2)], pids=range(10, 18))
    report = report_of(tmp_path, "--pid2sid", path)
    assert (report["items"], report["distinct_sids"]) == (8, 5)
    assert report["collision_rate"] == 1 - 5 / 8 and report["items_in_collision"] == 5 / 8
    assert report["bucket_sizes"] == {"1": 3, "2": 1, "3": 1}
    assert report["largest_buckets"] == [
        {"codes": [0, 0], "items": 3, "pids": [10, 11, 12]},
        {"codes": [1, 1], "items": 2, "pids": [14, 15]},
    ]
    first, second = report["layers"]
    assert first["codes_used"] == 3 and first["utilisation"] == 0.75 and first["distinct_prefixes"] == 3
    assert first["items_a_code"] == {"least": 0, "median": 1.5, "most": 5} and second["distinct_prefixes"] == 5
    share = np.array([5, 2, 1]) / 8
    assert np.isclose(first["entropy"], -(share * np.log2(share)).sum())
    assert "8 items, 5 distinct SIDs, collision rate 37.50% (policy none)" in capsys.readouterr().out
    page = (tmp_path / "report" / "codes_report.html").read_text()
    assert page.count("<svg") == 3 and "http" not in page.replace("http-equiv", "")


def test_reconstruction_and_neighbours(tmp_path, monkeypatch):
    monkeypatch.setattr("tokenizer.evaluate_codes.NEAREST", 1)
    model = line_model(tmp_path)
    codes = np.array([(1, 0), (1, 0), (1, 3), (2, 1), (2, 1), (2, 2)])
    vectors = model.decode(codes) + np.array([[0, 0.5], [0, -0.5]] * 3, np.float32)
    emb = save(tmp_path / "emb.parquet", np.concatenate([vectors, [[1, 1]]]))  # an item too many
    path = table(tmp_path, codes)
    report = report_of(tmp_path, "--pid2sid", path, "--emb_path", emb, "--model_path", tmp_path)
    assert report["embeddings_without_code"] == 1 and report["items_without_embedding"] == 0
    errors = report["reconstruction"]
    assert np.isclose(errors[1]["mse"], 0.25)
    assert np.isclose(errors[0]["mse"], ((vectors - model.decode(codes[:, :1])) ** 2).sum(1).mean())
    assert np.isclose(errors[1]["relative"], 0.25 / (vectors**2).sum(1).mean())
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T - 2 * np.eye(6)
    nearest = cosine.argmax(1)
    near = report["neighbours"]
    assert near["queries"] == near["among"] == 6
    assert near["agreement"] == [
        np.mean(codes[nearest][:, 0] == codes[:, 0]),
        np.mean((codes[nearest] == codes).all(1)),
    ]
    assert np.allclose(near["by_chance"], [(6 + 6) / 30, (2 + 2) / 30])


def test_an_item_that_stands_twice_in_the_embeddings_counts_once(tmp_path, capsys):
    model = line_model(tmp_path)
    codes = np.array([(1, 0), (1, 0), (1, 3), (2, 1)])
    vectors = model.decode(codes)
    # The second row of item 0 is near no other; infer_res_kmeans.py has taken the first.
    emb = save(tmp_path / "emb.parquet", np.concatenate([vectors, [[0, 30]]]), pids=[0, 1, 2, 3, 0])
    path = table(tmp_path / "in", codes)
    report = report_of(tmp_path, "--pid2sid", path, "--emb_path", emb, "--model_path", tmp_path, "--max_bad_ratio", 0.2)
    assert report["items_without_embedding"] == 0 and report["neighbours"]["among"] == 4
    assert report["reconstruction"][1]["mse"] == 0
    assert "dropped 1 (pid stands twice)" in capsys.readouterr().out
    output = tmp_path / "out" / "pid2sid.parquet"
    flags = as_flags(method="reassign", pid2sid=path, output_path=output, emb_path=emb, model_path=tmp_path)
    resolve([*flags, "--max_bad_ratio", "0.2"])
    assert read_pid2sid(output, SidSpec.load(tmp_path / "out"))[1].tolist() == [[1, 0], [1, 1], [1, 3], [2, 1]]


def test_captions_take_memory_for_some_of_them_at_a_time(tmp_path):
    path = table(tmp_path, [(0, 0), (0, 0), (1, 1)], pids=[5, 19_999, 7])
    texts = [f"{i} " * 200 for i in range(60_000)]
    write_table(tmp_path / "captions.parquet", pa.table({"pid": range(60_000), "caption": texts}))
    usual, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        report = report_of(tmp_path, "--pid2sid", path, "--caption", tmp_path / "captions.parquet")
    finally:
        pa.set_memory_pool(usual)
    assert report["largest_buckets"][0]["captions"] == [texts[5], texts[19_999]]
    assert pool.max_memory() < sum(map(len, texts)) // 2


def test_the_share_of_bad_embeddings_is_one_of_the_embeddings(tmp_path):
    vectors = np.ones((20, 2))
    vectors[0] = np.nan
    emb, path = save(tmp_path / "emb.parquet", vectors), table(tmp_path, [(0, 0)] * 20)
    with pytest.raises(InputError, match="1 of 20 rows are bad"):
        report_of(tmp_path, "--pid2sid", path, "--emb_path", emb, "--max_bad_ratio", 0.04)


def test_what_cannot_be_evaluated_is_one_line(tmp_path):
    path = table(tmp_path / "codes", [(0, 0), (1, 1)])
    ResKmeans([np.ones((8, 2))]).save(tmp_path / "other.pt")
    emb = save(tmp_path / "emb.parquet", np.ones((2, 2)), pids=[7, 8])
    for flags, match in (
        (["--model_path", tmp_path / "other.pt"], "says nothing without embeddings"),
        (["--model_path", tmp_path / "other.pt", "--emb_path", emb], "has codebooks"),
        (["--emb_path", emb], "has no item of --pid2sid"),
        (["--caption", emb], "has no column dense_caption"),
    ):
        with pytest.raises(InputError, match=match):
            report_of(tmp_path, "--pid2sid", path, *flags)
    assert not (tmp_path / "report").exists()


def reassigned(tmp_path, codes, vectors, *flags):
    path, emb = table(tmp_path / "in", codes), save(tmp_path / "emb.parquet", vectors)
    output = tmp_path / "out" / "pid2sid.parquet"
    resolve(
        as_flags(
            *map(str, flags), method="reassign", pid2sid=path, output_path=output, emb_path=emb, model_path=tmp_path
        )
    )
    spec = SidSpec.load(tmp_path / "out")
    assert spec == SidSpec((4, 4), collision="reassign")
    return read_pid2sid(output, spec)[1]


def test_reassign_moves_to_the_nearest_free_last_code(tmp_path, capsys):
    line_model(tmp_path)
    # Items 0 to 2 share (1, 1); (1, 0) is taken by item 3. Item 2 fits best and stays; 1 is nearest to code 2, 0 to 3.
    codes = [(1, 1), (1, 1), (1, 1), (1, 0), (2, 1)]
    vectors = np.array([[10, 2.9], [10, 1.6], [10, 1.1], [10, 0], [20, 1]])
    new = reassigned(tmp_path, codes, vectors)
    assert new.tolist() == [[1, 3], [1, 2], [1, 1], [1, 0], [2, 1]]
    assert "5 items, 3 distinct SIDs before, 5 after, 2 moved, 0 found no free code" in capsys.readouterr().out


def test_what_finds_no_free_code_stays_and_is_counted(tmp_path, capsys):
    line_model(tmp_path)
    new = reassigned(tmp_path, [(1, 1)] * 6, np.array([[10, 1 + i / 10] for i in range(6)]))
    assert sorted(set(map(tuple, new.tolist()))) == [(1, 0), (1, 1), (1, 2), (1, 3)]
    assert "3 moved, 2 found no free code" in capsys.readouterr().out


def test_extra_layer_numbers_the_items_of_a_bucket(tmp_path):
    a = table(tmp_path / "a", [(0, 0), (1, 1), (0, 0), (0, 0)], pids=[9, 8, 7, 6])
    b = table(tmp_path / "b", [(0, 0), (2, 2)], pids=[9, 8])
    outputs = [tmp_path / "out" / name for name in ("a.parquet", "b.parquet")]
    resolve(["--method", "extra_layer", "--pid2sid", str(a), str(b), "--output_path", *map(str, outputs)])
    spec = SidSpec.load(tmp_path / "out")
    assert spec == SidSpec((4, 4, 3), collision="extra_layer")
    assert read_pid2sid(outputs[0], spec)[1].tolist() == [[0, 0, 2], [1, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert read_pid2sid(outputs[1], spec)[1].tolist() == [[0, 0, 0], [2, 2, 0]]
    index = ItemIndex.load(outputs[0], spec)
    assert all(len(index.pids_of(tuple(map(int, sid)))) == 1 for sid in index.sids)


def test_arguments_that_do_not_go_together_are_one_line(tmp_path):
    line_model(tmp_path)
    path, other = table(tmp_path / "a", [(0, 0), (0, 0)]), table(tmp_path / "b", [(0, 0)], sizes=(8, 8))
    done = table(tmp_path / "c", [(0, 0)], collision="reassign")
    out = tmp_path / "out" / "o.parquet"
    emb = save(tmp_path / "emb.parquet", np.ones((1, 2)), pids=[0])
    for flags, match in (
        (["--method", "reassign", "--pid2sid", path], "reassign measures distances"),
        (["--method", "extra_layer", "--pid2sid", path, other], "names 1 files for 2 tables"),
        (["--method", "extra_layer", "--pid2sid", path, other, "--output_path", out, out], "has codebooks"),
        (["--method", "extra_layer", "--pid2sid", done], r"was resolved before \(reassign\)"),
        (["--method", "extra_layer", "--pid2sid", path, "--emb_path", emb], "are not used by extra_layer"),
        (
            ["--method", "reassign", "--pid2sid", path, "--emb_path", emb, "--model_path", tmp_path],
            "has no embedding of 1 items",
        ),
    ):
        argv = [*flags, *([] if "--output_path" in flags else ["--output_path", out])]
        with pytest.raises(InputError, match=match):
            resolve(list(map(str, argv)))
    assert not (tmp_path / "out").exists()


KILLED = """
import os, signal, sys
from tokenizer.resolve_collisions import main
before, calls = os.replace, []
def replace(*paths):
    calls.append(paths)
    if len(calls) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    before(*paths)
os.replace = replace
main(sys.argv[2:])
"""


@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_tables_resolved_in_place_are_whole_after_a_kill_and_the_command_again(tmp_path, at):
    codes = [(0, 0), (0, 0), (1, 2), (0, 0)]
    paths = [table(tmp_path / name, codes) for name in ("a", "b")]
    whole = [table(tmp_path / "whole" / name, codes) for name in ("a", "b")]
    flags = ["--method", "extra_layer", "--pid2sid", *paths, "--output_path", *paths]
    command = [sys.executable, "-c", KILLED, str(at), *map(str, flags)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    assert subprocess.run(command, env=environment).returncode == -signal.SIGKILL
    resolve(list(map(str, flags)))
    resolve(list(map(str, ["--method", "extra_layer", "--pid2sid", *whole, "--output_path", *whole])))
    for path, other in zip(paths, whole, strict=True):
        assert path.read_bytes() == other.read_bytes()
        assert SidSpec.load(path.parent) == SidSpec.load(other.parent)
        assert not list(path.parent.glob(".*"))
