"""The release's input format, SIDs that name several items, and rows that cannot be used."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.catalogues import BenchData, load_catalogue, resolve, sids_of
from benchmarks.evaluators import rank
from benchmarks.evaluators.label import LabelEvaluator
from benchmarks.results import check_same_data
from benchmarks.tasks import TASKS, absent, choose_tasks, fingerprint, load_examples, load_spec
from onerec.errors import InputError
from onerec.items.item import Item
from onerec.parquet import write_table
from onerec.prompts import Words
from onerec.records import message
from onerec.run import Manifest
from onerec.sid import RELEASE_SPEC


def key(a, b, c):
    return str(a * 8192**2 + b * 8192 + c)


@pytest.fixture
def release(tmp_path):
    """A benchmark folder in the release's form: one SID of two videos, one of one; one product."""
    pids = {
        key(340, 6566, 5603): [
            {"pid": 11, "count": 3, "count_after_downsample": 9},
            {"pid": 12, "count": 5, "count_after_downsample": 1},
        ],
        key(0, 0, 8191): [{"pid": 13, "count": 1, "count_after_downsample": 1}],
    }
    (tmp_path / "sid2pid.json").write_text(json.dumps(pids))
    goods = {key(1, 2, 3): [{"iid": 11, "count": 1, "count_after_downsample": 0}]}
    (tmp_path / "sid2iid.json").write_text(json.dumps(goods))
    text = RELEASE_SPEC.text([340, 6566, 5603])
    rows = [row("u1", {"answer": text, "answer_pid": [12]}, f"看过{RELEASE_SPEC.text([0, 0, 8191])}")]
    write(tmp_path, "video", rows)
    return tmp_path


def row(uuid, metadata, prompt="问"):
    return {"uuid": uuid, "messages": json.dumps([message("user", prompt)]), "metadata": json.dumps(metadata)}


def write(folder, task, rows):
    write_table(folder / task / f"{task}_test.parquet", pa.Table.from_pylist(rows))


def test_rank_stands_for_every_ranking_task_that_has_a_test_file(tmp_path):
    for task in ("label_pred", "interactive", "video"):
        write(tmp_path, task, [row("a", {})])
    assert choose_tasks(tmp_path, None) == ["video", "interactive", "label_pred"]
    assert choose_tasks(tmp_path, ["rank"]) == ["video", "interactive"]
    assert choose_tasks(tmp_path, ["label_pred", "rank", "video"]) == ["label_pred", "video", "interactive"]
    with pytest.raises(InputError, match=r"ranks is not a task; of video, .*, or rank"):
        choose_tasks(tmp_path, ["ranks"])


def test_the_releases_catalogue_is_read_by_its_sid_numbers(release):
    index = load_catalogue(release, "video_ad", load_spec(release))
    assert index.pids_of((340, 6566, 5603)) == [12, 11] and index.pids_of((0, 0, 8191)) == [13]
    sampled = load_catalogue(release, "video_ad", RELEASE_SPEC, "count_after_downsample")
    assert sampled.pids_of((340, 6566, 5603)) == [11, 12]
    assert sids_of(load_catalogue(release, "product", RELEASE_SPEC)) == {11: (1, 2, 3)}


def test_a_sample_is_drawn_by_seed_and_a_larger_one_holds_it(release):
    write(release, "label_pred", [row(f"u{i:03}", {"answer": "是", "uid": i}) for i in range(100)])

    def drawn(size, seed=0):
        return [e.uuid for e in load_examples(release, TASKS["label_pred"], size, seed=seed)]

    few, more = drawn(20), drawn(50)
    assert few == sorted(few) and len(few) == 20 and set(few) < set(more)
    assert few == drawn(20) != drawn(20, seed=1)
    assert max(few) > "u050", "not the first rows of a sorted file"
    assert len(drawn(-1)) == len(drawn(100)) == len(drawn(1000)) == 100


def test_a_sid_of_several_items_resolves_as_the_policy_says(release):
    index = load_catalogue(release, "video_ad", RELEASE_SPEC)
    sids = [(340, 6566, 5603), (0, 0, 8191), (1, 1, 1)]
    assert resolve(index, sids, "all") == [12, 11, 13]
    assert resolve(index, sids, "popular") == [12, 13]
    assert resolve(index, sids, "popular", skip={12}) == [11, 13]
    drawn = [resolve(index, sids, "random", 0, str(i)) for i in range(40)]
    assert drawn == [resolve(index, sids, "random", 0, str(i)) for i in range(40)]
    assert {items[0] for items in drawn} == {11, 12} and all(items[1:] == [13] for items in drawn)


