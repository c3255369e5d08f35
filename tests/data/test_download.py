"""The download against a hub that this test serves: whole, stopped and resumed, absent, offline."""

import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHA = "a" * 40
FILES = {"README.md": b"# data\n", "data/part.parquet": bytes(range(256)) * 50_000}


class Hub(http.server.BaseHTTPRequestHandler):
    """The few routes of the hub that a snapshot download asks for; one data set, ``owner/name``."""

    cut_after = -1  # bytes of the large file after which the connection is closed
    goes_away = False  # whether it answers nothing more after the cut
    down = False
    served: ClassVar[list] = []

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        if Hub.down:
            self.close_connection = True
            return self.connection.close()
        path = self.path.split("?")[0]
        if path.startswith("/api/datasets/owner/name/revision/") or path == "/api/datasets/owner/name":
            siblings = [{"rfilename": name} for name in FILES]
            value = {
                "id": "owner/name",
                "sha": SHA,
                "siblings": siblings,
                "private": False,
                "tags": [],
                "downloads": 0,
            }
            return self.reply(json.dumps(value).encode(), body, kind="application/json")
        if path.startswith("/api/datasets/owner/name/tree/"):
            tree = [{"type": "file", "path": n, "size": len(d), "oid": str(len(d))} for n, d in FILES.items()]
            return self.reply(json.dumps(tree).encode(), body, kind="application/json")
        for name, data in FILES.items():
            if path == f"/datasets/owner/name/resolve/{SHA}/{name}":
                return self.file(name, data, body)
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def file(self, name, data, body):
        start = 0
        asked = self.headers.get("Range")
        if asked and body:
            start = int(asked.removeprefix("bytes=").split("-")[0])
            asked_end = asked.removeprefix("bytes=").split("-")[1]
            data = data[: int(asked_end) + 1] if asked_end else data
        self.send_response(206 if asked and body else 200)
        self.send_header("ETag", f'"{len(FILES[name])}-etag"')
        self.send_header("X-Repo-Commit", SHA)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if asked and body:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(FILES[name])}")
        self.end_headers()
        if body:
            Hub.served.append((name, start))
            if 0 <= Hub.cut_after < len(data) - start:
                self.wfile.write(data[start : start + Hub.cut_after])
                self.wfile.flush()
                Hub.down = Hub.goes_away
                self.connection.close()
            else:
                self.wfile.write(data[start:])

    def reply(self, data, body, kind):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Hub.cut_after, Hub.goes_away, Hub.down, Hub.served = -1, False, False, []
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def run(*more, **environment):
        env = {
            **os.environ,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_ETAG_TIMEOUT": "120",
            "HF_HUB_DOWNLOAD_TIMEOUT": "120",
            **environment,
        }
        command = [
            sys.executable,
            "data/download.py",
            "--output_dir",
            str(tmp_path / "raw"),
            "--workers",
            "1",
        ]
        return subprocess.run([*command, *more], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)

    yield run, tmp_path / "raw"
    server.shutdown()


def test_a_data_set_comes_whole_and_is_not_fetched_again(hub):
    run, raw = hub
    done = run("--datasets", "owner/name")
    assert done.returncode == 0, done.stderr
    assert {name: (raw / "name" / name).read_bytes() for name in FILES} == FILES
    assert "owner/name: 2 files" in done.stdout
    served = list(Hub.served)
    assert run("--datasets", "owner/name").returncode == 0
    assert Hub.served == served


def test_patterns_choose_files(hub):
    run, raw = hub
    assert run("--datasets", "owner/name", "--include", "*.md").returncode == 0
    assert (raw / "name" / "README.md").exists() and not (raw / "name" / "data").exists()


def test_a_cut_connection_goes_on_where_it_was(hub):
    run, raw = hub
    Hub.cut_after = 11_000_000  # the client writes in chunks of 10 MiB
    done = run("--datasets", "owner/name")
    assert done.returncode == 0, done.stderr
    assert (raw / "name" / "data" / "part.parquet").read_bytes() == FILES["data/part.parquet"]
    starts = [start for name, start in Hub.served if name == "data/part.parquet"]
    assert starts[0] == 0 and starts[1] >= 10 << 20, "the rest was asked for, not the whole"


def test_a_hub_that_goes_away_is_one_line_and_the_next_run_fetches_what_is_missing(hub):
    run, raw = hub
    Hub.cut_after, Hub.goes_away = 11_000_000, True
    stopped = run("--datasets", "owner/name")
    assert stopped.returncode == 2
    assert stopped.stderr.strip().splitlines()[-1].startswith("error: owner/name: cannot be downloaded (")
    assert (raw / "name" / "README.md").exists() and not (raw / "name" / "data" / "part.parquet").exists()
    Hub.cut_after, Hub.down, Hub.served = -1, False, []
    assert run("--datasets", "owner/name").returncode == 0
    assert (raw / "name" / "data" / "part.parquet").read_bytes() == FILES["data/part.parquet"]
    assert {name for name, _ in Hub.served} == {"data/part.parquet"}


def test_what_is_not_there_is_one_line(hub):
    run, _ = hub
    done = run("--datasets", "owner/other")
    assert done.returncode == 2 and done.stderr.startswith("error: owner/other: is not at http://127.0.0.1")
    done = run("--datasets", "none")
    assert done.returncode == 2 and "error: --datasets: none is not known; recif, pretrain, sft" in done.stderr


def test_offline_is_one_line(hub):
    run, raw = hub
    done = run("--datasets", "owner/name", HF_HUB_OFFLINE="1")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: owner/name: cannot be downloaded (") and "HF_ENDPOINT" in done.stderr
    assert not (raw / "name" / "README.md").exists()
