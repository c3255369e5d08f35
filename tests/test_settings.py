"""Profiles: what a folder of settings says of each stage, and the errors of names that no stage knows."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from onerec.errors import InputError
from onerec.flags import variable_of
from tests.shell_calls import parser_of

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("run_settings", ROOT / "scripts" / "settings.py")
settings = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(settings)
PROFILES = sorted(path.name for path in settings.PROFILES.iterdir())
# The Python scripts of a stage whose flags are its settings.
FLAGS_OF = {
    "world": [
        "data/make_toy_world.py",
        "data/adapters/movielens.py",
        "data/adapters/amazon2014.py",
        "data/adapters/own.py",
    ],
    "tokenizer": [
        "tokenizer/train_res_kmeans.py",
        "tokenizer/import_codes.py",
        "tokenizer/embed_items.py",
        "tokenizer/choose_sizes.py",
    ],
    "data": ["data/onerec_data/run.py", "data/prepare_rl.py", "data/prepare_mix.py", "data/prepare_distillation.py"],
    "base": ["pretrain/make_tiny_qwen3.py", "pretrain/train.py", "pretrain/expand_vocab.py"],
    "stg1": ["pretrain/train.py"],
    "stg2": ["pretrain/train.py"],
    "sft": ["pretrain/train.py"],
    "distill": ["verl_distillation/distill.py"],
    "grpo": ["verl_rl/train_grpo.py"],
    "evaluate": ["benchmarks/evaluate.py", "benchmarks/baselines.py", "benchmarks/choose_checkpoint.py"],
}


@pytest.mark.parametrize("words", [[], ["list"], ["lists", "quick"], ["export", "quick"], ["export", "quick", "nope"]])
def test_a_command_that_is_none_is_one_line(words):
    command = [sys.executable, str(ROOT / "scripts" / "settings.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "please report it" not in done.stderr


@pytest.mark.parametrize("profile", PROFILES)
def test_every_line_of_the_profiles_is_a_setting(profile):
    assert settings.settings(profile)["world"]["N_TEXTS"]


@pytest.mark.parametrize("stage", settings.STAGES)
def test_a_stage_knows_the_flags_of_its_scripts(stage):
    for script in FLAGS_OF[stage]:
        names = {variable_of(flag) for flag in parser_of(script)._option_string_actions} - {None}
        unknown = names - settings.known(stage) - settings.OF_THE_RUN
        # Paths are the run's, not settings.
        assert all(
            name.endswith(("_DIR", "_PATH", "_MODEL", "_PARQUET", "_SPEC", "_HELDOUT", "_PID2SID"))
            or name in ("SOURCES", "CODEBOOK")
            for name in unknown
        ), (script, unknown)


@pytest.fixture
def profiles(tmp_path, monkeypatch):
    """A profile ``child`` of a profile ``house``."""
    for name, text in (
        ("house/grpo.env", "LEARNING_RATE=1e-3 # why\nSAVE_FREQ=5\n"),
        ("house/mix.json", "{}"),
        ("child/grpo.env", "# nothing\n\nSAVE_FREQ=7\nREWARD_WEIGHTS='full_hit=1'\n"),
        ("child/parent", "house\n"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(settings, "PROFILES", tmp_path)
    monkeypatch.setattr(settings, "ROOT", ROOT if tmp_path.is_relative_to(ROOT) else tmp_path, raising=True)
    monkeypatch.setattr(
        settings,
        "known",
        lambda stage: {"LEARNING_RATE", "SAVE_FREQ", "REWARD_WEIGHTS"} if stage == "grpo" else {"NUM_BEAMS"},
    )
    return tmp_path


def test_a_profile_has_its_own_lines_and_those_of_its_parent(profiles):
    assert settings.settings("child")["grpo"] == {
        "LEARNING_RATE": "1e-3",
        "SAVE_FREQ": "7",
        "REWARD_WEIGHTS": "full_hit=1",
    }
    assert settings.file_of("child", "mix.json") == profiles / "house" / "mix.json"
    more = "grpo.SAVE_FREQ=8\ngrpo.SAVE_FREQ=9\n"
    assert settings.settings("child", more)["grpo"]["SAVE_FREQ"] == "9"


def test_a_wrong_line_is_one_error_that_names_the_near_ones(profiles):
    for line, said in (
        ("LEARNIN_RATE=1", "LEARNIN_RATE is no setting of grpo; LEARNING_RATE"),
        ("NUM_BEAMS=1", "NUM_BEAMS is no setting of grpo; it is one of world"),
        ("XYZ=1", "XYZ is no setting of grpo; a flag of its scripts in capitals"),
        ("SAVE_FREQ 1", "line 1 is SAVE_FREQ 1; NAME=value"),
        ("SAVE_FREQ='1", "line 1 is SAVE_FREQ='1; NAME=value"),
    ):
        (profiles / "child" / "grpo.env").write_text(line)
        with pytest.raises(InputError) as error:
            settings.settings("child")
        assert "child/grpo.env: " in str(error.value) and said in str(error.value)
    (profiles / "child" / "grpo.env").write_text("")
    (profiles / "child" / "sftt.env").write_text("NUM_BEAMS=1")
    with pytest.raises(InputError, match="sftt is no stage; world, tokenizer, "):
        settings.settings("child")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("grpo.LEARNIN_RATE=1", "--set grpo.LEARNIN_RATE=1: LEARNIN_RATE is no setting of grpo; LEARNING_RATE"),
        ("sftt.LEARNING_RATE=1", "--set sftt.LEARNING_RATE=1: sftt is no stage; world, "),
        ("LEARNING_RATE=1", "--set: is LEARNING_RATE=1; <stage>.<NAME>=<value>, as grpo.LEARNING_RATE=1e-3"),
        ("data.OUTPUT_DIR=x", "OUTPUT_DIR is no setting of data"),
    ],
)
def test_what_set_does_not_know(line, said):
    with pytest.raises(InputError) as error:
        settings.settings("smoke", line)
    assert said in str(error.value)


def shell_lines(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / "settings.py"), *arguments]
    env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | {"ONEREC_CODE": str(ROOT)}
    return subprocess.run(command, env=env | environment, capture_output=True, text=True)


def test_the_environment_goes_before_the_profile_in_a_numbered_script_and_is_refused_in_a_chain():
    lines = shell_lines("export", "smoke", "grpo", LEARNING_RATE="7", ONEREC_SETTINGS="grpo.SAVE_FREQ=9\n").stdout
    assert "export SAVE_FREQ=9\n" in lines and "LEARNING_RATE" not in lines and "export ADVANTAGE=maxrl\n" in lines
    chain = shell_lines("alone", "smoke", SAMPLE_SIZE="5")
    assert chain.returncode == 2 and chain.stderr == (
        "error: SAMPLE_SIZE: is set in the environment, where every stage of the chain would take it; "
        "unset it, or name the stage: --set evaluate.SAMPLE_SIZE=5\n"
    )
    assert shell_lines("alone", "smoke", SEED="5", VERSION="v2", TASK="x").returncode == 0


def test_what_was_measured_on_the_data_goes_before_the_profile_and_behind_set(tmp_path):
    (tmp_path / "raw_data").mkdir()
    lines = "# sizes\n\ngrpo.SAVE_FREQ=7  # few events\ngrpo.TEST_FREQ=5\n"
    (tmp_path / "raw_data" / "sizes.env").write_text(lines)
    run = {"RUN_DIR": str(tmp_path), "ONEREC_SETTINGS": "grpo.TEST_FREQ=9\n"}
    found = shell_lines("list", "smoke", **run).stdout
    assert "grpo.SAVE_FREQ=7\n" in found and "grpo.TEST_FREQ=9\n" in found
    assert "grpo.SAVE_FREQ=2\n" in shell_lines("alone", "smoke", **run).stdout, "a run's own settings are the user's"
    (tmp_path / "raw_data" / "sizes.env").write_text("grpo.SAVE_FRE=7\n")
    assert "SAVE_FRE is no setting of grpo; SAVE_FREQ" in shell_lines("list", "smoke", **run).stderr


def test_a_profile_that_is_not_there_is_one_line():
    done = shell_lines("list", "laptopp")
    assert done.returncode == 2 and done.stderr.startswith(
        "error: scripts/profiles/laptopp: is no profile; PROFILE is one of amazon"
    )
    assert done.stderr.count("\n") == 1