def test_without_a_history_in_the_metadata_the_prompts_sids_are_what_was_seen(release):
    index = load_catalogue(release, "video_ad", RELEASE_SPEC)
    (example,) = load_examples(release, TASKS["video"])
    assert example.history == [] and rank.seen_items(example, index, RELEASE_SPEC) == {13}


def test_sid_level_and_item_level_differ_where_a_sid_names_several_items(release):
    index = load_catalogue(release, "video_ad", RELEASE_SPEC, "count_after_downsample")
    (example,) = load_examples(release, TASKS["video"])
    line = rank.line(example, [Item((340, 6566, 5603), -1.0)], index, "popular", 0, (), 32)
    columns = rank.score([example], [line], RELEASE_SPEC).columns
    assert line["items"] == [11] and columns["pass@1"] == [0] and columns["sid_pass@1"] == [1]
    assert rank.coverage([line], index.n_items) == {"coverage@10": pytest.approx(1 / 3)}


def test_a_list_is_as_long_as_the_search_is_wide_though_there_are_fewer_sids(release):
    """The catalogue has three items under two SIDs: a search of 32 beams finds them all, one of two only two."""
    index = load_catalogue(release, "video_ad", RELEASE_SPEC)
    (example,) = load_examples(release, TASKS["video"])
    found = [Item((340, 6566, 5603), -1.0), Item((0, 0, 8191), -2.0)]
    lines = [rank.line(example, found, index, "all", 0, (), width) for width in (32, 2)]
    assert [line["items"] for line in lines] == [[12, 11, 13], [12, 11]]


