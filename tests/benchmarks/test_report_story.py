"""The report's first screen: bars with intervals, the best baseline as a line, and what the run shows in words."""

import json

import numpy as np
import pytest

from benchmarks import report
from benchmarks.intervals import interval_of, mean_replicates, paired_mean
from benchmarks.reporting.pictures import every_metric, first_screen
from benchmarks.reporting.rows import read_rows, terminal_table
from benchmarks.reporting.story import FAILS, HOLDS, OPEN, story
from benchmarks.results import Scores
from onerec.errors import InputError
from tests.arguments import as_flags

USERS = 40


def result(folder, name, video=None, ad=None, right=None, **more):
    """A result of `USERS` users with Recall@10 of ``video`` and ``ad``, and of as many questions, ``right`` or not."""
    path = folder / f"results_{name}"
    path.mkdir(parents=True)
    tasks, intervals = {}, {}
    for task, metric, value in (
        ("video", "recall@10", video),
        ("ad", "recall@10", ad),
        ("general", "exact_match", right),
    ):
        if value is not None:
            values = np.broadcast_to(np.asarray(value, dtype=float), USERS)
            ids = [f"{task}{i}" for i in range(USERS)]
            users = ids if task == "general" else [str(i) for i in range(USERS)]
            Scores(ids, users, {metric: values}).save(path, task)
            tasks[task], intervals[task] = {metric: float(values.mean())}, {metric: [0.1, 0.9]}
    value = {"name": name, "config": {}, "tasks": tasks, "intervals": intervals} | more
    (path / "metrics.json").write_text(json.dumps(value))
    return path


def share(of):
    """1 for so large a share of the users, 0 for the others."""
    return np.arange(USERS) < of * USERS


@pytest.fixture
def chain(tmp_path):
    """The story as it is meant to be, but GRPO, which gains with one user."""
    stages = [
        result(tmp_path, "base", right=share(0.8)),
        result(tmp_path, "sft", 0.6, 0.5, share(0.3)),
        result(tmp_path, "distill", 0.55, 0.5, share(0.7)),
        result(tmp_path, "rl", 0.55 + 0.1 * share(1 / USERS), 0.5, share(0.7)),
    ]
    baselines = [result(tmp_path, "popularity", 0.2, 0.3), result(tmp_path, "itemknn", 0.5, 0.6)]
    return stages, baselines


def told(stages, baselines):
    return {claim.claim: claim for claim in story(read_rows(stages, None, baselines), [], 200)}


def test_each_step_of_the_story_is_told_with_its_verdict_and_interval(chain):
    claims = told(*chain)
    assert {claim: found.verdict for claim, found in claims.items()} == {
        "sft recommends better than counting": HOLDS,
        "sft recommends better than the best baseline": OPEN,
        "sft keeps the general ability of base": FAILS,
        "distill (distillation) wins general ability back": HOLDS,
        "distill recommends as well as sft": FAILS,
        "rl (GRPO) adds to the recommendation of distill": OPEN,
    }
    counting = str(claims["sft recommends better than counting"])
    assert "counting: yes. Mean Recall@10 over 2 tasks: popularity 0.2500, sft 0.5500; difference +0.3000" in counting
    assert counting.endswith("95 % interval +0.3000 to +0.3000, 40 users.")
    # 0.4 of the 0.5 that SFT had lost.
    assert "That is 80% of what sft had lost." in str(claims["distill (distillation) wins general ability back"])
    adds = str(claims["rl (GRPO) adds to the recommendation of distill"])
    assert "not certain" in adds and "Zero lies within: more test users or a longer training would tell." in adds
    assert "No answer of one is better" in str(claims["sft recommends better than the best baseline"])


def test_a_stage_with_its_prior_is_told_of_beside_it(tmp_path):
    prior = {"video": {"content": "ab", "weight": 2, "chosen": "given"}}
    stages = [result(tmp_path, "sft", 0.1), result(tmp_path, "sft_prior", 0.6, prior=prior)]
    claims = told(stages, [result(tmp_path, "popularity", 0.2)])
    verdicts = {claim: found.verdict for claim, found in claims.items()}
    assert verdicts == {
        "sft recommends better than counting": FAILS,
        "sft + prior recommends better than counting": HOLDS,
    }
    flags = {"results": stages, "baselines": [tmp_path / "results_popularity"], "output_dir": tmp_path / "out"}
    report.main(as_flags(**flags, bootstrap=200))
    value = json.loads((tmp_path / "out/report.json").read_text())
    against = [(pair["before"], pair["after"]) for pair in value["paired"]]
    assert against[:2] == [("popularity", "sft"), ("popularity", "sft + prior")]
    assert value["notes"]["Against the best baseline"][1] == (
        "sft + prior, video: recall@10 0.6000, 3.00 times the best baseline (popularity, 0.2000)"
    )


def test_the_last_stage_is_compared_with_the_best_baseline_of_each_task(chain, tmp_path):
    stages, baselines = chain
    report.main(as_flags(results=stages, baselines=baselines, bootstrap=200, output_dir=tmp_path / "out"))
    last = json.loads((tmp_path / "out/report.json").read_text())["story"][-1]
    assert last["verdict"] == FAILS and last["claim"] == "rl is above the best baseline of each of 2 tasks"
    assert last["numbers"] == "Above: video (itemknn 0.5000, here 0.5525). Below: ad (itemknn 0.6000, here 0.5000)."
    assert "rl is above the best baseline of each of 2 tasks: no." in (tmp_path / "out/report.md").read_text()


