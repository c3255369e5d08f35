"""SIDs made elsewhere come in whole, in either spelling, and what does not fit is counted."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from onerec.errors import InputError
from onerec.sid import SidSpec
from tokenizer.evaluate_codes import main as evaluate
from tokenizer.import_codes import main as take


def run(tmp_path, value, *flags):
    (tmp_path / "index.json").write_text(json.dumps(value))
    out = tmp_path / "sids" / "pid2sid.parquet"
    take(["--codes", str(tmp_path / "index.json"), "--output_path", str(out), *flags])
    return pq.read_table(out).to_pylist(), SidSpec.load(out.parent)


def test_codes_and_tokens_are_read_and_layers_cut(tmp_path, capsys):
    value = {"7": [1, 2, 3, 0], "2": ["<a_3>", "<b_0>", "<c_1>", "<d_9>"], "3": [1, 2, 3, 1]}
    rows, spec = run(tmp_path, value, "--codebook_size", "4")
    assert rows == [
        {"pid": 2, "codes": [3, 0, 1]},
        {"pid": 3, "codes": [1, 2, 3]},
        {"pid": 7, "codes": [1, 2, 3]},
    ]
    assert spec.codebook_sizes == (4, 4, 4) and spec.collision == "none"
    assert "3 items" in (out := capsys.readouterr().out) and "2 distinct SIDs, collision rate 33.33%" in out
    rows, spec = run(tmp_path, value, "--codebook_size", "16", "--n_layers", "4", "--collision", "extra_layer")
    assert rows[0]["codes"] == [3, 0, 1, 9] and spec.collision == "extra_layer"


def test_items_that_do_not_fit_are_counted_and_too_many_fail(tmp_path, capsys):
    value = {"1": [0, 1], "x": [0, 0, 0], "2": [9, 0, 0], "3": [1, 1, 1], "4": "abc", "5": [0.5, 1, 1], "6": {"a": 1}}
    rows, _ = run(tmp_path, value, "--codebook_size", "4", "--max_bad_ratio", "1")
    assert [row["pid"] for row in rows] == [3]
    out = capsys.readouterr().out
    assert "1 (too few codes)" in out and "4 (no whole number as item id, or no codes)" in out
    assert "1 (a code outside its codebook)" in out
    with pytest.raises(InputError, match="6 of 7"):
        run(tmp_path, value, "--codebook_size", "4")


@pytest.mark.parametrize("value", [[], {}, [1, 2]])
def test_what_is_no_table_of_codes_is_one_line(tmp_path, value):
    with pytest.raises(InputError, match="is not a JSON object with items"):
        run(tmp_path, value, "--codebook_size", "4")


@pytest.mark.parametrize(("name", "distinct"), [("rqkmeans", "7,840"), ("rqvae", "11,412")])
def test_the_published_sids_of_beauty(tmp_path, capsys, shared_data, name, distinct):
    path = shared_data(f"amazon2014/beauty_sids/index_{name}.json")
    take(["--codes", str(path), "--output_path", str(tmp_path / "o.parquet"), "--codebook_size", "256"])
    assert f"12,101 items into {tmp_path / 'o.parquet'}: {distinct} distinct SIDs" in capsys.readouterr().out


def test_codes_as_embeddings_are_near_where_the_codes_agree(tmp_path, capsys):
    value = {"1": [0, 1, 2], "2": [0, 1, 3], "3": [0, 2, 2], "4": [3, 1, 2], "5": [0, 1, 2]}
    out = tmp_path / "e.parquet"
    flags = ["--codebook_size", "4", "--embedding_path", str(out), "--embedding_dim", "256"]
    run(tmp_path, value, *flags)
    first = out.read_bytes()
    vectors = np.stack(pq.read_table(out)["embedding"].to_numpy())
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    near = vectors[0] @ vectors.T
    # The same SID, then the first two layers in common, then the first and the third, then without the first.
    assert near[4] > 0.999 > near[1] > near[2] > near[3]
    run(tmp_path, value, *flags)
    assert out.read_bytes() == first
    with pytest.raises(InputError, match="--embedding_dim"):
        run(tmp_path, value, *flags[:4], "--embedding_dim", "0")


@pytest.mark.parametrize(("sids", "warned"), [(4, False), (3, True)])
def test_sids_that_mostly_collide_are_warned_of(tmp_path, capsys, sids, warned):
    run(tmp_path, {str(i): [0, 0, i % sids] for i in range(8)}, "--codebook_size", "4")
    line = f"warning: 8 items have {sids} SIDs: most collide; more codes or layers"
    assert (line in capsys.readouterr().err) == warned
    report = tmp_path / "report"
    evaluate(["--pid2sid", str(tmp_path / "sids/pid2sid.parquet"), "--output_dir", str(report)])
    assert (line in capsys.readouterr().err) == warned
    assert ("warnings" in json.loads((report / "codes_report.manifest.json").read_text())) == warned
