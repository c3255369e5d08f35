"""The toy catalogue: items in a topic tree with attributes, captions written from them, and noisy latent embeddings."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

VOCABULARY = json.loads((Path(__file__).parent / "vocabulary.json").read_text(encoding="utf-8"))
EMBEDDING_DIM = 64
# Lengths of the parts of an item's latent vector. They fall from the subtopic to the noise, so that the layers of a
# residual k-means find subtopic, style and the rest in this order.
_SCALE = {"topic": 0.8, "subtopic": 1.0, "style": 0.55, "creator": 0.35, "form": 0.2, "domain": 0.3, "noise": 0.1}


@dataclasses.dataclass(frozen=True)
class Items:
    """The items of one domain; every array has one entry an item.

    ``pid`` int64; ``subtopic`` (index into `SUBTOPICS`) and ``style`` (into `STYLES`) int64; ``popularity`` float64,
    positive; ``embedding`` float32 [n, 64]; ``caption`` list of str, which also names the creator and the form.
    """

    domain: str
    pid: np.ndarray
    subtopic: np.ndarray
    style: np.ndarray
    popularity: np.ndarray
    embedding: np.ndarray
    caption: list[str]

    @property
    def tags(self) -> list[list[str]]:
        """Subtopic and style of every item, as words."""
        return [[SUBTOPICS[t][1], STYLES[s]] for t, s in zip(self.subtopic, self.style, strict=True)]

    def __len__(self) -> int:
        return len(self.pid)


SUBTOPICS = [(topic, subtopic) for topic, children in VOCABULARY["topics"].items() for subtopic in children]
STYLES: list[str] = VOCABULARY["styles"]


def latent_space(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random directions of every topic, subtopic, style, creator, form and domain: arrays [n, 64] of their length."""
    counts = {
        "topic": len(VOCABULARY["topics"]),
        "subtopic": len(SUBTOPICS),
        "style": len(STYLES),
        "creator": len(VOCABULARY["creators"]),
        "form": 8,
        "domain": 3,
    }
    space = {}
    for name, count in counts.items():
        vectors = rng.standard_normal((count, EMBEDDING_DIM))
        space[name] = _SCALE[name] * vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return space


def make_items(rng: np.random.Generator, space: dict[str, np.ndarray], domain: str, n: int, first_pid: int) -> Items:
    """``n`` items of ``domain`` (video, ad or goods), spread evenly over subtopics and styles, pids in random order."""
    niches = len(SUBTOPICS) * len(STYLES)
    # Subtopics fill first, so that even a small domain has items for every interest.
    order = rng.permutation(np.arange(n) % niches)
    subtopic, style = order % len(SUBTOPICS), order // len(SUBTOPICS)
    niche = subtopic * len(STYLES) + style
    forms = VOCABULARY[f"{domain}_forms"]
    creator, form = rng.integers(len(VOCABULARY["creators"]), size=n), rng.integers(len(forms), size=n)
    topics = list(VOCABULARY["topics"])
    topic = np.array([topics.index(SUBTOPICS[s][0]) for s in subtopic])
    latent = space["topic"][topic] + space["subtopic"][subtopic] + space["style"][style] + space["creator"][creator]
    latent = latent + space["form"][form] + space["domain"][["video", "ad", "goods"].index(domain)]
    noise = rng.standard_normal((n, EMBEDDING_DIM)) * _SCALE["noise"] / np.sqrt(EMBEDDING_DIM)
    template = VOCABULARY["caption"][domain]
    captions = [
        template.format(
            creator=VOCABULARY["creators"][c],
            style=STYLES[s],
            topic=SUBTOPICS[t][0],
            subtopic=SUBTOPICS[t][1],
            form=forms[f],
        )
        for c, s, t, f in zip(creator, style, subtopic, form, strict=True)
    ]
    return Items(
        domain=domain,
        pid=first_pid + np.arange(n, dtype=np.int64),
        subtopic=subtopic,
        style=style,
        popularity=_popularity(rng, niche, niches),
        embedding=(latent + noise).astype(np.float32),
        caption=captions,
    )


def _popularity(rng: np.random.Generator, niche: np.ndarray, niches: int) -> np.ndarray:
    """Zipf (exponent 0.9) by a random rank inside each niche, times a lognormal factor an item."""
    popularity = np.empty(len(niche))
    for k in range(niches):
        members = np.flatnonzero(niche == k)
        popularity[members] = 1.0 / (1 + rng.permutation(len(members))) ** 0.9
    return popularity * np.exp(rng.normal(0, 0.5, len(niche)))
