"""docs/from_openonerec.md, row by row: each word of OpenOneRec is taken, or a line names what stands in its place."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from onerec.cli import MOVED, REFUSED, WORKS, cli, read_words, translated
from onerec.errors import InputError
from onerec.records import record_uuid, text_record, write_records
from pretrain.dataset_config import CONFIGS, load_config
from tests.shell_calls import Calls

ROOT = Path(__file__).resolve().parent.parent
ROWS = [(word, script) for word in read_words() for script in word.scripts or ("",)]
VARIABLES = [(word, script) for word, script in ROWS if script.endswith(".sh") and word.old[0] != "<"]
FLAGS = [(word, script) for word, script in ROWS if word.old.startswith("--")]
KEYS = [word for word, script in ROWS if script == CONFIGS]
# What a script cannot do without, and the arguments of those that have some.
NEEDED = {"BASE_MODEL": "student", "TEACHER_MODEL": "teacher"}
# Of the variables that take no number.
VALUES = {
    "THINK_MODE": "on",
    "ENABLE_THINK": "1",
    "ENABLE_NONTHINK": "0",
    "USE_FORCE_PREFIX": "0",
    "ITEMIC_LAYER_N": "2",
    "VOCAB_SIZE_PER_LAYER": "256",
    "MASK_RESPONSE_IF_HAVE_EXTEND_TOKEN": "True",
}
ARGUMENTS = {"benchmarks/eval_script.sh": ["model", "name", "false"]}


def name(row) -> str:
    return f"{row[1]} {row[0].old}" if isinstance(row, tuple) else row.old


def shell(script: str, tmp_path: Path, *arguments: str, **variables: str) -> tuple[Calls, subprocess.CompletedProcess]:
    """A shell script with a recorder for Python."""
    calls = Calls(tmp_path)
    given = {"BENCHMARK_BASE_DIR": str(tmp_path)} if script in ARGUMENTS else {}
    command = ["bash", str(ROOT / script), *ARGUMENTS.get(script, []), *arguments]
    return calls, calls.run(command, tmp_path, **(NEEDED | given | variables))


def commands(script: str, tmp_path: Path, *arguments: str, **variables: str) -> list:
    """What the script would run and with which settings; torchrun's flags too."""
    calls, done = shell(script, tmp_path, *arguments, **variables)
    assert done.returncode == 0, done.stderr
    launched = [line for line in done.stdout.splitlines() if "launch.py" in line]
    return [*calls.taken(), *launched]


def test_the_table_has_rows_of_every_kind_and_nothing_else():
    assert {word.how for word, _ in ROWS} == {WORKS, REFUSED, MOVED}
    assert min(len(VARIABLES), len(FLAGS), len(KEYS)) > 15
    assert all(word.what for word, _ in ROWS)
    assert all(
        (ROOT / script).exists()
        for _, script in ROWS
        if script
        and "*" not in script
        and "/" in script
        and not script.startswith(("recipes/", "tools/", "scripts/ray-vllm"))
    )
    walked = {id(word) for word, _ in (*VARIABLES, *FLAGS)} | {id(word) for word in KEYS}
    others = [word.old for word, _ in ROWS if id(word) not in walked and word.how != MOVED]
    assert others == ["<hostfile>", "<key=value>"], "each of these has a test below"


@pytest.mark.parametrize("row", [row for row in VARIABLES if row[0].how == WORKS], ids=name)
def test_a_variable_that_works_changes_the_command_under_its_old_name_as_under_its_new_one(row, tmp_path):
    word, script = row
    value = VALUES.get(word.new, "0" if word.old.startswith("RUN_") else "7654321")
    if word.old == "DATA_VERSION":  # counts where there is such a folder
        (tmp_path / "data" / value).mkdir(parents=True)
    more = {"BENCHMARK_DATA_DIR": str(tmp_path / "data")} if word.old == "DATA_VERSION" else {}
    more |= {"NPROC": "2"} if word.old.startswith("MASTER_") else {}
    without = commands(script, tmp_path, **more)
    old = commands(script, tmp_path, **more, **{word.old: value})
    assert old != without and old == commands(script, tmp_path, **more, **{word.new: value})


@pytest.mark.parametrize("row", [row for row in VARIABLES if row[0].how == REFUSED], ids=name)
def test_a_variable_without_a_place_is_one_line_that_says_what_stands_in_its_place(row, tmp_path):
    word, script = row
    done = shell(script, tmp_path, **{word.old: "7654321"})[1]
    assert done.returncode == 2 and "train.py" not in done.stdout
    assert done.stderr == f"error: {word.refusal()}\n" and (word.new == "–" or word.new in done.stderr)


