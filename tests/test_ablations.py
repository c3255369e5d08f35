"""The ablations: what is called with which settings, what is not repeated, and tables of what has been measured."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from onerec.errors import InputError
from tests.arguments import as_flags

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("ablations", ROOT / "scripts" / "recipes" / "ablations.py")
ablations = importlib.util.module_from_spec(SPEC)
sys.modules["ablations"] = ablations
SPEC.loader.exec_module(ablations)

LIST = {
    "tables": [
        {"name": "dropout", "variants": [{"name": "0.3", "set": {"stg2.DROPOUT": "0.3"}}]},
        {
            "name": "rest",
            "variants": [
                {
                    "name": "SFT only",
                    "set": {
                        "stg2.NUM_TRAINING_STEPS": "0",
                        "sft.NUM_TRAINING_STEPS": "=stg2.NUM_TRAINING_STEPS+sft.NUM_TRAINING_STEPS",
                        "sft.LEARNING_RATE": "=stg2.LEARNING_RATE",
                    },
                },
                {"name": "beam 10", "evaluate": ["--num_beams", "10"]},
                {"name": "SFT, beam 5", "of": "SFT only", "evaluate": ["--num_beams", "5"]},
                {"name": "breaks", "set": {"tokenizer.N_LAYERS": "99"}},
            ],
        },
    ]
}


@pytest.fixture
def calls(monkeypatch):
    """Commands and environments that would be run; a run leaves the result of a model that is always right."""
    made, real = [], subprocess.run

    def run(command, **kwargs):
        if command[1] == "scripts/settings.py":
            return real(command, **kwargs)
        env = kwargs["env"]
        made.append((command, env))
        if "tokenizer.N_LAYERS=99" in command:
            return subprocess.CompletedProcess(command, 2)
        run_dir = Path(env["RUN_DIR"]) if "--result_name" in command else Path(env["RUNS"]) / "seed0"
        folder = run_dir / "benchmarks/results/v1.0" / f"results_{command[-1] if '--result_name' in command else 'sft'}"
        folder.mkdir(parents=True)
        (folder / "predictions_video.jsonl").write_text(json.dumps({"items": [1], "answer": [1]}) + "\n")
        choice = {"best": 2, "curve": [{"step": 1, "ndcg@10": 0.1}, {"step": 2, "ndcg@10": 0.25}]}
        (run_dir / "models/sft").mkdir(parents=True, exist_ok=True)
        (run_dir / "models/sft/choice.json").write_text(json.dumps(choice))
        (folder / "metrics.json").write_text("{}")  # last, as in a real run: with it there is a result
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(ablations.subprocess, "run", run)
    return made


def test_every_variant_is_run_once_and_what_was_measured_is_in_the_tables(tmp_path, calls, capsys):
    (tmp_path / "list.json").write_text(json.dumps(LIST))
    out = tmp_path / "out"
    argv = as_flags(recipe="amazon_beauty", folder=tmp_path, output_dir=out, list=tmp_path / "list.json")
    assert ablations.main(argv) == 2, "one variant failed"
    names = [Path(env.get("RUNS", env.get("RUN_DIR"))).name for _, env in calls]
    assert names == ["base", "0.3", "sft_only", "seed0", "seed0", "breaks"]
    told = ["\n".join([*command, env.get("ONEREC_SETTINGS", "")]).split("\n") for command, env in calls]
    assert all(set(ablations.ONCE) <= set(words) for words in told)
    commands = {name: command for name, (command, _) in zip(names, calls, strict=True)}
    assert "stg2.DROPOUT=0.3" in commands["0.3"] and "stg2.DROPOUT=0.3" not in commands["base"]
    profile = ablations.profile_settings("amazon_beauty")
    steps = int(profile["stg2.NUM_TRAINING_STEPS"]) + int(profile["sft.NUM_TRAINING_STEPS"])
    assert f"sft.NUM_TRAINING_STEPS={steps}" in commands["sft_only"]
    assert f"sft.LEARNING_RATE={profile['stg2.LEARNING_RATE']}" in commands["sft_only"]
    assert calls[3][0] == ["bash", "scripts/11_evaluate.sh", "sft", "--num_beams", "10", "--result_name", "beam_10"]
    assert Path(calls[4][1]["RUN_DIR"]).parent.name == "sft_only"
    tables = json.loads((out / "ablations.json").read_text())["tables"]
    assert [row["name"] for row in tables["dropout"]] == ["base", "0.3"]
    assert [row["name"] for row in tables["rest"]] == ["base", "SFT only", "beam 10", "SFT, beam 5"], (
        "what failed is in no table"
    )
    assert tables["dropout"][1]["validation_ndcg@10"] == 0.25 and tables["dropout"][1]["recall@10"] == 1
    assert tables["rest"][2]["validation_ndcg@10"] is None
    printed = capsys.readouterr()
    assert "| 0.3 | 0.2500 | 1.0000 | 1.0000 | 1.0000 | 1.0000 | 1 |" in printed.out
    assert "breaks failed" in printed.err and "breaks.log" in printed.err

    calls.clear()
    assert ablations.main([*argv, "--tables", "dropout"]) == 0 and not calls
    assert set(json.loads((out / "ablations.json").read_text())["tables"]) == {"dropout", "rest"}


def test_an_evaluation_brings_the_run_that_it_asks_for(tmp_path, calls):
    evaluation = {"name": "beam 5", "of": "mean", "evaluate": ["--num_beams", "5"]}
    tables = [
        {"name": "decoding", "variants": [evaluation]},
        {"name": "init", "variants": [{"name": "mean", "set": {"base.INIT": "mean"}}]},
    ]
    (tmp_path / "list.json").write_text(json.dumps({"tables": tables}))
    argv = as_flags(recipe="amazon_beauty", folder=tmp_path, output_dir=tmp_path / "out", list=tmp_path / "list.json")
    assert ablations.main([*argv, "--tables", "decoding", "--jobs", "2"]) == 0
    assert [Path(env.get("RUNS", env.get("RUN_DIR"))).name for _, env in calls] == ["base", "mean", "seed0"]
    evaluation["of"] = "median"
    (tmp_path / "list.json").write_text(json.dumps({"tables": tables}))
    with pytest.raises(InputError, match="evaluates median; a variant with settings: base, mean"):
        ablations.main(argv)


def test_names_that_are_not_there_are_one_line(tmp_path):
    argv = ["--recipe", "amazon_beauty", "--folder", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(InputError, match="has no table nothing"):
        ablations.main([*argv, "--tables", "nothing"])
    (tmp_path / "list.json").write_text('{"tables": [{"variants": []}]}')
    with pytest.raises(InputError, match="is no list of ablations"):
        ablations.main([*argv, "--list", str(tmp_path / "list.json")])
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="names STEPZ"):
        ablations.resolved({"A": "=STEPZ"}, {})


def test_the_list_that_ships_names_settings_that_there_are():
    known = ablations.profile_settings("amazon_beauty")
    for variants in ablations.read_tables(ROOT / "scripts" / "recipes" / "ablations.json").values():
        assert variants
        for variant in variants:
            assert bool(variant.settings) != bool(variant.flags)
            ablations.profile_settings("amazon_beauty", [f"{n}=1" for n in variant.settings if n != "RL"])
            ablations.resolved(variant.settings, known)
            if variant.after:  # nothing that the stages before it read
                later = {
                    "04": "base.INIT stg1. stg2. sft.",
                    "05": "stg1. stg2. sft.",
                    "06": "stg2. sft.",
                    "08": "RL distill.",
                }
                prefixes = (*later[variant.after[:2]].split(), "evaluate.EVAL_STAGES")
                assert all(name.startswith(prefixes) for name in variant.settings), variant.name


def test_a_variant_goes_on_from_what_the_base_has_made(tmp_path, calls):
    variants = [
        {"name": "on top", "after": "08_choose", "set": {"RL": "1", "evaluate.EVAL_STAGES": "rl"}},
        {"name": "mean", "after": "04_base_model", "set": {"base.INIT": "mean"}},
        {"name": "odd", "after": "05_nothing", "set": {"base.INIT": "mean"}},
    ]
    tables = [{"name": variant["name"], "variants": [variant]} for variant in variants]
    (tmp_path / "list.json").write_text(json.dumps({"tables": tables}))
    out = tmp_path / "out"
    argv = as_flags(recipe="amazon_beauty", folder=tmp_path, output_dir=out, list=tmp_path / "list.json")
    with pytest.raises(InputError, match="mean goes on after 04_base_model; a stage of"):
        ablations.main([*argv, "--tables", "mean"])
    base = out / "base" / "seed0"
    (base / ".done").mkdir()
    for name in ("settings", "01_world", "04_base_model", "05_expand_vocab", "08_choose", "08_evaluate"):
        (base / ".done" / name).write_text("1")
    for name in ("raw_data/log", "models/base/weights", "models/base_itemic/weights", "models/sft/weights"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text("x")
    with pytest.raises(InputError, match="odd goes on after 05_nothing; a stage of"):
        ablations.main([*argv, "--jobs", "2", "--tables", "odd"])
    assert not (out / "odd").exists()
    assert ablations.main([*argv, "--jobs", "2", "--tables", "mean", "on top"]) == 0
    mean, top = out / "mean" / "seed0", out / "on_top" / "seed0"
    assert sorted(p.name for p in (mean / ".done").iterdir()) == ["01_world", "04_base_model"]
    stages = ["01_world", "04_base_model", "05_expand_vocab", "08_choose"]
    assert sorted(p.name for p in (top / ".done").iterdir()) == stages
    made = {str(p.relative_to(mean)) for p in mean.rglob("*") if p.is_file() and "results" not in p.parts}
    assert made == {
        ".done/01_world",
        ".done/04_base_model",
        "raw_data/log",
        "models/base/weights",
        "models/sft/choice.json",
    }
    assert (top / "models/sft/weights").exists() and (top / "models/base_itemic/weights").exists()
