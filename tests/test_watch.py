"""What a person sees of a stage: a line with a bar on a terminal, begin and end elsewhere; its output is in its log."""

from __future__ import annotations

import importlib.util
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from onerec.keeper import stop_status
from tests.clusters import wait_until

ROOT = Path(__file__).resolve().parent.parent
WATCH = ROOT / "scripts" / "watch.py"
spec = importlib.util.spec_from_file_location("watch", WATCH)
watch = importlib.util.module_from_spec(spec)
sys.modules["watch"] = watch
spec.loader.exec_module(watch)


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / ".done").mkdir()
    return tmp_path


def command(run_dir, script, expected="", name="06_train"):
    return [sys.executable, "-I", str(WATCH), name, str(run_dir), "100", expected, "bash", "-c", script]


def said(*lines, seconds=1.0):
    """A stage that has printed these lines, one every so many seconds from 0 on."""
    found = watch.Said()
    for i, line in enumerate(lines):
        found.read(line, i * seconds)
    return found


def test_elsewhere_than_on_a_terminal_a_stage_is_two_lines_and_its_output_in_its_log(run_dir):
    done = subprocess.run(command(run_dir, "echo out; echo err >&2"), capture_output=True, text=True, timeout=600)
    begun, ended = done.stdout.splitlines()
    assert begun == "== 06_train" and ended.startswith("== 06_train: ") and ended.endswith(" s in all")
    assert (run_dir / "logs/06_train.log").read_text() == "out\nerr\n" and not done.stderr and done.returncode == 0


def test_a_failed_stage_shows_the_last_lines_of_its_log_and_gives_its_status(run_dir):
    done = subprocess.run(command(run_dir, "seq 100; exit 5"), capture_output=True, text=True, timeout=600)
    assert done.returncode == 5
    assert done.stdout.splitlines() == ["== 06_train", *map(str, range(101 - watch.TAIL, 101))]


def test_what_a_stage_leaves_behind_does_not_hold_it(run_dir):
    done = subprocess.run(command(run_dir, "sleep 3600 & echo $!"), capture_output=True, text=True, timeout=6000)
    assert done.returncode == 0
    os.kill(int((run_dir / "logs/06_train.log").read_text()), signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_for_the_stage_whose_last_words_are_written_down(run_dir, number):
    code = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: print('saved') or sys.exit(75)); "
    code += "print('up', flush=True); signal.pause()"
    log = run_dir / "logs/06_train.log"
    stage = command(run_dir, f'exec {sys.executable} -c "{code}"')
    keeper = [sys.executable, "-I", str(ROOT / "onerec/keeper.py"), "600", *stage]
    with subprocess.Popen(keeper, stdin=-1, stdout=-1, stderr=-1, text=True) as process:
        assert wait_until(lambda: log.exists() and "up" in log.read_text())
        process.send_signal(number)
        out, error = process.communicate(timeout=600)
    assert process.returncode == stop_status(signal.SIGTERM) and log.read_text() == "up\nsaved\n"
    assert out == "== 06_train\n" and not error


def on_a_terminal(arguments, columns="100", look=lambda written: None):
    """What a command writes to a terminal of so many columns, as its lines with every state they had.

    ``look`` is called with what it has written so far.
    """
    parent, child = pty.openpty()
    environment = {**os.environ, "COLUMNS": columns, "TERM": "xterm"}
    process = subprocess.Popen(arguments, stdout=child, stderr=child, stdin=child, env=environment)
    os.close(child)
    written = b""
    try:
        while chunk := os.read(parent, 4096):
            written += chunk
            look(written.decode("utf-8", "replace"))
    except OSError:  # the other end is closed
        pass
    os.close(parent)
    assert process.wait(600) == 0
    return [line.split("\r\x1b[K") for line in written.decode().split("\r\n")[:-1]]


def test_a_terminal_shows_one_line_with_a_bar_and_the_last_loss(run_dir):
    (run_dir / ".done/05_before").write_text("10\n")
    line = "12:00:01 train: step {}/20  loss 3.{:02d}  text 3.0000  grad 1.00  lr 1e-3  900 tok/s  0:0{} left"
    # Each line waits until the one before has been shown.
    script = "; ".join(
        f"echo '{line.format(step, step, 4 - step // 5)}'; until [ -e {run_dir}/shown{step} ]; do sleep 0.02; done"
        for step in (5, 10, 15, 20)
    )

    def look(written):
        for step in (5, 10, 15, 20):
            if f"loss 3.{step:02d}" in written:
                (run_dir / f"shown{step}").touch()

    (states,) = on_a_terminal(command(run_dir, script, "05_before:5\n06_train:20\n07_next:600"), look=look)
    assert any("[####............]" in state and "loss 3.05" in state for state in states)
    # Twice as slow as measured here, for a stage of 5 of 625 seconds.
    assert any("about 11 min left in all" in state for state in states)
    assert states[-1].startswith("06_train          [################]") and states[-1].endswith("loss 3.20")
    (narrow,) = on_a_terminal(command(run_dir, script), "40")
    assert max(map(len, narrow)) <= 39


