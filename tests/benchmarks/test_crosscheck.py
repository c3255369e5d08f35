"""The comparison of our SASRec with RecBole's (experiments/2026-11-25-sasrec-crosscheck): its own side."""

import importlib.util
import json
from pathlib import Path

import pytest

from onerec.errors import InputError

SCRIPT = Path(__file__).resolve().parents[2] / "experiments/2026-11-25-sasrec-crosscheck/sasrec.py"
SPEC = importlib.util.spec_from_file_location("crosscheck_sasrec", SCRIPT)
sasrec = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(sasrec)


def test_the_cross_check_reads_recboles_form_and_measures_ours(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sasrec.SETTINGS, "epochs", 1)
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    lines += [f"{u}\t{(u + t) % 30}\t5\t{t}" for t in (3, 1, 2, 0, 4) for u in range(60)] + ["99\t1\t5\t0"]
    path = tmp_path / "toy.inter"
    path.write_text("\n".join(lines))
    sequences = sasrec.read_sequences(path)
    assert sequences["7"] == [7, 8, 9, 10, 11] and "99" not in sequences  # by time; one item is no sequence
    sasrec.main(["--inter", str(path), "--seeds", "0", "--output", str(tmp_path / "out.json")])
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())["ours"][0]
    assert f"recall@10   ours {found['recall@10']:.4f}" in out and 0 <= found["ndcg@10"] <= found["recall@10"] <= 1
    path.write_text("user_id:token\titem_id:token\n1\t2\n")
    with pytest.raises(InputError, match="has no timestamp"):
        sasrec.read_sequences(path)


def test_seeds_noise_is_welchs_interval():
    from scipy.stats import ttest_ind

    ours, theirs = [0.10, 0.12, 0.11, 0.13], [0.09, 0.16, 0.12]
    difference, low, high, same = sasrec.within_noise(ours, theirs)
    expected = ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high)) and low < difference < high and same
    assert not sasrec.within_noise([0.10, 0.101], [0.20, 0.201])[3]
    assert sasrec.within_noise([0.1, 0.1], [0.1, 0.1]) == (0, 0, 0, True)
    assert not sasrec.within_noise([0.1, 0.1], [0.2, 0.2])[3]


def test_recbole_reads_every_sequence_in_our_order_whatever_the_times_ties(tmp_path):
    path = tmp_path / "x.inter"
    sasrec.write_sequences(path, {"7": [5, 3, 4, 9], "8": [1, 2, 3]})
    assert sasrec.read_sequences(path) == {"7": [5, 3, 4, 9], "8": [1, 2, 3]}
    assert path.read_text().splitlines()[:2] == ["user_id:token\titem_id:token\ttimestamp:float", "7\t5\t0"]
