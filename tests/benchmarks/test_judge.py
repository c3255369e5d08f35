"""The judge against a real server process, faults included, and what its answers become."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.evaluators import text
from benchmarks.evaluators.similarity import char_rouge_l, embedding_similarity, lcs_length
from benchmarks.judge import CONFIGS, Judge, JudgeConfig, parse_json
from benchmarks.tasks import Example
from onerec.errors import InputError

SERVER = Path(__file__).with_name("judge_server.py")


class Server:
    """A running judge_server.py."""

    def __init__(self, tmp_path: Path, faults=()):
        self.log = tmp_path / "requests.jsonl"
        self.log.touch()
        environment = {**os.environ, "LOG": str(self.log), "FAULTS": json.dumps(list(faults))}
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER)], env=environment, stdout=subprocess.PIPE, text=True
        )
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}/v1"

    def requests(self) -> list[dict]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture
def start(tmp_path):
    """``start(faults…)`` gives a server; it ends with the test."""
    servers = []

    def make(*faults):
        servers.append(Server(tmp_path, faults))
        return servers[-1]

    yield make
    for server in servers:
        server.process.kill()
        server.process.wait()


def judge_of(server, tmp_path, **more):
    values = {"timeout_s": 120, "backoff_s": 0.001, "backoff_max_s": 0.002, "max_attempts": 3, **more}
    return Judge(JudgeConfig(server.url, "m", **values), tmp_path / "cache")


def score(text_: str) -> float:
    return text.parse_score(text_)


def test_an_answer_is_asked_for_once_and_then_comes_from_the_cache(start, tmp_path):
    server = start()
    config = {"price_prompt": 3, "price_completion": 15}
    first = judge_of(server, tmp_path, **config)
    assert first.ask("score=5", score).value == 5 and first.report()["calls"] == 1
    assert first.report()["usd"] == pytest.approx((100 * 3 + 10 * 15) / 1e6)
    again = judge_of(server, tmp_path, **config)
    assert again.ask("score=5", score).value == 5
    assert (again.report()["calls"], again.report()["cached"], again.report()["usd"]) == (0, 1, 0)
    assert len(server.requests()) == 1


@pytest.mark.parametrize("fault", [429, 500, 503, "drop", "html", "deep body", "list", "null"])
def test_a_busy_or_broken_endpoint_is_asked_again(start, tmp_path, fault):
    server = start(fault, fault)
    judge = judge_of(server, tmp_path)
    assert judge.ask("score=2", score).value == 2
    assert judge.report()["retries"] == 2 and not judge.report()["failures"]


def test_a_timeout_is_asked_again(start, tmp_path):
    judge = judge_of(start("timeout"), tmp_path, timeout_s=1, max_attempts=30)
    assert judge.ask("score=3", score).value == 3 and judge.report()["retries"] >= 1


def test_an_endpoint_that_drips_is_ended_by_the_clock_of_the_whole_request(start, tmp_path):
    begun = time.monotonic()
    judge = judge_of(start("drip"), tmp_path, timeout_s=1, max_attempts=30)
    assert judge.ask("score=3", score).value == 3 and judge.report()["retries"] >= 1
    assert time.monotonic() - begun < 250, "it drips for longer"


def test_half_a_surrogate_pair_is_asked_answered_and_kept(start, tmp_path):
    server = start("surrogate")
    assert judge_of(server, tmp_path).ask("cut \ud83d", score).value == 4
    again = judge_of(server, tmp_path)
    assert again.ask("cut \ud83d", score).value == 4 and again.report()["cached"] == 1


@pytest.mark.parametrize("damage", ["", "{", "[]", "5", '{"answer": 5}', '{"other": "x"}', "[" * 100_000])
def test_a_damaged_answer_in_the_cache_is_asked_for_again(start, tmp_path, damage):
    server = start()
    assert judge_of(server, tmp_path).ask("score=5", score).value == 5
    (kept,) = (tmp_path / "cache").glob("*/*.json")
    whole = kept.read_bytes()
    kept.write_text(damage)
    assert judge_of(server, tmp_path).ask("score=5", score).value == 5
    assert kept.read_bytes() == whole and len(server.requests()) == 2


def test_what_stays_broken_is_a_counted_problem_and_no_score(start, tmp_path):
    judge = judge_of(start(*[429] * 3), tmp_path)
    verdict = judge.ask("score=3", score)
    assert verdict.value is None and verdict.problem == "HTTP 429"
    assert judge.report()["failures"] == {"HTTP 429": 1} and judge.report()["calls"] == 3


def test_a_refused_request_is_not_repeated(start, tmp_path):
    server = start(400)
    assert judge_of(server, tmp_path).ask("score=3", score).problem == "HTTP 400"
    assert len(server.requests()) == 1


@pytest.mark.parametrize("fault", ["garbage", "empty", "deep"])
def test_an_answer_that_does_not_parse_is_asked_for_again(start, tmp_path, fault):
    judge = judge_of(start(fault), tmp_path)
    assert judge.ask("score=1", score).value == 1 and judge.report()["unparsed"] == 1


def test_answers_that_never_parse_leave_the_sample_unscored(start, tmp_path):
    server = start()
    judge = judge_of(server, tmp_path, ask_again=2)
    verdict = judge.ask("score=7", score)  # 7 is outside 1 to 5
    assert verdict.value is None and verdict.problem == "answer does not parse" and len(server.requests()) == 3


def test_requests_run_side_by_side_up_to_the_limit_and_keep_their_order(start, tmp_path):
    judge = judge_of(start("together", "together", "together"), tmp_path, concurrency=3)
    questions = [f"{i} score={i % 5 + 1}" for i in range(12)]
    verdicts = judge.map(lambda q: judge.ask(q, score), questions, "test")
    assert [v.value for v in verdicts] == [i % 5 + 1 for i in range(12)]


def test_a_judge_that_does_not_answer_is_refused_before_anything_long(start, tmp_path):
    with pytest.raises(InputError, match="does not answer \\(HTTP 401\\)"):
        judge_of(start(401), tmp_path).check()


def test_the_examples_of_judges_are_whole(monkeypatch):
    for file in CONFIGS.glob("*.json"):
        key = json.loads(file.read_text()).get("api_key_env")
        if key:
            monkeypatch.setenv(key, "k")
        assert JudgeConfig.load(file.stem).base_url.startswith("http")


def test_a_judge_without_key_or_with_unknown_settings_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    with pytest.raises(InputError, match="GEMINI_API_KEY, which is not set"):
        JudgeConfig.load("gemini")
    with pytest.raises(InputError, match="is no judge and no file"):
        JudgeConfig.load("nobody")
    path = tmp_path / "mine.json"
    for value, match in (
        ({"base_url": "u"}, "is no judge"),
        ({"base_url": "u", "model": "m", "temp": 1}, "temp"),
        ({"base_url": 5, "model": "m"}, "base_url is 5"),
        ({"base_url": "u", "model": None}, "model is None"),
        ({"base_url": "u", "model": "m", "extra_body": []}, r"extra_body is \[\]"),
        (
            {"base_url": "u", "model": "m", "concurrency": "4"},
            "concurrency is '4'; give a whole number from 1",
        ),
        ({"base_url": "u", "model": "m", "concurrency": True}, "concurrency is True"),
        (
            {"base_url": "u", "model": "m", "timeout_s": 0},
            "timeout_s is 0; give a number above 0 to 1,000,000",
        ),
        ({"base_url": "u", "model": "m", "temperature": math.nan}, "temperature is nan"),
        ({"base_url": "u", "model": "m", "max_attempts": 10**30}, "max_attempts is 1000"),
    ):
        path.write_text(json.dumps(value))
        with pytest.raises(InputError, match=match):
            JudgeConfig.load(str(path))
    for address in ("http://[x", "nothing", "http://127.0.0.1:1/v1"):
        judge = Judge(JudgeConfig(address, "m", max_attempts=2, backoff_s=0), tmp_path)
        with pytest.raises(InputError, match=r"the judge m does not answer \("):
            judge.check()


def test_json_is_found_in_what_a_model_says_around_it():
    assert parse_json('好的 [1] 如下：```json\n{"score": 4, "why": "a{b"}\n```') == {"score": 4, "why": "a{b"}
    for text_ in ("四分", "[" * 100_000, "{" * 100_000, "[ " * (1 << 17)):
        with pytest.raises(ValueError):
            parse_json(text_)


@pytest.mark.parametrize("bad", ['{"score": 0}', '{"score": 3.5}', '{"score": true}', '{"why": 3}', "[]", "3"])
def test_a_score_is_a_whole_number_from_one_to_five(bad):
    with pytest.raises((ValueError, KeyError, TypeError)):
        text.parse_score(bad)


@pytest.mark.parametrize(
    "bad",
    [
        '{"points": [{"point": "a", "importance": 6}]}',
        '{"points": [{"point": "a"}]}',
        '{"points": [{"point": " ", "importance": 1}]}',
        "{}",
    ],
)
def test_points_without_importance_from_one_to_five_do_not_parse(bad):
    with pytest.raises((ValueError, KeyError, TypeError)):
        text.parse_points(bad)


def test_double_weighted_f1_by_hand():
    # Reference points of importance 5 and 1, answer points of 4 and 2. The first pair matches at 0.5, nothing else:
    # recall 5·0.5/6, precision 4·0.5/6.
    f1, precision, recall = text.double_weighted([5, 1], [4, 2], np.array([[0.5, 0], [0, 0]]))
    assert (precision, recall) == (pytest.approx(1 / 3), pytest.approx(2.5 / 6))
    assert f1 == pytest.approx(2 * precision * recall / (precision + recall))
    assert text.double_weighted([3], [3], np.array([[1.0]])) == (1, 1, 1)
    assert text.double_weighted([3], [2], np.array([[0.0]])) == (0, 0, 0)


def test_a_point_is_matched_once_even_where_the_judge_names_it_twice():
    quality = text.parse_matches(
        '{"matches": [{"reference": 1, "answer": 1, "quality": 1}, {"reference": 2, "answer": 1, "quality": 0.9}]}',
        2,
        1,
    )
    _, precision, recall = text.double_weighted([2, 2], [3], quality)
    assert (precision, recall) == (1, 0.5)


def examples(*references):
    turn = [{"role": "user", "content": "讲的是什么"}]
    return [Example(str(i), None, turn, reference, [], []) for i, reference in enumerate(references)]


@pytest.mark.parametrize("language", ["zh", "en", "de"])
def test_item_understanding_by_information_points(start, tmp_path, language):
    judge = judge_of(start(), tmp_path)
    scores, counts, reasons = text.score_understanding(
        examples("aaa b cc", "x y", "p"), ["aaa zz", "y x", ""], judge, "tfidf", "t", language
    )
    # aaa (3) of aaa, b, cc (6) and of aaa, zz (5): recall 1/2, precision 3/5.
    assert scores.columns[text.F1] == pytest.approx([2 * 0.5 * 0.6 / 1.1, 1, 0])
    assert counts == {"judged": 3, "unjudged": 0} and not reasons


def test_what_the_judge_cannot_score_is_neither_zero_nor_three(start, tmp_path):
    judge = judge_of(start("garbage"), tmp_path, ask_again=0, concurrency=1)
    scores, counts, reasons = text.score_reasoning(
        examples("因为", "因为喜欢"), ["因为 score=5", "所以 score=2"], judge, "t", "zh"
    )
    assert math.isnan(scores.columns["llm_score"][0]) and scores.columns["llm_score"][1] == 2
    assert counts == {"judged": 1, "unjudged": 1} and reasons == {"answer does not parse": 1}


def test_without_a_judge_text_is_said_to_be_unjudged():
    scores, counts, reasons = text.score_reasoning(examples("因为喜欢"), ["因为"], None, "t", "zh")
    assert counts == {"judged": 0, "unjudged": 1} and reasons == {"no judge set": 1}
    assert "llm_score" not in scores.columns and scores.columns["char_rouge_l"] == pytest.approx([2 * 2 / 6])


def test_longest_common_subsequence_and_rouge_by_hand():
    assert [lcs_length(*p) for p in (("abcde", "ace"), ("abc", "xyz"), ("ab", "ba"), ("", "a"))] == [
        3,
        0,
        1,
        0,
    ]
    assert char_rouge_l("abcd", "abxd") == pytest.approx(0.75) and char_rouge_l("a", "") == 0


def test_embedding_similarity_orders_answers_by_likeness():
    same, near, other, empty = embedding_similarity(
        ["老周的搞笑编程教程"] * 4, ["老周的搞笑编程教程", "老周的编程教程", "雪山自驾游", ""]
    )
    assert same == pytest.approx(1) and 1 > near > other >= 0 and empty == 0
