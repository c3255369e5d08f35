"""Sets of prompts: English and Chinese say the same tasks, the noun is in them, and a bad set is one line."""

import json
import re

import pyarrow.parquet as pq
import pytest

from data.onerec_data.run import main
from data.onerec_data.wording import FOLDER, load_prompts, nouns_of
from data.prepare_distillation import main as distill
from onerec.errors import InputError
from onerec.parquet import write_table
from onerec.prompts import Words
from onerec.records import parse_messages, record_uuid, text_record, write_records
from onerec.tasks import TASKS
from tests.data.tests_data import user

CHINESE = re.compile("[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]")
# The one user of the tests, in English.
ENGLISH = {
    "inter_user_profile": "likes <pid:1> and <pid:99>",
    "inter_keyword_to_items": '{"cat": [4, 5]}',
    "reco_gsu_caption": "a cat",
    "reco_target_caption": "a small dog",
    "reco_cot": "because of the animals",
}


@pytest.fixture
def english(release):
    """The very small release, its texts in English, with tags."""
    release.write([user(i, split=int(i == 3), **ENGLISH) for i in range(1, 4)])
    texts = {"dense_caption": ["cat", "dog", "fish"], "tags": ["cats", "dogs", "fish"]}
    table = pq.read_table(release.folder / "pid2caption.parquet")
    for name, values in texts.items():
        table = table.drop_columns([name]) if name in table.column_names else table
        table = table.append_column(name, [values])
    write_table(release.folder / "pid2caption.parquet", table)
    return release


def texts_of(release):
    """Task, or file of the benchmark, to the texts of its rows."""
    found = {}
    for path in sorted(release.output.rglob("*.parquet")):
        for row in pq.read_table(path).to_pylist() if "source" in pq.read_schema(path).names else []:
            found.setdefault(path.stem, []).append(row.get("messages") or row["segments"])
    return found


@pytest.mark.parametrize("prompts", ["zh", "en"])
def test_every_task_is_built_in_every_language_with_the_noun(english, prompts):
    # Tags of the targets, so that thoughts have something to want.
    write_table(
        english.folder / "pid2caption.parquet",
        pq.read_table(english.folder / "pid2caption.parquet").set_column(0, "pid", [[1, 2, 4]]),
    )
    main(english.argv("--prompts", prompts, "--noun", "gizmo", "--also", "sft_reco_reason"))
    texts = texts_of(english)
    assert {name for name in texts if name in TASKS} == TASKS.keys()
    assert len([name for name in texts if name.endswith("_test")]) == 8
    assert prompts == "zh" or not [text for several in texts.values() for text in several if CHINESE.search(text)]
    assert all("视频" not in text and "video" not in text for several in texts.values() for text in several)
    for name in ("sft_video_rec", "sft_item_understand") if prompts == "en" else ("sft_video_rec",):
        assert any("gizmo" in text for text in texts[name]), name


def test_answers_of_label_prediction_are_words_of_the_language(english):
    main(english.argv("--prompts", "en", "--tasks", "sft_label_pred"))
    rows = pq.read_table(english.output / "sft_label_pred.parquet").to_pylist()
    assert [parse_messages(row["messages"])[-1]["content"] for row in rows] == ["Yes", "No"] * 2
    words = Words.of_folder(english.output / "benchmark_data")
    assert words == Words("en", "en", "", "", "Yes", "No")
    assert json.loads((english.output / "manifest.json").read_text())["prompts"]["prompts"] == "en"


def test_workers_say_the_same(english, tmp_path):
    main(english.argv("--prompts", "en", "--noun", "person/people"))
    before = texts_of(english)
    main(english.argv("--prompts", "en", "--noun", "person/people", "--workers", "2"))
    assert texts_of(english) == before and any("people" in text for text in before["sft_video_rec"])


def test_the_words_of_the_release_are_those_of_the_default_set():
    assert Words() == load_prompts("zh").words
    assert load_prompts("zh")["system"]["video_rec"][0].text() == "你负责视频推荐。"


def test_plain_text_of_distillation_is_asked_for_in_the_language(tmp_path):
    write_records(tmp_path / "t.parquet", [text_record(record_uuid(1), "t", {}, ["a % long text"])])
    argv = ["--input", str(tmp_path / "t.parquet"), "--output", str(tmp_path / "out.parquet")]
    distill([*argv, "--prompts", "en"])
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert rows[0]["prompt"][0]["content"] == "Please continue this text:\na % lon"


