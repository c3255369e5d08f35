"""The checkpoint that goes on is the one that ranks best on the validation targets; others are refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.choose_checkpoint import best_of, main
from benchmarks.evaluate import main as evaluate
from onerec.errors import InputError
from tests.arguments import as_flags


@pytest.fixture
def run_dir(tiny_checkpoint, tmp_path):
    """A run whose step 2 is the tiny checkpoint itself; steps 1 and 10 have other weights."""
    run = tmp_path / "run"
    shutil.copytree(tiny_checkpoint, run / "hf")
    weights = load_file(tiny_checkpoint / "model.safetensors")
    torch.manual_seed(1)
    for step in (1, 2, 10):
        folder = run / f"step{step}" / f"global_step{step}"
        folder.mkdir(parents=True)
        noise = 0.0 if step == 2 else 1.0
        save_file({k: v + noise * torch.randn_like(v) for k, v in weights.items()}, folder / "model.safetensors")
    return run


def test_the_curve_is_what_the_benchmark_measures_and_the_best_is_said(run_dir, tiny_data, tmp_path, capsys):
    main(["--run_dir", str(run_dir), "--data_dir", str(tiny_data), "--validation_beams", "16"])
    choice = json.loads((run_dir / "choice.json").read_text())
    assert [point["step"] for point in choice["curve"]] == [1, 2, 10] and choice["users"] == 12
    best = max(choice["curve"], key=lambda point: point["ndcg@10"])
    assert choice["best"] == best["step"] and f"step {best['step']} (" in capsys.readouterr().out
    evaluate(
        as_flags(
            model_path=run_dir / "hf",
            result_name="x",
            data_dir=tiny_data,
            output_dir=tmp_path / "r",
            tasks="video",
            num_beams=16,
            free_sids=0,
        )
    )
    measured = json.loads((tmp_path / "r/results_x/metrics.json").read_text())
    assert choice["data"] == measured["data"]["tests"]["video"]
    wanted = {name: measured["tasks"]["video"][name] for name in ("recall@1", "recall@10", "ndcg@10")}
    assert choice["curve"][1] == {"step": 2} | wanted


def test_a_stage_that_unlearnt_what_the_one_before_ranked_is_warned_of(run_dir, tiny_data, tmp_path, capsys):
    flags = as_flags(run_dir=run_dir, data_dir=tiny_data, validation_beams=16)
    main(flags)
    choice = json.loads((run_dir / "choice.json").read_text())
    before, better = tmp_path / "choice.json", choice["curve"][0] | {"ndcg@10": 0.9}
    for change, warned in (({}, False), ({"curve": [better]}, True), ({"curve": [better], "users": 11}, False)):
        before.write_text(json.dumps(choice | change))
        capsys.readouterr()
        main([*flags, "--before", str(before)])
        assert ("this stage unlearnt what the one before ranked (ndcg@10 " in capsys.readouterr().err) is warned
        manifest = json.loads((run_dir / "choice.manifest.json").read_text())
        assert ("warnings" in manifest) is warned and manifest["stage"] == "choose_checkpoint"


def test_a_sample_is_by_the_seed(run_dir, tiny_data):
    flags = as_flags(run_dir=run_dir, data_dir=tiny_data, validation_beams=16, validation_users=5)
    curves = []
    for seed in ("0", "0", "1"):
        main([*flags, "--seed", seed])
        choice = json.loads((run_dir / "choice.json").read_text())
        assert choice["users"] == 5
        curves.append(choice["curve"])
    assert curves[0] == curves[1] != curves[2]


def test_the_earlier_of_two_equal_ones_is_taken():
    curve = [{"step": s, "ndcg@10": v} for s, v in ((100, 0.1), (200, 0.3), (300, 0.3), (400, 0.2))]
    assert best_of(curve, "ndcg@10")["step"] == 200


def test_what_is_no_checkpoint_is_one_line(run_dir, tiny_data, tmp_path):
    flags = ["--data_dir", str(tiny_data), "--validation_beams", "16"]
    with pytest.raises(InputError, match="holds no step<N>"):
        main(["--run_dir", str(tmp_path), *flags])
    for wrong in (["--validation_beams", "5"], ["--validation_users", "0"]):
        with pytest.raises(InputError, match=wrong[0]):
            main(["--run_dir", str(run_dir), *flags, *wrong])
    file = run_dir / "step1" / "global_step1" / "model.safetensors"
    weights = load_file(file)
    name = "model.norm.weight"
    for change, says in (
        ({name: weights[name][:3].clone()}, "size mismatch|does not fit"),
        ({}, "is in one of them only"),
    ):
        others = {k: v for k, v in weights.items() if k != name}
        save_file(others | change, file)
        with pytest.raises(InputError, match=says):
            main(["--run_dir", str(run_dir), *flags])
    file.write_bytes(b"half")
    with pytest.raises(InputError, match="is not a whole safetensors file"):
        main(["--run_dir", str(run_dir), *flags])
    assert not (run_dir / "choice.json").exists()
