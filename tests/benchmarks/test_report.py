"""The report: what it says, and what a browser shows of it at desktop and phone width, light and dark."""

import json
import math
import re
import shutil
import subprocess

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import report
from benchmarks.reporting.rows import Row, title_of
from benchmarks.results import Scores, load_metrics, load_predictions
from onerec.errors import InputError
from onerec.parquet import write_table
from onerec.records import message
from onerec.run import Manifest, write_text
from onerec.sid import SidSpec
from tests.arguments import as_flags

SPEC = SidSpec((8, 8, 8))
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in BROWSERS if (path := shutil.which(name))), None)
# A page that holds the report in a frame of some width, and writes what can be seen there into its own text.
PROBE = """<iframe id="f" src="report.html" style="width: {width}px; height: 900px; border: 0"></iframe>
<pre id="out"></pre><script>
f.onload = () => {{ const d = f.contentDocument, seen = e => e.getBoundingClientRect().height > 0;
const style = f.contentWindow.getComputedStyle(d.body);
out.textContent = JSON.stringify({{ scroll: d.documentElement.scrollWidth, client: d.documentElement.clientWidth,
headings: [...d.querySelectorAll("h2")].filter(seen).map(e => e.textContent),
rows: [...d.querySelectorAll("#results tbody tr")].filter(seen).length,
charts: [...d.querySelectorAll("svg")].filter(seen).length,
pictures: [...d.querySelectorAll("#pictures .bars")].map(e => e.getBoundingClientRect()).map(r => [r.top, r.width]),
narrowest: Math.min(...[...d.querySelectorAll(".bars .track")].map(e => e.getBoundingClientRect().width)),
wide: [...d.querySelectorAll(".name, .value, .said li")].filter(e => e.scrollWidth > e.clientWidth + 1).length,
lines: d.querySelectorAll("#pictures .track b").length, said: d.querySelectorAll(".said li").length,
hits: [...d.querySelectorAll("li.hit")].filter(seen).map(e => e.textContent),
columns: f.contentWindow.getComputedStyle(d.querySelector(".grid2")).gridTemplateColumns.split(" ").length,
back: style.backgroundColor, ink: style.color,
links: [...d.querySelectorAll("[src], link, script")].length }}); }}; </script>"""


def result(folder, name, recall, em=None, **more):
    """A result of six users whose recall@10 is ``recall`` each (None: the task was not measured)."""
    path = folder / f"results_{name}"
    path.mkdir(parents=True)
    tasks, tests = {}, {"video": "same"}
    if em is not None:
        tasks["general"] = {"exact_match": em, "bits_per_byte": 1.5}
    if recall is not None:
        tasks["video"] = {"recall@10": float(np.mean(recall)), "ndcg@10": 0.1, "pass@1": 0.1, "samples": 6}
        users = [str(i) for i in range(6)]
        values = np.array(recall, dtype=float)
        Scores(users, users, {"recall@10": values, "ndcg@10": values, "pass@1": values}).save(path, "video")
    value = {"name": name, "config": {}, "tasks": tasks, "data": {"tests": tests}} | more
    (path / "metrics.json").write_text(json.dumps(value))
    return path


