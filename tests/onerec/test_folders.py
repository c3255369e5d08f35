"""Output folders: only ours are replaced, whole after any kill, one run at a time, dead runs' leavings go."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from onerec.errors import InputError
from onerec.folders import LOCK, atomic_path, clear, locked, made_by, replace_folder, together
from onerec.run import Manifest, write_text

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def make(folder: Path, *names: str, stage: str = "stage") -> None:
    """A folder as ``stage`` makes it, in the place of one that it made before."""
    with atomic_path(folder, made_by(folder, stage)) as new:
        new.mkdir()
        for name in names:
            (new / name).write_text(name)
        Manifest(stage).write(new, whole_folder=True)


def run_killed(code: str, *arguments: object, after: str = "") -> str:
    """What a process printed that killed itself right before (or ``after``) a call that ``code`` wraps."""
    script = "import os, signal, sys\nfrom pathlib import Path\n" + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# What a failed write leaves.


def test_a_failed_write_leaves_no_folder_that_was_made_for_it(tmp_path):
    (tmp_path / "there").mkdir()
    for path in (tmp_path / "a/b/out", tmp_path / "there/c/out"):
        with pytest.raises(RuntimeError), atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["there"] and not list((tmp_path / "there").iterdir())


def test_files_that_appear_together_leave_no_folder_where_one_of_them_fails(tmp_path):
    with pytest.raises(RuntimeError), together():
        with atomic_path(tmp_path / "a/b/one") as temporary:
            temporary.write_text("whole")
        with atomic_path(tmp_path / "a/two") as temporary:
            raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_folder_into_which_another_has_written_stays(tmp_path):
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a/one"):
        (tmp_path / "a/other").touch()
        raise RuntimeError
    assert files(tmp_path) == ["a/other"]


# Whose a folder is.


def test_a_folder_of_the_same_stage_is_replaced_and_nothing_of_the_old_one_stays(tmp_path):
    make(tmp_path / "out", "old")
    make(tmp_path / "out", "new")
    assert files(tmp_path) == ["out/manifest.json", "out/new"]


@pytest.mark.parametrize("spelling", ["{0}/out", "{0}/x/../out", "{0}/link", "{0}/out/.", "out", "./x/../out"])
def test_a_foreign_folder_is_refused_by_every_spelling(tmp_path, monkeypatch, spelling):
    (tmp_path / "out").mkdir()
    (tmp_path / "x").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"holds what this command did not make \(thesis.txt\); give a new"):
        make(Path(spelling.format(tmp_path)), "new")
    assert files(tmp_path) == ["link/thesis.txt", "out/thesis.txt"] or files(tmp_path) == ["out/thesis.txt"]


def test_another_stages_folder_and_a_file_put_beside_ours_are_foreign(tmp_path):
    make(tmp_path / "other", "a", stage="other")
    make(tmp_path / "ours", "a")
    (tmp_path / "ours" / "notes").mkdir()
    for name in ("other", "ours"):
        with pytest.raises(InputError, match="holds what this command did not make"):
            make(tmp_path / name, "new")
    assert (tmp_path / "other" / "a").exists() and (tmp_path / "ours" / "notes").exists()


def test_a_folder_of_an_older_version_whose_manifest_lists_no_files_is_ours(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "part").write_text("old")
    (tmp_path / "out" / "manifest.json").write_text(json.dumps({"stage": "stage", "outputs": {}}))
    make(tmp_path / "out", "new")
    assert files(tmp_path / "out") == ["manifest.json", "new"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"stage": 3}', '{"stage": "stage", "files": 3}', "\xff"])
def test_a_manifest_that_says_nothing_makes_nothing_ours(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text, encoding="latin-1")
    assert not made_by(tmp_path, "stage")


@pytest.mark.parametrize("what", ["working folder", "parent of it", "home folder", "mount point"])
def test_folders_that_nothing_may_replace(tmp_path, monkeypatch, what):
    make(tmp_path / "a", "old")
    (tmp_path / "a" / "b").mkdir()
    if what == "home folder":
        monkeypatch.setenv("HOME", str(tmp_path / "a"))
    elif what == "mount point":
        monkeypatch.setattr(os.path, "ismount", lambda path: True)
    else:
        monkeypatch.chdir(tmp_path / ("a" if what == "working folder" else "a/b"))
    with (
        pytest.raises(InputError, match=r"is your working or home folder, or holds it|is a mount point"),
        atomic_path(tmp_path / "a", ours=True),
    ):
        raise AssertionError("nothing is begun")
    assert (tmp_path / "a" / "old").exists()


def test_a_linked_output_is_written_where_the_link_leads(tmp_path):
    (tmp_path / "disk").mkdir()
    for name, target in (("there", "disk/real"), ("later", "disk/none")):
        (tmp_path / name).symlink_to(tmp_path / target)
    (tmp_path / "disk/real").mkdir()
    for name in ("there", "later"):
        make(tmp_path / name, "new")
        make(tmp_path / name, "newer")
        assert (tmp_path / name).is_symlink() and (tmp_path / name / "newer").exists()


# Kills.

REPLACE = """
from onerec import folders
def killed(name):
    before = getattr(folders.os, name)
    def call(*arguments, **more):
        calls.append(name)
        if len(calls) == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return before(*arguments, **more)
    setattr(folders.os, name, call)