def test_variables_of_another_stage_do_not_stop_a_chain(tmp_path):
    """GRPO's ENABLE_THINK has no place in distillation; where a script of the chain starts it, nobody means it."""
    script = "verl_distillation/recipe/onpolicy_distill/run_qwen3_distill.sh"
    assert shell(script, tmp_path, ENABLE_THINK="1")[1].returncode == 2
    assert shell(script, tmp_path, ENABLE_THINK="1", ONEREC_CODE=str(ROOT))[1].returncode == 0


@functools.cache
def help_of(script: str) -> str:
    done = subprocess.run([sys.executable, str(ROOT / script), "--help"], capture_output=True, text=True)
    return done.stdout


@pytest.mark.parametrize("row", [row for row in FLAGS if row[0].how == WORKS], ids=name)
def test_a_flag_that_works_is_one_of_the_scripts(row):
    word, script = row
    assert re.search(rf"{word.new}\b", help_of(script))
    assert translated(ROOT / script, [word.old, "x", f"{word.old}=x"]) == [word.new, "x", f"{word.new}=x"]


@pytest.mark.parametrize("row", [row for row in FLAGS if row[0].how == REFUSED], ids=name)
def test_a_flag_without_a_place_is_one_line_that_says_what_stands_in_its_place(row, monkeypatch, capsys):
    word, script = row
    monkeypatch.setattr(sys, "argv", [str(ROOT / script), word.old, "1"])
    with pytest.raises(SystemExit) as end:
        cli(lambda: pytest.fail("begun"))()
    said = capsys.readouterr().err
    assert end.value.code == 2 and said == f"error: {word.refusal()}\n" and word.new in f"–{said}"


def test_a_scripts_own_command_line_says_every_flag_that_has_no_place():
    train = [sys.executable, str(ROOT / "pretrain/train.py"), "--use_tie_weights", "--model_class", "x"]
    done = subprocess.run(train, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 2
    assert [line.split(":")[1] for line in done.stderr.splitlines()] == [
        " --use_tie_weights",
        " --model_class",
    ]


@pytest.mark.parametrize("word", KEYS, ids=name)
def test_a_key_of_the_dataset_config_is_taken_or_its_line_says_what_stands_in_its_place(word, tmp_path):
    values = {
        "name": "chat_completion_parquet",
        "model_class": "Qwen3ForCausalLM",
        "itemic_id_range": [1, 2],
        "sources": "a",
        "base_model_dir": "b",
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"sources": "a", word.old: values.get(word.old, 1)}))
    if word.how == WORKS:
        assert hasattr(load_config(path), word.new)
        return
    with pytest.raises(InputError) as error:
        load_config(path)
    assert str(error.value) == f"{path}: {word.old} is OpenOneRec's; {word.refusal().right}"


@pytest.mark.parametrize("word", [word for word, _ in ROWS if word.how == MOVED], ids=name)
def test_what_is_elsewhere_is_there(word):
    assert (ROOT / word.new).exists()


def test_a_host_file_says_how_many_nodes_there_are(tmp_path):
    script = "verl_distillation/recipe/onpolicy_distill/run_qwen3_distill.sh"
    hosts = tmp_path / "hostfile"
    hosts.write_text("10.0.0.1\n10.0.0.2 slots=8\n\n10.0.0.3\n")
    assert commands(script, tmp_path, str(hosts), "--dry_run")[0][1]["nnodes"] == 3
    assert commands(script, tmp_path, "--dry_run")[0][1]["nnodes"] == 1
    absent = shell(script, tmp_path, "/no/hostfile")[1]
    assert absent.returncode == 2
    assert absent.stderr == "error: /no/hostfile: no such host file; one with a node a line, or NNODES=<nodes>\n"


def test_overrides_of_verl_are_taken_behind_the_scripts_name():
    from verl_rl.options import parse_args

    needed = ["--base_model", "b", "--data_dir", "d", "--catalogue", "c", "--output_dir", "o"]
    args = parse_args([*needed, "trainer.save_freq=10", "++data.x=1", "--overrides", "a.b=2"])
    assert args.overrides == ["a.b=2", "trainer.save_freq=10", "++data.x=1"]
    with pytest.raises(InputError):
        parse_args([*needed, "--no_such_flag", "a=1"])


@pytest.fixture
def clone(tmp_path):
    """The data stage in a clone of its own."""
    root = tmp_path / "clone"
    for folder in ("data", "onerec", "scripts", "docs"):
        left_out = shutil.ignore_patterns("raw_data", "output", "__pycache__")
        shutil.copytree(ROOT / folder, root / folder, ignore=left_out)
    return root


def records(path: Path, source: str, n: int) -> None:
    write_records(path, [text_record(record_uuid(source, i), source, {}, [f"{source} {i}"]) for i in range(n)])