def test_the_first_screen_has_a_bar_a_stage_with_its_interval_and_the_best_baseline_as_a_line(chain):
    recommendation, general = first_screen(read_rows(chain[0], None, chain[1]), 200)
    rows = recommendation["bars"]["rows"]
    assert [row["label"] for row in rows] == ["base", "sft", "distill", "rl"]
    assert [row["text"] for row in rows] == ["not measured", "0.5500", "0.5250", "0.5262"]
    assert "span" not in rows[0] and rows[3]["small"] == "0.525 to 0.529"
    # Bars and line on one axis, which ends with the largest of them.
    assert recommendation["bars"]["line"] == {"text": "best baseline, itemknn: 0.5500", "place": "100.00%"}
    assert general["bars"]["line"]["text"] == "base, before it learnt items: 0.8000"
    assert (
        general["bars"]["rows"][0] | {"low": "11.11%", "span": "88.89%", "width": "88.89%"}
        == general["bars"]["rows"][0]
    )


def test_a_world_without_general_text_distillation_or_baselines_leaves_these_out(tmp_path):
    stages = [result(tmp_path, "sft", 0.4)]
    (card,) = first_screen(rows := read_rows(stages, None, []), 50)
    assert card["aside"] == "Recall@10, video" and card["bars"]["line"] is None and not story(rows, [], 50)
    assert [c["heading"] for c in every_metric(rows)] == ["video R@10"]
    report.main(as_flags(results=stages, output_dir=tmp_path / "out"))
    page = (tmp_path / "out/report.html").read_text()
    for absent in ("General ability", "What this run shows", "users to look at", "step by step", "Warnings", "Errors"):
        assert absent not in page
    assert page.index('id="pictures"') < page.index('<h2 id="metrics"') < page.index('<h2 id="table"')


def test_where_no_question_is_answered_bits_tell_of_general_ability(tmp_path):
    folders = [result(tmp_path, name, right=share(0)) for name in ("base", "sft")]
    for folder, bits in zip(folders, (80.0, 60.0), strict=True):
        value = json.loads((folder / "metrics.json").read_text())
        value["tasks"]["general"]["bits_per_byte"] = bits / 40
        (folder / "metrics.json").write_text(json.dumps(value))
        scores = Scores.load(folder, "general")
        scores.columns |= {"bits": np.full(USERS, bits), "bytes": np.full(USERS, 40.0)}
        scores.save(folder, "general")
    (claim,) = told(folders, []).values()
    assert claim.verdict == HOLDS and claim.numbers.startswith("Bits a byte of text: base 2.0000, sft 1.5000")


def test_a_mean_over_tasks_draws_the_users_of_all_together():
    users = [str(i) for i in range(30)]
    one = Scores(users, users, {"recall@10": np.arange(30) / 30})
    two = Scores([f"x{u}" for u in users], users, {"recall@10": 1 - np.arange(30) / 30})
    assert np.ptp(mean_replicates("recall@10", [one, two], 100)) < 1e-12  # what one task gains the other loses
    low, high = interval_of(mean_replicates("recall@10", [one], 100))
    assert low < 0.4833 < high
    better = Scores(users, users, {"recall@10": np.arange(30) / 30 + 0.1})
    found = paired_mean("recall@10", [(one, better), (two, two)])
    assert found.difference == pytest.approx(0.05) and found.low == pytest.approx(0.05) and found.users == 30
    assert paired_mean("recall@10", [(one, better), (one, two)]) is None, "the second task has no common samples"


def test_a_wide_table_is_printed_in_parts_that_fit(chain):
    rows = read_rows(chain[0], None, chain[1])
    whole, parts = terminal_table(rows, 200), terminal_table(rows, 40)
    assert "\n\n" not in whole and len(parts.split("\n\n")) == 2
    assert max(map(len, parts.splitlines())) <= 40
    assert set(whole.split()) - {"-" * len(whole.splitlines()[0])} <= set(parts.split())


def curve(tmp_path, *lines):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_curves_of_distillation_and_grpo_are_those_that_verl_wrote(tmp_path):
    first = curve(tmp_path, {"step": 1, "data": {"actor/distillation/loss": 0.5}}, {"step": 2, "data": {"x": 1}})
    (tmp_path / "later").mkdir()
    values = {"actor/distillation/overlap_ratio": 0.7, "onerec/all/reward": 0.1}
    values |= {f"val-aux/onerec/{task}/recall@10/mean@1": x for task, x in (("video", 0.2), ("ad", 0.4))}
    later = curve(tmp_path / "later", {"step": 2, "data": values})
    (found,) = report.read_curves([f"distill={first}", f"distill={later}"])
    assert found["name"] == "distill" and [line["step"] for line in found["lines"]] == [1, 2]
    assert found["lines"][0]["loss"] == 0.5 and found["lines"][1]["overlap"] == 0.7
    assert found["lines"][1]["reward"] == 0.1 and found["lines"][1]["validation"] == pytest.approx(0.3)
    with pytest.raises(InputError, match="has a line without metrics"):
        report.read_curves([f"rl={curve(tmp_path, {'step': 1, 'data': 5})}"])