@pytest.mark.parametrize(
    ("noun", "language", "expected"),
    [
        ("product", "en", ("product", "products")),
        ("category", "en", ("category", "categories")),
        ("dish", "en", ("dish", "dishes")),
        ("day", "en", ("day", "days")),
        ("person/people", "en", ("person", "people")),
        ("商品", "zh", ("商品", "商品")),
        ("100% thing", "en", ("100% thing", "100% things")),
    ],
)
def test_a_noun_has_its_regular_plural_or_the_one_behind_a_slash(noun, language, expected):
    assert nouns_of(noun, language, "--noun") == expected
    prompts = load_prompts("en" if language == "en" else "zh", noun)
    assert expected[1] in prompts["question"]["video_rec"][0].text()


@pytest.mark.parametrize("noun", ["a/b/c", "/", "{x}", "x" * 41, "two\nlines", "<|im_end|>"])
def test_what_is_no_word_is_refused(noun):
    with pytest.raises(InputError, match=r"--noun: is .*person/people"):
        load_prompts("en", noun)


def a_set(tmp_path, change):
    value = json.loads((FOLDER / "en.json").read_text())
    change(value)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(value))
    return str(path)


def test_a_set_of_ones_own_is_a_file(english, tmp_path):
    path = a_set(tmp_path, lambda value: value["question"].update(video_rec=["Was kommt nach den {nouns}?"]))
    main(english.argv("--prompts", path, "--noun", "Buch/Bücher", "--tasks", "sft_video_rec"))
    assert all("Was kommt nach den Bücher?" in text for text in texts_of(english)["sft_video_rec"])
    assert Words.of_folder(english.output / "benchmark_data").prompts == "mine"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda v: v["question"].pop("label_pred"), r"mine.json: has no question.label_pred; what zh.json has there"),
        (lambda v: v.pop("thought"), "has no thought"),
        (lambda v: v.update(quesiton={}), r"has an unknown key quesiton; one of question"),
        (lambda v: v["item_question"].append("What is it?"), r"item_question: 'What is it\?' has no \{sid\}"),
        (
            lambda v: v["profile_text"].append("{profile} {user}"),
            r"has the unknown placeholder \{user\}; of \{profile\}",
        ),
        (lambda v: v["profile_text"].append("{profile!r}"), r"has no \{profile\}"),
        (lambda v: v["profile_text"].append("{profile"), "does not parse"),
        (lambda v: v["history"].update(like=[]), "history.like is an empty list; a list of texts"),
        (lambda v: v["history"].update(like="liked"), "history.like is 'liked'"),
        (lambda v: v["history"].update(like=[""]), "history.like has ''"),
        (lambda v: v["history"].update(like=["<|im_start|>"]), "text without marks of chats or items"),
        (lambda v: v.update(answer={"yes": "Yes", "no": " Yes"}), "answer.yes and answer.no are the same"),
        (lambda v: v.update(language=3), "language is 3; text"),
        (lambda v: v.update(system=[]), r"system is no JSON object; an object with video_rec, "),
    ],
)
def test_a_bad_set_is_one_line_and_nothing_is_written(english, tmp_path, change, match):
    with pytest.raises(InputError, match=match):
        main(english.argv("--prompts", a_set(tmp_path, change)))
    assert not list(english.output.glob("*"))


def test_a_set_that_is_no_file_or_no_json_is_one_line(tmp_path):
    with pytest.raises(InputError, match="--prompts: ne is no set of prompts; en"):
        load_prompts("ne")
    (tmp_path / "mine.json").write_text("{")
    with pytest.raises(InputError, match=r"mine\.json: is not JSON"):
        load_prompts(str(tmp_path / "mine.json"))


@pytest.mark.parametrize("text", ["[]", '{"prompts": "en"}', json.dumps(dict.fromkeys(vars(Words()), 3))])
def test_benchmark_data_with_bad_words_are_one_line(tmp_path, text):
    (tmp_path / "prompts.json").write_text(text)
    with pytest.raises(InputError, match=r"prompts.json: does not say which prompts the data have"):
        Words.of_folder(tmp_path)