def prepare_pretrain(clone: Path, **variables: str) -> dict:
    done = subprocess.run(
        ["bash", "prepare_pretrain.sh"],
        cwd=clone / "data",
        env=os.environ | {"PYTHON": sys.executable} | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((clone / "data/output/split_data_pretrain/manifest.json").read_text())


def test_a_mix_of_other_folders_and_of_data_downloaded_to_the_root(clone):
    """GENERAL_TEXT_PATH, REC_DATA_PATH and MAX_ROWS as in OpenOneRec's README; without them the root's raw_data/."""
    for task in ("video_rec", "user_profile", "item_understand"):
        records(clone / f"data/output/pretrain_{task}.parquet", task, 4)
        records(clone / f"elsewhere/pretrain_{task}.parquet", f"other_{task}", 2)
    records(clone / "raw_data/general_text/pretrain/text.parquet", "root", 5)
    records(clone / "text/text.parquet", "given", 3)
    plain = prepare_pretrain(clone)
    assert sum(plain["rows_by_source"].values()) == 3 * 4 + 5 and len(plain["outputs"]) == 1
    shards = clone / "data/output/split_data_pretrain"
    assert len(list(shards.glob("*.parquet"))) == 1
    given = prepare_pretrain(clone, GENERAL_TEXT_PATH="../text", REC_DATA_PATH="../elsewhere", MAX_ROWS="4")
    assert sum(given["rows_by_source"].values()) == 3 * 2 + 3 and len(list(shards.glob("*.parquet"))) == 3


def test_a_config_without_the_folder_says_so(clone):
    config = clone / "mine.json"
    config.write_text(json.dumps({"sources": [{"name": "a", "path": "a.parquet"}]}))
    command = [sys.executable, "prepare_mix.py", "--config", str(config), "--output_dir", "o"]
    done = subprocess.run(
        [*command, "--folders", "GENERAL_TEXT_PATH=x"], cwd=clone / "data", capture_output=True, text=True
    )
    assert done.returncode == 2 and "mine.json: has no folder GENERAL_TEXT_PATH; " in done.stderr
    config.write_text(json.dumps({"sources": [{"name": "a", "path": "${RAW}/a.parquet"}]}))
    done = subprocess.run(command, cwd=clone / "data", capture_output=True, text=True)
    assert done.returncode == 2 and "mine.json: names the folder ${RAW}; " in done.stderr


@pytest.mark.parametrize("script", ["data/onerec_data/run.sh", "data/prepare_distillation.sh", "data/download.sh"])
def test_raw_data_at_the_root_is_found_and_that_of_data_goes_before_it(clone, script):
    place = clone / "data/onerec_data" if "onerec_data" in script else clone / "data"

    def folders() -> set[Path]:
        """The folders raw_data that the script's Python is given."""
        calls = Calls(clone.parent)
        done = calls.run(["bash", str(clone / script)], clone)
        assert done.returncode == 0, done.stderr
        _, argv, environment = json.loads(calls.file.read_text().splitlines()[0])
        words = [word for word in [*argv, environment.get("OUTPUT_DIR", "")] if "raw_data" in word]
        return {Path(os.path.normpath(place / word[: word.rindex("raw_data") + 8])) for word in words}

    assert folders() == {clone / "raw_data"}
    (clone / "data/raw_data").mkdir()
    assert folders() == {clone / "data/raw_data"}


@pytest.mark.parametrize(
    "command",
    [
        "cd data && bash download.sh",
        "cd data/onerec_data && bash run.sh",
        "cd data && bash prepare_pretrain.sh",
        "cd data && bash prepare_sft.sh",
        "cd data && bash prepare_distillation.sh",
        "cd data && bash prepare_rl.sh",
        "cd pretrain && bash scripts/expand_qwen3_vocab.sh",
        "cd pretrain && bash run_pretrain_stg1_local.sh",
        "cd pretrain && bash run_pretrain_stg2_local.sh",
        "cd pretrain && bash examples/pretrain_stg1.sh",
        "cd pretrain && bash examples/pretrain_stg2.sh",
        "cd pretrain && bash examples/posttrain_sft.sh",
        "cd pretrain && bash scripts/convert_checkpoint_to_hf.sh base home 50",
        "cd pretrain && bash scripts/test_hf_model.sh model",
        "cd verl_distillation && BASE_MODEL=s TEACHER_MODEL=t bash recipe/onpolicy_distill/run_qwen3_distill.sh",
        "cd verl_rl && bash recipe/onerec/run_grpo.sh",
        "cd benchmarks && bash eval_script.sh model name false",
    ],
)
def test_the_commands_of_the_design_run_from_their_folders(command, tmp_path):
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env=os.environ | {"PYTHON": "echo", "BENCHMARK_BASE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and ".py" in done.stdout, done.stderr


def test_enable_thinking_alone_is_true():
    from benchmarks.evaluate import parse_args

    needed = ["--model_path", "m", "--result_name", "r", "--data_dir", "d", "--output_dir", "o"]
    assert parse_args([*needed, "--enable_thinking"]).enable_thinking == "true"
    assert parse_args([*needed, "--enable_thinking", "false"]).enable_thinking == "false"