if sys.argv[3] == "no exchange":
    folders.ctypes.CDLL = lambda name: None
calls = []
with folders.atomic_path(sys.argv[1], ours=True) as new:
    new.mkdir()
    for i in range(4):
        (new / f"new{i}").touch()
    for name in ("rename", "replace", "unlink", "rmdir"):
        killed(name)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("exchange", ["exchange", "no exchange"])
@pytest.mark.parametrize("call", range(1, 9, 2))
def test_a_kill_while_a_folder_is_replaced_leaves_the_old_or_the_new(tmp_path, exchange, call):
    out = tmp_path / "out"
    out.mkdir()
    for i in range(4):
        (out / f"old{i}").touch()
    run_killed(REPLACE, out, call, exchange)
    whole = ([f"old{i}" for i in range(4)], [f"new{i}" for i in range(4)])
    assert files(out) in whole or (exchange == "no exchange" and not out.exists())
    clear(tmp_path)
    assert files(out) in whole and os.listdir(tmp_path) == ["out"]


TOGETHER = """
from onerec import folders
from onerec.run import write_text
before, calls = os.replace, []
def replace(*paths):
    calls.append(paths)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    before(*paths)
os.replace = replace
with folders.together():
    for name in ("a/1", "a/2", "b/1"):
        write_text(Path(sys.argv[1]) / name, "new")
    if sys.argv[2] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("call", range(4))
def test_a_kill_while_files_are_put_in_place_together_leaves_all_or_none(tmp_path, call):
    for name in ("a/1", "a/2", "b/1"):
        write_text(tmp_path / name, "old")
    run_killed(TOGETHER, tmp_path, call)
    clear(tmp_path / "b")
    clear(tmp_path / "a")
    texts = {(tmp_path / name).read_text() for name in files(tmp_path)}
    assert files(tmp_path) == ["a/1", "a/2", "b/1"] and texts == {"new" if call else "old"}


def test_an_error_among_files_that_belong_together_leaves_the_old_ones(tmp_path):
    write_text(tmp_path / "a", "old")
    with pytest.raises(ValueError), together():
        write_text(tmp_path / "a", "new")
        write_text(tmp_path / "b", "new")
        raise ValueError
    assert files(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"
    with together():
        write_text(tmp_path / "a", "first")
        write_text(tmp_path / "a", "second")
        assert (tmp_path / "a").read_text() == "old"
    assert (tmp_path / "a").read_text() == "second"


LEFT = """
from onerec.folders import atomic_path
with atomic_path(Path(sys.argv[1]) / "model") as a, atomic_path(Path(sys.argv[1]) / "file") as b:
    a.mkdir()
    (a / "weights").touch()
    b.touch()
    print("ready", flush=True)
    sys.stdin.read() if len(sys.argv) > 2 else os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_run_left_goes_when_the_folder_is_next_written_and_a_living_ones_stays(tmp_path):
    run_killed(LEFT, tmp_path)
    assert len(os.listdir(tmp_path)) == 2
    script = "import os, signal, sys\nfrom pathlib import Path\n" + LEFT
    command = [sys.executable, "-c", script, str(tmp_path), "live"]
    with subprocess.Popen(command, env=ENVIRONMENT, stdin=-1, stdout=-1, text=True) as living:
        assert living.stdout.readline() == "ready\n"
        held = set(os.listdir(tmp_path))
        assert len(held) == 2, "it has cleared what the dead one left, and has its own"
        (tmp_path / ".a.tmp-00000000-1-1-1").touch()  # another machine's
        (tmp_path / ".a.tmp").touch()  # nobody's that we know
        write_text(tmp_path / "x", "x")
        clear(tmp_path)
        assert set(os.listdir(tmp_path)) == held | {"x", ".a.tmp-00000000-1-1-1", ".a.tmp"}
        living.kill()
        living.wait()
    clear(tmp_path)
    assert set(os.listdir(tmp_path)) == {"x", ".a.tmp-00000000-1-1-1", ".a.tmp"}