def test_steps_and_tasks_say_how_far_a_stage_is():
    train = said("12:00:00 train: step 20/80  loss 2.5140  itemic 3.1  grad 1.31  lr 1e-4  4,077 tok/s  1:05 left")
    assert train.share == 0.25 and train.metric == "loss 2.5140" and train.left(5) == 60 and train.left(100) == 0
    verl = said(
        "Training Progress:   0%|          | 0/4 [00:00<?, ?it/s]",
        "\x1b[36m(Runner pid=3)\x1b[0m step:1 - actor/distillation/loss_max:0.8 - actor/distillation/loss:0.1685 - x:1",
        "Training Progress:  50%|█████     | 2/4 [00:02<00:02,  1.05s/it]",
    )
    assert verl.share == 0.5 and verl.metric == "loss 0.1685" and verl.left(2) == 2
    grpo = said("(TaskRunnerV1 pid=3) step:7 - onerec/ad/reward:0.2 - onerec/all/reward:np.float64(0.0625) - y:2")
    assert grpo.metric == "reward 0.0625" and grpo.share is None and grpo.left(9) is None
    evaluation = said(
        "  tasks to run = video, ad, product, general",
        "video: 400/1,000 samples, 90 samples/s, 7 s left",
        "video           pass@1 0.0000  recall@10 0.0465  ndcg@10 0.0347  (20 samples, 0.3 s)",
        "general         exact_match 0.1000  bits_per_byte 1.5220  (20 samples, 0.4 s)",
    )
    assert evaluation.share == 0.5 and evaluation.metric == "general exact_match 0.1000" and evaluation.left(3) == 3
    baseline = said("itemknn        video        recall@10 0.2566  ndcg@10 0.2289  (20 samples, 0.3 s)")
    assert baseline.metric == "itemknn video recall@10 0.2566" and baseline.share is None


def test_the_time_left_is_that_of_the_profile_times_how_slow_this_machine_is():
    plan = watch.Plan({"01_a": 10, "02_b": 20, "03_c": 70}, {"01_a": 30})
    # (30 + 5) / (10 + 5): the finished stage, and a twentieth of the whole as measured.
    assert plan.expected("03_c") == pytest.approx(70 * 35 / 15)
    stage, run = plan.left("02_b", watch.Said(), 10, 10)
    assert stage == pytest.approx(20 * 35 / 15 - 10) and run == pytest.approx(stage + 70 * 35 / 15)
    # What the stage itself says goes before.
    trained = said("train: step 1/2  loss 1.0  grad 1.00  lr 1e-4  77 tok/s  0:05 left")
    assert plan.left("02_b", trained, 10, 0) == (5, pytest.approx(5 + 70 * 35 / 15))


@pytest.mark.parametrize(
    ("measured", "done", "passed"),
    [
        ({}, {}, 1),  # a profile that nobody measured
        ({"01_a": 10, "02_b": 20}, {}, 1),  # nothing has finished here, so how fast this machine is nobody knows
        ({"01_a": 10, "02_b": 20}, {"01_a": 10}, 50),  # it takes longer than expected
        ({"01_a": 10, "03_c": 20}, {"01_a": 10}, 1),  # a stage that the profile did not have
    ],
)
def test_no_time_is_shown_where_nobody_knows_it(measured, done, passed):
    assert watch.Plan(measured, done).left("02_b", watch.Said(), passed, passed)[1] is None


def test_profiles_name_stages_that_the_quickstart_has():
    quickstart = (ROOT / "scripts/quickstart.sh").read_text()
    files = list((ROOT / "scripts/profiles").glob("*/seconds"))
    assert files
    for path in files:
        plan = watch.Plan.of(path.read_text(), path.parent / "none")
        assert all(seconds >= 0 for seconds in plan.measured.values())
        for name in plan.measured:
            number, _, what = name.partition("_")
            steps = [f"evaluate {number} "] if what == "evaluate" else [f"stage {name} ", f"beside {name} "]
            assert any(step in quickstart for step in steps), name
