"""Toy users: a few drifting interests and a taste for one style, and the logs that they leave."""

from __future__ import annotations

import dataclasses
import json

import numpy as np

from data.toy.items import STYLES, SUBTOPICS, VOCABULARY, Items

LABELS = ("longview", "like", "follow", "forward", "not_interested")
N_TARGETS = 10
N_INTERESTS = 3
_DRIFT = 1 / 25  # probability a step that one interest is replaced
_CHANGE = 0.85  # probability that the next item serves another interest than the last one
_NOISE = 0.10  # share of items taken from global popularity, outside any interest
_STYLE_FIT, _STYLE_MISFIT = 5.0, 0.3  # weight of an item of the user's style, and of another
_SEEN = 0.4  # factor on an item already watched: people come back, but less
# P(label | how well the item fits): the user's interest and style, the interest alone, neither.
_LABEL_PROBABILITY = {
    "longview": (0.95, 0.15, 0.03),
    "like": (0.50, 0.15, 0.02),
    "follow": (0.20, 0.05, 0.01),
    "forward": (0.15, 0.05, 0.01),
    "not_interested": (0.01, 0.05, 0.30),
}


@dataclasses.dataclass
class Watch:
    """A user's state when the history ends: what the oracle knows, and the sequence."""

    sequence: list[int]  # item rows, in time order
    fit: list[int]  # 0 interest and style, 1 interest, 2 neither, one an item
    interests: list[int]  # subtopics at the end of the history
    style: int
    next_probability: np.ndarray  # [n_items] at the end of the history, interests taken alike