def test_a_process_that_has_a_dead_ones_number_does_not_keep_its_files(tmp_path):
    with atomic_path(tmp_path / "x") as temporary:
        temporary.touch()
        name, _, rest = temporary.name.partition(f"-{os.getpid()}-")
        other = tmp_path / f"{name}-{os.getpid()}-1-{rest.rpartition('-')[2]}"
        other.touch()
        clear(tmp_path)
        assert temporary.exists() and not other.exists()


# One run a folder.

HOLD = """
from onerec.folders import locked
with locked(sys.argv[1]):
    print("ready", flush=True)
    sys.stdin.read()
"""


def hold(folder: Path) -> subprocess.Popen:
    script = "import sys\n" + HOLD
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], env=ENVIRONMENT, stdin=-1, stdout=-1, text=True
    )
    assert holder.stdout.readline() == "ready\n"
    return holder


def test_a_second_run_is_refused_and_the_lock_of_a_killed_one_is_free_at_once(tmp_path):
    out = tmp_path / "new" / "out"
    with hold(out) as holder:
        write_text(out / "x", "read by whoever wants to")
        for spelling in (out, tmp_path / "new/../new/out"):
            with pytest.raises(InputError, match="another run is at work in it; wait"), locked(spelling):
                raise AssertionError
        with locked(out, take=False):  # another process of the same run
            pass
        holder.kill()
        holder.wait()
    with locked(out):
        assert (out / LOCK).exists()
    assert files(tmp_path) == ["new/out/x"]


def test_a_run_that_writes_nothing_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError), locked(tmp_path / "a" / "b"):
        raise ValueError
    assert not os.listdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file; the output folder must"), locked(tmp_path / "file"):
        raise AssertionError


def test_many_runs_in_turn_are_never_two_at_once(tmp_path):
    script = """
import os, sys
from onerec.errors import InputError
from onerec.folders import locked
done = 0
while done < 10:
    try:
        with locked(sys.argv[1]):
            os.mkdir(sys.argv[1] + "/alone")
            os.rmdir(sys.argv[1] + "/alone")
        done += 1
    except InputError:
        pass
"""
    runs = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "o")], env=ENVIRONMENT) for _ in range(3)]
    assert [run.wait(600) for run in runs] == [0, 0, 0]


def test_replacing_a_folder_by_name(tmp_path):
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert files(tmp_path) == ["old/new"]


# Disks.


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device"), "x: no space left on the device; free some"),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 128 vs 22"), "x: no space left"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0"), "x: no space left"),
    ],
)
def test_a_full_disk_is_named_by_the_output_whoever_says_it(tmp_path, error, line):
    with pytest.raises(InputError, match=line), atomic_path(tmp_path / "x"):
        raise error
    assert not os.listdir(tmp_path)


def test_other_errors_stay_and_a_nameless_one_gets_the_outputs_name(tmp_path):
    with pytest.raises(RuntimeError, match="PytorchStreamReader"), atomic_path(tmp_path / "x"):
        raise RuntimeError("PytorchStreamReader failed reading zip archive: inline_container")
    with pytest.raises(InputError, match=r"x: Input/output error; check"), atomic_path(tmp_path / "x"):
        raise OSError(5, "Input/output error")
    with pytest.raises(FileNotFoundError, match="input"), atomic_path(tmp_path / "x"):
        raise FileNotFoundError(2, "No such file or directory", "input")