def test_valid_sids_among_freely_generated_tokens(toy_spec):
    from onerec.catalog import ItemIndex

    index = ItemIndex(np.array([5]), np.array([[1, 2, 3]], np.int32), toy_spec)
    good = toy_spec.token_ids(np.array([1, 2, 3])).tolist()
    assert rank.valid_sid_rate([good, good[:2], [good[0], good[2], good[1]], [0, 0, 0]], index, toy_spec) == 0.25


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (
            {key(8191, 8191, 8191): [{"pid": 1, "count": 1}], str(8192**3): [{"pid": 2, "count": 1}]},
            "code 8192 in layer 0",
        ),
        ({key(0, 0, 0): [{"pid": 1}]}, "no usable items"),
        ({key(0, 0, 0): [{"pid": 1, "count": 1}], key(0, 0, 1): [{"pid": 1, "count": 1}]}, "names a pid twice"),
        ({}, "holds no SID"),
    ],
)
def test_a_catalogue_that_is_wrong_is_refused(tmp_path, value, match):
    (tmp_path / "sid2pid.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match=match):
        load_catalogue(tmp_path, "video_ad", RELEASE_SPEC)


def test_no_catalogue_at_all_is_refused(tmp_path):
    with pytest.raises(InputError, match="has no catalogue of product"):
        load_catalogue(tmp_path, "product", RELEASE_SPEC)


def test_labels_may_be_words_and_text_tasks_keep_their_answer(tmp_path):
    write(
        tmp_path,
        "label_pred",
        [row("a", {"answer": "否"}), row("b", {"answer": "是"}), row("c", {"label": 1})],
    )
    write(tmp_path, "rec_reason", [row("a", {"uid": 1, "answer": "因为"})])
    assert [e.answer_ids for e in load_examples(tmp_path, TASKS["label_pred"])] == [[0], [1], [1]]
    (example,) = load_examples(tmp_path, TASKS["rec_reason"])
    assert example.answer == "因为" and example.user == "1"


def test_labels_are_read_in_the_words_of_the_data(tmp_path):
    Words("en", "en", yes="Yes", no="No").save(tmp_path)
    write(tmp_path, "label_pred", [row("a", {"answer": "No"}), row("b", {"answer": "Yes"})])
    assert [e.answer_ids for e in load_examples(tmp_path, TASKS["label_pred"])] == [[0], [1]]
    write(tmp_path, "label_pred", [row("a", {"answer": "是"})])
    with pytest.raises(InputError, match="label, or answer Yes or No"):
        load_examples(tmp_path, TASKS["label_pred"])


def test_the_model_is_asked_for_the_answers_of_the_data(tmp_path):
    Words("en", "en", yes="Yes", no="No").save(tmp_path)
    write(tmp_path, "label_pred", [row("a", {"answer": "No"}), row("b", {"answer": "Yes"})])
    model = SimpleNamespace(
        check_spec=lambda *_: None,
        prompt_ids=lambda conversations, *_: [[0]] * len(conversations),
        answer_logprobs=lambda prompts, answers, _: [[len(answer) for answer in answers]] * len(prompts),
    )
    evaluator = LabelEvaluator(
        TASKS["label_pred"], BenchData(tmp_path), SimpleNamespace(sample_size=-1, seed=0, enable_thinking="false")
    )
    evaluator.load(Manifest("t"))
    assert [(line["label"], line["score"]) for line in evaluator.ask(model)] == [(0, 1), (1, 1)], "Yes less No"


def test_tasks_without_a_test_file_are_named(tmp_path):
    write(tmp_path, "video", [row("a", {})])
    assert absent(tmp_path, None).startswith("; left out, without a test file: ad, product, label_cond, ")
    assert absent(tmp_path, ["video"]) == ""


def test_a_few_unusable_rows_are_counted_and_many_refused(tmp_path):
    rows = [row(str(i), {"uid": i, "answer": "", "answer_pid": [i]}) for i in range(199)]
    write(tmp_path, "video", [*rows, row("bad", {"answer": ""})])
    manifest = Manifest("test")
    assert len(load_examples(tmp_path, TASKS["video"], manifest=manifest)) == 199
    assert manifest.dropped == {"video: no usable answer": 1}
    write(tmp_path, "video", [*rows[:9], row("bad", {"answer": "", "answer_pid": []})])
    with pytest.raises(InputError, match="row 9 has no usable answer"):
        load_examples(tmp_path, TASKS["video"])


def test_a_user_who_stands_twice_with_the_same_prompt_and_answer_counts_once(tmp_path):
    rows = [
        row("a", {"uid": 1, "answer_pid": [1]}),
        row("b", {"uid": 1, "answer_pid": [1]}),
        row("a", {"uid": 2, "answer_pid": [1]}),
        row("c", {"uid": 1, "answer_pid": [3]}, "另一问"),
    ]
    write(tmp_path, "video", rows)
    manifest = Manifest("test")
    assert [e.uuid for e in load_examples(tmp_path, TASKS["video"], manifest=manifest)] == ["a", "c"]
    assert manifest.dropped == {"video: the same row again": 2}


def test_unknown_and_absent_tasks_are_refused(release):
    assert choose_tasks(release, None) == ["video"]
    for wanted, match in ((["clicks"], "clicks is not a task"), (["ad"], "has no test file of ad")):
        with pytest.raises(InputError, match=match):
            choose_tasks(release, wanted)


def test_results_of_another_data_version_are_refused(release, tmp_path):
    before = fingerprint(release, "video")
    write(release, "video", [row("u2", {"answer_pid": [12]})])
    values = [{"data": {"tests": {"video": mark}}} for mark in (before, before, fingerprint(release, "video"))]
    check_same_data(["a", "b"], values[:2])
    with pytest.raises(InputError, match=r"^c: measured video on another version of the data than a"):
        check_same_data(["a", "b", "c"], values)


@pytest.mark.parametrize(
    ("rows", "items", "catalogue", "warned"),
    [
        (100, 20, 3686, True),
        (100, 21, 3686, False),
        (100, 16, 50, False),  # a catalogue of which twenty items are not few
        (9, 15, 3686, False),  # too few rows to say it
    ],
)
def test_the_same_few_items_for_everybody_are_said(rows, items, catalogue, warned):
    evaluator = rank.RankEvaluator(TASKS["video"], None, None)
    evaluator.index = SimpleNamespace(n_items=catalogue)
    lists = ([(row + place) % items for place in range(10)] + [99] for row in range(rows))
    evaluator.lines = [{"items": found} for found in lists]
    said = f"the first 10 items of all {rows} rows are {items} different ones: nearly one list for everybody"
    assert evaluator.doubtful() == (said if warned else "")