@pytest.fixture
def world(tmp_path):
    """Three stages, a baseline, a training log, benchmark data with titles and predictions of the last stage."""
    base = result(tmp_path, "base", None, 0.8)
    stage2 = result(tmp_path, "stage2", [0, 0, 0, 0.1, 0, 0.1], 0.6)
    line = {"samples": 6, "recall@1": 0.1}
    beams = {"video": [line | {"width": w, "recall@10": w / 100, "recall@32": w / 50} for w in (4, 16)]}
    sft = result(
        tmp_path,
        "sft",
        [0.5, 0.4, 0.3, 0.2, 0.3, 0.4],
        0.5,
        beams=beams,
        intervals={"video": {"recall@10": [0.25, 0.45]}},
        unjudged={"rec_reason": {"no judge set": 2}},
    )
    popularity = result(tmp_path, "popularity", [0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    log = tmp_path / "train_log.jsonl"
    log.write_text(
        "".join(json.dumps({"step": i, "loss": 3 - i / 10, "itemic_loss": None}) + "\n" for i in range(1, 5))
    )
    data = tmp_path / "data"
    rows, lines = [], []
    for i in range(6):
        metadata = {
            "uid": i,
            "answer": SPEC.text([0, 0, i]),
            "answer_pid": [i],
            "history_pid": [i + 1, i + 2],
        }
        rows.append(
            {
                "uuid": str(i),
                "messages": json.dumps([message("user", "问")]),
                "metadata": json.dumps(metadata),
            }
        )
        sids = [i, 7] if i % 2 else [6, 7]
        items = [*range(100, 109), i] if i % 2 else sids  # a hit in the last of the ten places is a hit that is shown
        line = {"uuid": str(i), "uid": i, "answer": [i], "items": items, "sids": [[0, 0, p] for p in sids]}
        lines.append(line | {"thought": "想" * 30})
    write_table(data / "video" / "video_test.parquet", pa.Table.from_pylist(rows))
    codes = pa.array([[0, 0, p] for p in range(8)], pa.list_(pa.int32()))
    write_table(data / "video_ad_pid2sid.parquet", pa.table({"pid": list(range(8)), "codes": codes}))
    SPEC.save(data)
    titles = tmp_path / "titles.parquet"
    names = [f"第{p}部影片，一个很长很长的标题" + "长" * 50 for p in range(8)]
    write_table(titles, pa.table({"pid": list(range(8)), "dense_caption": names}))
    (sft / "predictions_video.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "argv": as_flags(
            results=[base, stage2, sft],
            labels=["base <LLM>", "stage 2", "SFT"],
            baselines=popularity,
            train_logs=f"SFT={log}",
            data_dir=data,
            titles=titles,
            bootstrap=200,
            output_dir=tmp_path / "out",
        ),
        "out": tmp_path / "out",
    }


def test_the_report_says_gains_losses_ratios_and_differences(world, capsys):
    report.main(world["argv"])
    out = capsys.readouterr().out
    assert "SFT recommends better than counting: yes." in out and "SFT, rec_reason: not judged: 2 (no judge" in out
    assert max(map(len, out.splitlines()[:-1])) <= 100  # but for the last, which names the folder
    markdown = (world["out"] / "report.md").read_text()
    assert "video: recall@10 0.3500, 3.50 times the best baseline (popularity, 0.1000)" in markdown
    assert "general EM 0.6000 → 0.5000 (-0.1000)" in markdown
    assert "| SFT | **0.3500** |" in markdown and "| base <LLM> | – |" in markdown
    value = json.loads((world["out"] / "report.json").read_text())
    assert value["rows"][2]["tasks"]["video"]["recall@10"] == pytest.approx(0.35)
    against = next(c for c in value["paired"] if c["before"] == "popularity")["result"]
    assert against["difference"] == pytest.approx(0.25) and (against["better"], against["worse"]) == (6, 0)
    assert 0.15 < against["low"] < 0.25 < against["high"] < 0.35
    assert {c["after"] for c in value["paired"]} == {"SFT"}  # stage 2 has nothing before it that was measured on items


def test_the_report_calls_items_by_the_users_word(world):
    for path in world["out"].parent.glob("results_*/metrics.json"):
        value = json.loads(path.read_text())
        value["data"]["noun"] = "track"
        path.write_text(json.dumps(value))
    report.main(world["argv"])
    files = {name: (world["out"] / f"report.{name}").read_text() for name in ("md", "html", "json")}
    assert "track: recall@10 0.3500, 3.50 times" in files["md"] and "Track Recall@10: popularity" in files["md"]
    assert "| track R@10 | track NDCG@10 |" in files["md"] and "## Errors: track" in files["md"]
    assert "video" not in files["md"] and "video" not in files["html"]
    assert json.loads(files["json"])["errors"][0]["task"] == "video", "in data a task keeps its name"
    product = [Row("a", "stage", world["out"], {"tasks": {"product": {}}, "data": {"noun": "product"}})]
    assert title_of(product, "video") == "video", "two tasks of one name would be read as one"


def test_errors_say_which_answers_are_missed_and_how_near_the_sids_came(world):
    report.main(world["argv"])
    (error,) = json.loads((world["out"] / "report.json").read_text())["errors"]
    rows = {what: (share, n) for what, share, n in error["rows"]}
    assert tuple(rows["samples without a hit"]) == (0.5, 6)
    assert tuple(rows["of them: nearest SID shares 2 of 3 codes"]) == (1.0, 3)
    assert tuple(rows["answers new to the user: found"]) == (0.5, 6)


def test_examples_show_titles_hits_and_thinking(world):
    report.main(world["argv"])
    examples = json.loads((world["out"] / "report.json").read_text())["examples"]
    assert [any(item["hit"] for item in e["predicted"]) for e in examples] == [True, True, False, False]
    assert all(e["history"][0]["title"].startswith("第") and e["thought"].startswith("想") for e in examples)


def test_users_to_look_at_are_half_of_them_with_a_hit_and_have_titles(world):
    report.main(world["argv"])
    users = json.loads((world["out"] / "report.json").read_text())["users"]
    assert (users["task"], users["hits"], users["asked"]) == ("video", 3, 6)
    assert [any(item["hit"] for item in r["predicted"]) for r in users["readings"]] == [True] * 3 + [False] * 3
    page = (world["out"] / "report.html").read_text()
    assert "Of all 6 users asked, 3 have one in the first ten." in page
    assert (
        page.index('id="pictures"') < page.index('id="users"') < page.index('id="curves"') < page.index('id="results"')
    )


def test_items_without_titles_are_no_users_to_look_at(world):
    where = world["argv"].index("--titles")
    report.main(world["argv"][:where] + world["argv"][where + 2 :])
    assert json.loads((world["out"] / "report.json").read_text())["users"] is None
    assert "users to look at" not in (world["out"] / "report.html").read_text()


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page with")
def test_a_browser_shows_the_report(world, width, dark):
    report.main(world["argv"])
    (world["out"] / "probe.html").write_text(PROBE.format(width=width))
    command = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        "--dump-dom",
        f"--user-data-dir={world['out']}/profile",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--virtual-time-budget=4000",
        f"file://{world['out']}/probe.html",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="out">(.+?)</pre>', done.stdout)
    assert found, done.stderr[-2000:]
    seen = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert seen["client"] == width or seen["client"] == width - 15  # less a scroll bar
    assert seen["scroll"] <= seen["client"], "the page scrolls sideways"
    headings = ["6 users to look at", "Training, step by step", "Every metric, stage by stage"]
    headings += ["Recall against beam width", "Errors to learn from", "All results", "What each stage gained and lost"]
    assert [text for text in seen["headings"] if text in headings] == headings, "pictures first, tables last"
    assert seen["rows"] == 4 and seen["charts"] == 3
    # The first screen: recommendation and general ability, each with its line, beside each other where there is room.
    (first, across), (second, _) = seen["pictures"]
    assert first < 330 and (second < 900) and (first == second) == (width > 600) and across > width / 3
    assert seen["lines"] == 6 and seen["said"] == 1 and seen["wide"] == 0 and seen["narrowest"] > 100
    assert seen["hits"] and all(text.startswith("第") for text in seen["hits"])
    assert (seen["columns"] == 1) == (width < 600) and seen["links"] == 0
    light = int(re.search(r"\d+", seen["back"])[0]) > 128
    assert light != dark and seen["back"] != seen["ink"]


def test_the_page_is_one_file_and_escapes_names(world):
    report.main(world["argv"])
    page = (world["out"] / "report.html").read_text()
    assert "base &lt;LLM&gt;" in page and "http" not in page and "src=" not in page


def test_report_bad_input(tmp_path):
    good = result(tmp_path, "a", [0.1] * 6)
    other = result(tmp_path, "b", [0.1] * 6, data={"tests": {"video": "another"}})
    for argv, match in (
        (["--results", str(tmp_path / "none")], "no such file"),
        (["--results", str(good), "--labels", "a", "b"], "--labels: are 2 for 1 results"),
        (["--results", str(good), "--train_logs", "x"], "x has no ="),
        (["--results", str(good), str(other)], "measured video on another version of the data"),
    ):
        with pytest.raises(InputError, match=match):
            report.main([*argv, "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


METRICS = {"name": "x", "tasks": {"video": {"recall@10": 0.1}}}


@pytest.mark.parametrize(
    "value",
    [
        5,
        None,
        [],
        {},
        {"tasks": []},
        {"name": "x", "tasks": {"video": [1]}},
        {"name": 5, "tasks": {}},
        {"name": "x", "tasks": {"video": {"recall@10": "high"}}},
        {"name": "x", "tasks": {"video": {"recall@10": [1]}}},
        {"name": "x", "tasks": {"video": {"recall@10": math.inf}}},
        {"name": "x", "tasks": {"video": {"recall@10": 10**400}}},
        METRICS | {"intervals": {"video": {"recall@10": [1]}}},
        METRICS | {"intervals": {"video": {"recall@10": [None, 1]}}},
        METRICS | {"intervals": []},
        METRICS | {"data": {"tests": {"video": 5}}},
        METRICS | {"data": 5},
        METRICS | {"beams": {"video": [{"width": "4"}]}},
        METRICS | {"beams": {"video": 3}},
    ],
)
def test_metrics_of_another_shape_are_refused(tmp_path, value):
    (tmp_path / "metrics.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match=r"metrics\.json: is not a result of evaluate\.py"):
        load_metrics(tmp_path)


def test_metrics_without_a_value_are_a_dash(tmp_path):
    (tmp_path / "metrics.json").write_text(
        json.dumps({"name": "x", "tasks": {"video": {"recall@10": None, "auc": math.nan}}})
    )
    row = Row("x", "stage", tmp_path, load_metrics(tmp_path))
    assert row.cell("video", "recall@10") is None and row.cell("video", "auc") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("5\n", "line 1 is no JSON object"),
        ('{"uuid": "a", "items": []}\n[]\n', "line 2 is no JSON object"),
        ('{"uuid": "a", "items": []}\n{"uuid"', "line 2 is not JSON"),
        ('{"uuid": "a"}\n', "has a line without items"),
        ('{"uuid": 5, "items": []}\n', "has a line without uuid"),
        ('{"uuid": "\udcff", "items": []}\n', "line 1 is not JSON"),
        ("[" * 100_000, "line 1 is not JSON"),
    ],
)
def test_predictions_of_another_shape_are_refused(tmp_path, text, said):
    (tmp_path / "predictions_video.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=f"predictions_video.jsonl: {said}; evaluate the model again"):
        load_predictions(tmp_path, "video")


def test_json_lines_end_at_line_feeds_alone(tmp_path):
    value = {"uuid": "a", "text": "\u2028\u2029\x85\x0b\x0c\x1c\r\n\ud83d"}
    write_text(tmp_path / "predictions_rec_reason.jsonl", f"{json.dumps(value, ensure_ascii=False)}\r\n\n" * 2)
    assert load_predictions(tmp_path, "rec_reason") == [value, value]


@pytest.mark.parametrize(
    "line", ["{}", '{"step": "1", "loss": 1}', '{"step": 1, "loss": NaN}', '{"step": 1, "loss": [1]}', "3"]
)
def test_a_training_log_of_another_shape_is_refused(world, tmp_path, line):
    (tmp_path / "train_log.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=r"train_log\.jsonl: "):
        report.main(world["argv"])
    assert not world["out"].exists()


def test_html_and_links_of_titles_are_text_in_markdown(world, tmp_path):
    names = ["<script>alert(1)</script> ![x](u) [y](z)", "a < b & c"] * 4
    write_table(tmp_path / "titles.parquet", pa.table({"pid": list(range(8)), "dense_caption": names}))
    report.main(world["argv"])
    examples = (world["out"] / "report.md").read_text().split("## Examples")[1]
    assert "&lt;script>" in examples and "a < b & c" in examples
    assert "<script" not in examples and "!\\[x](u) \\[y](z)" in examples


def test_a_model_that_was_asked_with_its_prior_alone_is_a_stage(tmp_path, capsys):
    note = {"prior": {"video": {"content": "ab", "weight": 2, "chosen": "given"}}}
    flags = {"results": result(tmp_path, "sft", [0.3] * 6, **note), "output_dir": tmp_path / "report"}
    report.main(as_flags(**flags, baselines=result(tmp_path, "popularity", [0.1] * 6)))
    assert "sft + prior recommends better than counting: yes." in capsys.readouterr().out


def test_a_baseline_of_the_other_protocol_is_no_best_baseline(tmp_path):
    sft = result(tmp_path, "sft", [0.3] * 6, config={"exclude_seen": "False"})
    same = result(tmp_path, "itemknn", [0.2] * 6, config={"exclude_seen": "False"})
    other = result(tmp_path, "itemknn_unseen", [0.9] * 6, config={"exclude_seen": "True"})
    report.main(as_flags(results=sft, baselines=[same, other], output_dir=tmp_path / "report"))
    value = json.loads((tmp_path / "report/report.json").read_text())
    assert [pair["before"] for pair in value["paired"]] == ["itemknn"]
    assert "1.50 times the best baseline (itemknn, 0.2000)" in value["notes"]["Against the best baseline"][0]


def test_warnings_come_first_and_last(tmp_path, capsys):
    """A model below counting by the same protocol, and what other stages noted, on the page and at the end."""
    sft = result(tmp_path, "sft", [0.1] * 6)
    counts = {name: result(tmp_path, name, [value] * 6) for name, value in (("popularity", 0.05), ("itemknn", 0.9))}
    counts["cooccurrence"] = result(tmp_path, "cooccurrence", [0.4] * 6)
    counts["unseen"] = result(tmp_path, "popularity_unseen", [0.8] * 6, config={"exclude_seen": "True"})
    Manifest("evaluate").write(sft)
    base = result(tmp_path, "base", [0.1] * 6)
    on_the_way = Manifest("evaluate")
    on_the_way.warn("video: the first model has one list for everybody", "train it")
    on_the_way.write(base)
    noted = Manifest("pretrain")
    noted.warn("the training loss did not fall", "another rate")
    noted.write(tmp_path / "stage2")
    flags = {
        "results": [base, sft],
        "manifests": [tmp_path / "stage2/manifest.json"],
        "output_dir": tmp_path / "report",
    }
    capsys.readouterr()
    report.main(as_flags(**flags, baselines=list(counts.values())))
    expected = [
        "pretrain (stage2): the training loss did not fall; another rate",
        "video: sft is below counting (recall@10 0.1000, cooccurrence has 0.4000); "
        "train longer, or take sizes that fit the data (scripts/sizes.py)",
    ]
    out, err = capsys.readouterr()
    assert err.splitlines() == [f"warning: {line}" for line in expected] and "below counting" not in out
    value = json.loads((tmp_path / "report/report.json").read_text())
    assert next(iter(value["notes"].items())) == ("Warnings", expected)
    for name in ("report.md", "report.html"):
        assert "is below counting" in (tmp_path / "report" / name).read_text()
    chosen = {"prior": {"video": {"content": "ab", "weight": 2, "chosen": "given"}}}
    for value, right in (
        (0.5, "sft + prior is not: rank with it"),
        (0.3, "sft + prior is too (recall@10 0.3000, cooc"),
    ):
        both = [sft, result(tmp_path, f"sft_prior_{value}", [value] * 6, **chosen)]
        flags = {"results": both, "labels": ["sft", "sft + prior"], "output_dir": tmp_path / "both"}
        report.main(as_flags(**flags, baselines=list(counts.values())))
        out, err = capsys.readouterr()
        assert f"cooccurrence has 0.4000); {right}" in err
        assert "sft + prior, video: weight 2 (given) of the prior" in out
    report.main(as_flags(results=[sft], baselines=[counts["popularity"]], output_dir=tmp_path / "good"))
    assert "warning" not in capsys.readouterr().err
    assert "Warnings" not in json.loads((tmp_path / "good/report.json").read_text())["notes"]
