"""Toy general text: an invented little geography and sums, in Chinese and English, with answers that can be checked.

Training text and chats teach every fact; the held-out questions ask for every fact in a wording in which that fact was
not asked, and, in every wording, for sums that were never shown. So exact match on them is a number for general
ability.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.toy.items import SUBTOPICS, VOCABULARY
from onerec.records import Record, chat_record, message, record_uuid, text_record
from onerec.render import split_thinking, with_thinking

TABLE = json.loads((Path(__file__).parent / "general_text.json").read_text(encoding="utf-8"))
LARGEST_ADDEND = 12
LANGUAGES = ("zh", "en")
_HELD_OUT_SUMS = 0.15  # share of the sums that training never shows
_THINKING = 0.5  # share of the taught sums whose chat thinks aloud


def most_facts() -> int:
    """How many facts the syllables suffice for."""
    return min(len(TABLE[f"syllables_{lang}"]) * (len(TABLE[f"syllables_{lang}"]) - 1) for lang in LANGUAGES)


def make_facts(rng: np.random.Generator, n: int, languages: Sequence[str] = LANGUAGES) -> list[dict[str, str]]:
    """Of ``n`` invented capitals, half in each language, those in ``languages``: lang, country, name (of the city) and
    good (its product).

    No country and no city comes twice; ``n`` is at most `most_facts`.
    """
    facts = []
    for lang in languages:
        suffix = "国" if lang == "zh" else "ia"
        pairs = list(itertools.permutations(TABLE[f"syllables_{lang}"], 2))
        order = rng.permutation(len(pairs))[:n]
        for i in range(n // 2):
            first, second = pairs[order[i]], pairs[order[n // 2 + i]]
            facts.append(
                {
                    "lang": lang,
                    "country": first[0] + first[1].lower() + suffix,
                    "name": second[0] + second[1].lower() + ("城" if lang == "zh" else "ton"),
                    "good": TABLE[f"goods_{lang}"][int(rng.integers(len(TABLE[f"goods_{lang}"])))],
                }
            )
    return facts


def make_chats(
    rng: np.random.Generator, facts: list[dict[str, str]], languages: Sequence[str] = LANGUAGES
) -> tuple[list[Record], list[Record]]:
    """(training chats, held-out questions). The held-out ones carry ``answer, kind, lang`` in their metadata."""
    train, held_out = [], []
    for fact in facts:
        for kind, wordings in TABLE["questions"].items():
            templates = wordings[fact["lang"]]
            hidden = int(rng.integers(len(templates)))
            answer = fact["name"] if kind == "capital" else fact["good"]
            for i, template in enumerate(templates):
                target = held_out if i == hidden else train
                target.append(_chat(template.format(**fact), answer, kind, fact["lang"]))
    hidden_sums = rng.random((LARGEST_ADDEND + 1, LARGEST_ADDEND + 1)) < _HELD_OUT_SUMS
    for a, b in itertools.product(range(LARGEST_ADDEND + 1), repeat=2):
        for lang in languages:
            templates = TABLE["arithmetic"][lang]
            if hidden_sums[a, b]:
                held_out += [_chat(template.format(a=a, b=b), str(a + b), "sum", lang) for template in templates]
                continue
            for template in templates:
                thought = (
                    TABLE["arithmetic"][f"thought_{lang}"].format(a=a, b=b, c=a + b) if rng.random() < _THINKING else ""
                )
                train.append(_chat(template.format(a=a, b=b), str(a + b), "sum", lang, thought))
    return train, held_out


def _chat(question: str, answer: str, kind: str, lang: str, thought: str = "") -> Record:
    text = with_thinking(thought, answer) if thought else answer
    metadata: dict[str, Any] = {"answer": answer, "kind": kind, "lang": lang}
    messages = [message("user", question), message("assistant", text)]
    return chat_record(record_uuid("toy_chat", question, thought), f"toy_{kind}_{lang}", metadata, messages)


def make_texts(
    rng: np.random.Generator, facts: list[dict[str, str]], taught: list[Record], n: int, topics: bool = True
) -> Iterator[Record]:
    """``n`` short documents: shuffled sentences on the facts, the taught sums and, with ``topics``, the catalogue's."""
    sums = [
        (m["answer"], record["messages"]) for record in taught if (m := json.loads(record["metadata"]))["kind"] == "sum"
    ]
    questions = [json.loads(messages) for _, messages in sums]
    for i in range(n):
        sentences = []
        for _ in range(4):
            fact = facts[int(rng.integers(len(facts)))]
            templates = TABLE["prose"][fact["lang"]]
            sentences.append(templates[int(rng.integers(len(templates)))].format(**fact))
        for _ in range(2):
            question = questions[int(rng.integers(len(questions)))]
            sentences.append(" ".join(split_thinking(turn["content"][0]["text"])[1] for turn in question))
        sentences += [_topic_sentence(rng)] if topics else []
        rng.shuffle(sentences)
        text = "\n".join(sentences)
        yield text_record(record_uuid("toy_text", i, text), "toy_text", {"document": i}, [text])


def _topic_sentence(rng: np.random.Generator) -> str:
    template = TABLE["topic_prose"][int(rng.integers(len(TABLE["topic_prose"])))]
    topic, subtopic = SUBTOPICS[int(rng.integers(len(SUBTOPICS)))]
    words = {
        name: VOCABULARY[plural][int(rng.integers(len(VOCABULARY[plural])))]
        for name, plural in (("style", "styles"), ("creator", "creators"), ("form", "video_forms"))
    }
    return template.format(topic=topic, subtopic=subtopic, **words)