class World:
    """Precomputed weights of a catalogue: who would take which item."""

    def __init__(self, items: Items) -> None:
        self.items = items
        self.global_p = items.popularity / items.popularity.sum()
        self._rows = [np.flatnonzero(items.subtopic == s) for s in range(len(SUBTOPICS))]

    def interest_weights(self, subtopic: int, style: int, seen: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """(rows, probabilities) of the items of one interest for a user of ``style`` who has ``seen`` some."""
        rows = self._rows[subtopic]
        fit = np.where(self.items.style[rows] == style, _STYLE_FIT, _STYLE_MISFIT)
        weight = fit * self.items.popularity[rows] * np.array([_SEEN if row in seen else 1.0 for row in rows])
        return rows, weight / weight.sum()

    def watch(
        self, rng: np.random.Generator, interests: list[int], style: int, n_history: int, n_targets: int
    ) -> Watch:
        """Simulate ``n_history + n_targets`` items; interests drift on the way."""
        interests = list(interests)
        seen: dict[int, int] = {}
        sequence, fits = [], []
        last, at_end, probability = -1, list(interests), self.global_p
        for step in range(n_history + n_targets):
            if rng.random() < _DRIFT:
                interests[rng.integers(N_INTERESTS)] = int(rng.integers(len(SUBTOPICS)))
            if step == n_history:
                at_end, probability = list(interests), self._next_probability(interests, style, seen)
            if rng.random() < _NOISE:
                row = int(rng.choice(len(self.global_p), p=self.global_p))
            else:
                others = [k for k in range(N_INTERESTS) if k != last]
                last = (
                    int(rng.choice(others)) if last >= 0 and rng.random() < _CHANGE else int(rng.integers(N_INTERESTS))
                )
                rows, p = self.interest_weights(interests[last], style, seen)
                row = int(rng.choice(rows, p=p))
            wanted = self.items.subtopic[row] in interests
            fits.append(2 - int(wanted) - int(wanted and self.items.style[row] == style))
            sequence.append(row)
            seen[row] = step
        return Watch(sequence, fits, at_end, style, probability)

    def _next_probability(self, interests: list[int], style: int, seen: dict[int, int]) -> np.ndarray:
        probability = _NOISE * self.global_p
        for subtopic in interests:
            rows, p = self.interest_weights(subtopic, style, seen)
            probability = probability + np.bincount(rows, p, len(probability)) * (1 - _NOISE) / N_INTERESTS
        return probability


def simulate_user(rng: np.random.Generator, uid: int, split: int, worlds: dict[str, World]) -> tuple[dict, Watch]:
    """One row of the release for one user, and the `Watch` that the oracle reads."""
    interests = [int(s) for s in rng.choice(len(SUBTOPICS), N_INTERESTS, replace=False)]
    style = int(rng.integers(len(STYLES)))
    n_history = int(rng.integers(18, 31))
    videos = worlds["video"].items
    watch = worlds["video"].watch(rng, interests, style, n_history, N_TARGETS)
    pids = videos.pid[watch.sequence]
    labels = _labels(rng, watch.fit)
    row: dict = {"uid": uid, "split": split, "hist_video_pid": pids[:n_history], "target_video_pid": pids[n_history:]}
    for name, values in labels.items():
        row[f"hist_video_{name}"], row[f"target_video_{name}"] = values[:n_history], values[n_history:]
    longview = pids[:n_history][labels["longview"][:n_history] == 1]
    row["hist_longview_video_list"] = longview
    for domain in ("ad", "goods"):
        row[f"hist_{domain}_pid"], row[f"target_{domain}_pid"] = _cross_domain(rng, worlds[domain], watch)
    return row | _texts(rng, watch, videos, worlds["video"], longview, n_history), watch


def _labels(rng: np.random.Generator, fits: list[int]) -> dict[str, np.ndarray]:
    return {
        name: (rng.random(len(fits)) < np.array(p)[fits]).astype(np.int64) for name, p in _LABEL_PROBABILITY.items()
    }


def _cross_domain(rng: np.random.Generator, world: World, watch: Watch) -> tuple[np.ndarray, np.ndarray]:
    """(history, targets) of a user's clicks on ads or goods; 15 % of the users have none."""
    n_history, n_targets = int(rng.integers(4, 9)), int(rng.integers(2, 5))
    if rng.random() < 0.15:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    clicks = world.watch(rng, watch.interests, watch.style, n_history, n_targets)
    pids = world.items.pid[clicks.sequence]
    return pids[:n_history], pids[n_history:]


def _texts(
    rng: np.random.Generator, watch: Watch, videos: Items, world: World, longview: np.ndarray, n_history: int
) -> dict:
    """Profile, keywords and reasoning of a user; pids stand as ``<pid:N>`` marks."""
    names = [SUBTOPICS[s][1] for s in dict.fromkeys(watch.interests)]
    style = STYLES[watch.style]
    recent = "、".join(f"<pid:{pid}>" for pid in longview[-3:]) or "一些热门视频"
    keywords = {}
    for name, subtopic in list(zip(names, dict.fromkeys(watch.interests), strict=True))[:2]:
        rows, p = world.interest_weights(subtopic, watch.style, {})
        keywords[name] = (
            [int(pid) for pid in videos.pid[rng.choice(rows, 5, replace=False, p=p)]] if len(rows) >= 5 else []
        )
    wanted = [i for i in range(n_history, len(watch.sequence)) if watch.fit[i] == 0]
    target = watch.sequence[wanted[0] if wanted else n_history]
    target_name = SUBTOPICS[videos.subtopic[target]][1]
    relevant = [row for row in watch.sequence[:n_history] if videos.subtopic[row] in watch.interests][-5:]
    return {
        "inter_user_profile": VOCABULARY["profile"].format(subtopics="、".join(names), style=style, recent=recent),
        "inter_keyword_to_items": json.dumps({k: v for k, v in keywords.items() if v}, ensure_ascii=False),
        "reco_gsu_caption": "\n".join(videos.caption[row] for row in relevant),
        "reco_target_caption": videos.caption[target],
        "reco_cot": VOCABULARY["cot"].format(
            subtopics="、".join(names), style=style, first=names[0], target=target_name
        ),
        "target_pid": int(videos.pid[target]),
    }
