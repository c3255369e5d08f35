"""General text: records of the release's format, answers that are right, and a held-out part that is held out."""

import json
import re
from collections import Counter

import numpy as np
import pytest

from data.toy.general_text import LARGEST_ADDEND, TABLE, make_chats, make_facts, make_texts, most_facts
from onerec.records import check_record, parse_messages, parse_segments
from onerec.render import split_thinking


@pytest.fixture(scope="module")
def text():
    rng = np.random.default_rng(0)
    facts = make_facts(rng, 40)
    chats, questions = make_chats(rng, facts)
    return facts, chats, questions, list(make_texts(rng, facts, chats, 200))


def asked(records):
    """(question, thinking, answer, metadata) of every record."""
    for record in records:
        question, reply = parse_messages(record["messages"])
        yield question["content"], *split_thinking(reply["content"]), json.loads(record["metadata"])


def addends(question):
    return tuple(map(int, re.findall(r"\d+", question)))


def test_every_record_keeps_the_format_and_has_its_own_uuid(text):
    _, chats, questions, texts = text
    records = [*chats, *questions, *texts]
    assert [check_record(record) for record in records] == [None] * len(records)
    assert len({record["uuid"] for record in records}) == len(records)


def test_answers_are_right_in_both_languages(text):
    facts, chats, questions, _ = text
    truth = {(fact["lang"], "capital", fact["country"]): fact["name"] for fact in facts}
    truth |= {(fact["lang"], "good", fact["name"]): fact["good"] for fact in facts}
    languages = set()
    for question, thinking, answer, metadata in asked([*chats, *questions]):
        lang, kind = metadata["lang"], metadata["kind"]
        languages.add(lang)
        assert metadata["answer"] == answer
        if kind == "sum":
            assert sum(addends(question)) == int(answer)
            assert not thinking or answer in thinking
        else:
            assert answer in [
                value for (k, t, name), value in truth.items() if (k, t) == (lang, kind) and name in question
            ]
    assert languages == {"zh", "en"}
    assert 0.3 < np.mean([bool(thinking) for _, thinking, _, m in asked(chats) if m["kind"] == "sum"]) < 0.7


def test_held_out_questions_are_never_taught_but_their_facts_are(text):
    _, chats, questions, _ = text
    taught = {question: metadata for question, _, _, metadata in asked(chats)}
    held_out = {question: metadata for question, _, _, metadata in asked(questions)}
    assert {m["kind"] for m in held_out.values()} == {"capital", "good", "sum"}
    assert not taught.keys() & held_out.keys()
    facts = {(m["kind"], m["answer"]) for m in taught.values()}
    assert all((m["kind"], m["answer"]) in facts for m in held_out.values() if m["kind"] != "sum")


def test_every_fact_is_held_out_in_one_wording_and_a_hidden_sum_in_all_of_them(text):
    facts, _, questions, _ = text
    kinds = [(m["kind"], m["lang"]) for _, _, _, m in asked(questions)]
    for lang in ("zh", "en"):
        count = sum(fact["lang"] == lang for fact in facts)
        assert kinds.count(("capital", lang)) == kinds.count(("good", lang)) == count
    sums = [addends(question) for question, _, _, m in asked(questions) if m["kind"] == "sum"]
    assert set(Counter(sums).values()) == {sum(len(TABLE["arithmetic"][lang]) for lang in ("zh", "en"))}


def test_held_out_sums_stand_nowhere_in_the_training_text(text):
    _, chats, questions, texts = text
    hidden = {addends(question) for question, _, _, m in asked(questions) if m["kind"] == "sum"}
    shown = {addends(question) for question, _, _, m in asked(chats) if m["kind"] == "sum"}
    assert hidden and not hidden & shown
    assert len(hidden | shown) == (LARGEST_ADDEND + 1) ** 2
    lines = [line for record in texts for line in parse_segments(record["segments"]).split("\n")]
    in_text = {addends(line)[:2] for line in lines if len(addends(line)) == 3}
    assert in_text and in_text <= shown


def test_text_teaches_every_fact_and_the_captions_words(text):
    facts, _, _, texts = text
    whole = "\n".join(parse_segments(record["segments"]) for record in texts)
    assert all(fact["name"] in whole and fact["country"] in whole and fact["good"] in whole for fact in facts)
    assert all(word in whole for word in ("美食", "猫咪", "治愈", "教程", "阿明"))


def test_general_text_may_be_english_alone():
    rng = np.random.default_rng(0)
    facts = make_facts(rng, 40, ["en"])
    chats, questions = make_chats(rng, facts, ["en"])
    texts = list(make_texts(rng, facts, chats, 50, topics=False))
    assert len(facts) == 20 and len({fact["name"] for fact in facts}) == 20
    assert not [
        record for record in (*chats, *questions, *texts) if re.search("[\u3000-\u9fff\uff00-\uffef]", str(record))
    ]


def test_names_are_unique_up_to_the_largest_number_of_facts():
    facts = make_facts(np.random.default_rng(0), most_facts())
    for key in ("country", "name"):
        assert len({fact[key] for fact in facts}) == len(facts) == most_facts()
