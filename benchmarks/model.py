"""A checkpoint under test, and what the benchmark asks of it: rank items, weigh two answers, answer, score text.

`BenchModel` owns tokens, thinking and what is kept on disk as it comes (`benchmarks.journal`); a backend runs the model.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.backends import BACKENDS, PRECISIONS, Excluded, Finished, Sampling, open_backend
from benchmarks.journal import Journal, work_keys
from benchmarks.prompts import Prompts
from onerec.catalog import ItemIndex
from onerec.chat import EMPTY_THINK, THINK_CLOSE, end_ids
from onerec.errors import InputError
from onerec.files import SID_SPEC
from onerec.flags import COUNT, COUNT_OR_0, NOT_NEGATIVE, SHARE_ABOVE_0, ArgumentParser, integer
from onerec.items.decode import NORMALIZE, Hypothesis
from onerec.model_folder import loading, open_model_folder
from onerec.run import progress
from onerec.sid import SidSpec

T = TypeVar("T")
MERGES = ("logsumexp", "max")


@dataclasses.dataclass(frozen=True)
class Thinking:
    """How the model thinks before it answers: how many thoughts a prompt, how they are sampled, how their items are merged.

    ``logsumexp``: an item's score is the log of the mean of its probabilities after each thought, an estimate of its probability
    whatever was thought; ``max``: the best of its scores.
    """

    thoughts: int = 1
    sampling: Sampling = Sampling()  # noqa: RUF009 (frozen)
    merge: str = "logsumexp"


class Thoughts(list):
    """A prompt with its first thought behind it; ``others`` is the prompt with each further thought."""

    def __init__(self, variants: Sequence[list[int]]) -> None:
        super().__init__(variants[0])
        self.others = list(variants[1:])


class BenchModel:
    """A causal language model with its tokenizer and, where it has SIDs, its `SidSpec`."""

    def __init__(
        self,
        path: Path,
        device: str = "auto",
        token_budget: int = 16384,
        backend: str = "hf",
        journal: Journal | None = None,
        thinking: Thinking | None = None,
        normalize: str = "vocabulary",
        tensor_parallel: int = 1,
        data_parallel: int = 1,
        precision: str = "auto",
    ) -> None:
        from transformers import AutoTokenizer

        self.path, self.journal, self.normalize = path, journal, normalize
        self.thinking = thinking or Thinking()
        self.spec = open_model_folder(path).spec
        with loading(path):
            self.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        self.ends = end_ids(path, self.tokenizer)
        self.backend_name = backend if precision == "auto" else f"{backend} {precision}"
        self.backend = open_backend(
            backend, path, self.tokenizer, device=device, token_budget=token_budget,
            tensor_parallel=tensor_parallel, data_parallel=data_parallel, precision=precision,
        )  # fmt: skip
        self.context = self.backend.context
        self.prompts = Prompts(self.tokenizer, self.context, self.spec)
        self.start, self.model_seconds = time.monotonic(), 0.0

    @property
    def truncated(self) -> int:
        """Prompts that were cut to the context so far."""
        return self.prompts.truncated

    def check_spec(self, data: SidSpec, data_dir: Path) -> SidSpec:
        """The checkpoint's SIDs, when they are those of the data; raises `InputError` otherwise."""
        if self.spec is None:
            raise InputError(
                self.path,
                f"has no {SID_SPEC}: its vocabulary holds no SIDs",
                "expand its vocabulary, or --tasks general",
            )
        if not self.spec.same_codebooks(data):
            raise InputError(
                self.path,
                f"has codebooks {self.spec.codebook_sizes}",
                f"those of {data_dir}: {data.codebook_sizes}",
            )
        return self.spec

    def prompt_ids(
        self, conversations: Sequence[Sequence[dict[str, str]]], thinking: bool, room: int
    ) -> list[list[int]]:
        """Token ids of the prompts, each leaving ``room`` tokens of context; too long ones lose their oldest items."""
        return self.prompts.encode(conversations, thinking, room)

    def rank_items(
        self,
        prompts: Sequence[list[int]],
        index: ItemIndex,
        num_beams: int,
        label: str,
        exclude: Excluded = None,
    ) -> list[list[Hypothesis]]:
        """The best ``num_beams`` SIDs of the catalogue for every prompt, without those of its ``exclude``.

        Prompts with several thoughts (`Thoughts`) are ranked once a thought and merged by score.
        """
        assert self.spec is not None
        spec = self.spec
        variants, owner = _spread(prompts)
        banned = None if exclude is None else [exclude[i] for i in owner]
        settings = {"kind": "rank", "beams": num_beams, "normalize": self.normalize, "sids": index.digest}
        seen = [[] for _ in variants] if banned is None else [sorted(map(tuple, sids)) for sids in banned]
        keyed = [
            [*prompt, -1, *(code for sid in sids for code in sid)] for prompt, sids in zip(variants, seen, strict=True)
        ]
        ranked = self._run(
            label,
            settings,
            keyed,
            lambda done: self.backend.rank(variants, index, spec, num_beams, banned, self.normalize, done),
            pack=lambda found: [[list(h.codes), h.logprob] for h in found],
            unpack=lambda value: [
                Hypothesis(tuple(codes), score, tuple(index.pids_of(tuple(codes)))) for codes, score in value
            ],
        )
        groups: list[list[list[Hypothesis]]] = [[] for _ in prompts]
        for i, hypotheses in zip(owner, ranked, strict=True):
            groups[i].append(hypotheses)
        return [
            found[0] if len(found) == 1 else merge_thoughts(found, self.thinking.merge, num_beams) for found in groups
        ]

    def think(self, prompts: Sequence[list[int]], max_tokens: int, label: str) -> list[Thoughts]:
        """Prompts with the model's own thinking behind them, closed where it did not close itself, ready for the answer.

        The first stage of two: it ends at ``</think>`` or after ``max_tokens``; items or text follow in the second.
        """
        close = self.tokenizer.convert_tokens_to_ids(THINK_CLOSE)
        newline, tail, empty = (
            self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("\n", "\n\n", EMPTY_THINK)
        )
        variants: list[list[list[int]]] = [[] for _ in prompts]
        for stream in range(self.thinking.thoughts):
            sampling = dataclasses.replace(self.thinking.sampling, stream=stream)
            name = label if stream == 0 else f"{label} {stream + 1}"
            for i, thought in enumerate(self.generate(prompts, max_tokens, [close], name, sampling)):
                if thought and thought[-1] != close:
                    thought = [*thought, *newline, close]
                variants[i].append([*prompts[i], *([*thought, *tail] if thought else empty)])
        return [Thoughts(several) for several in variants]

    def generate(
        self,
        prompts: Sequence[list[int]],
        max_tokens: int,
        stop: Sequence[int],
        label: str,
        sampling: Sampling | None = None,
    ) -> list[list[int]]:
        """Continuations of the prompts up to and with a ``stop`` token; greedy by default.

        An answer that the model ends itself (`onerec.chat.end_ids`) comes without the token that ends it.
        """
        sampling = sampling or Sampling()
        ends = sorted({*stop, *self.ends})
        settings = {"kind": "generate", "max": max_tokens, "stop": ends, **dataclasses.asdict(sampling)}
        written = self._run(
            label, settings, prompts, lambda done: self.backend.generate(prompts, max_tokens, ends, sampling, done)
        )  # fmt: skip
        unspoken = set(self.ends) - set(stop)
        return [ids[:-1] if ids and ids[-1] in unspoken else ids for ids in written]

    def answer_logprobs(self, prompts: Sequence[list[int]], answers: Sequence[str], label: str) -> list[list[float]]:
        """Log-probability of each of ``answers`` after every prompt, [n_prompts][n_answers].

        After several thoughts: the log of the mean probability (or the best, as `Thinking` says).
        """
        variants, owner = _spread(prompts)
        coded = [self.tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
        if all(len(ids) == 1 for ids in coded):
            tokens = [ids[0] for ids in coded]
            rows = self._run(
                label, {"kind": "next", "tokens": tokens}, variants,
                lambda done: self.backend.next_logprobs(variants, tokens, done),
            )  # fmt: skip
        else:
            rows = [[] for _ in variants]
            for ids in coded:
                whole = [[*prompt, *ids] for prompt in variants]
                for row, total in zip(rows, self.text_logprobs(whole, label, [len(ids)] * len(whole)), strict=True):
                    row.append(total)
        groups: list[list[list[float]]] = [[] for _ in prompts]
        for i, row in zip(owner, rows, strict=True):
            groups[i].append(row)
        return [
            [_merged(values, len(several), self.thinking.merge) for values in zip(*several, strict=True)]
            for several in groups
        ]

    def text_logprobs(self, texts: Sequence[list[int]], label: str, last: Sequence[int] | None = None) -> list[float]:
        """Sum of the log-probabilities of the ``last`` tokens of each text (all but the first by default)."""
        counts = last or [len(ids) - 1 for ids in texts]
        keyed = [[count, *ids] for count, ids in zip(counts, texts, strict=True)]
        return self._run(label, {"kind": "tail"}, keyed, lambda done: self.backend.tail_logprobs(texts, counts, done))

    def rolling_logprobs(self, texts: Sequence[list[int]], label: str) -> list[float]:
        """Sum of the log-probabilities of all tokens of each text but its first, however long it is: by `windows`."""
        parts = [(i, *window) for i, ids in enumerate(texts) for window in windows(ids, self.context)]
        values = self.text_logprobs([ids for _, ids, _ in parts], label, [last for _, _, last in parts])
        sums = [0.0] * len(texts)
        for (i, _, _), value in zip(parts, values, strict=True):
            sums[i] += value
        return sums

    def speed_line(self) -> str:
        """How much of the time since the model was loaded was the backend's: the model and its item search."""
        total = max(time.monotonic() - self.start, 1e-9)
        share = self.model_seconds / total
        return f"time: {total:.1f} s, {self.model_seconds:.1f} s ({share:.1%}) of it in the model"

    def _run(
        self,
        label: str,
        settings: dict[str, Any],
        prompts: Sequence[Sequence[int]],
        call: Callable[[AbstractSet[int]], Finished[T]],
        pack: Callable[[T], Any] = lambda value: value,
        unpack: Callable[[Any], T] = lambda value: value,
    ) -> list[T]:
        """One phase: what the journal knows, and from the backend what it does not, written batch by batch."""
        results: list[Any] = [None] * len(prompts)
        if self.journal is None:
            for batch in progress(self._timed(call(frozenset())), label, len(prompts), "sample", size=len):
                for i, value in batch:
                    results[i] = value
            return results
        keys = work_keys({**settings, "backend": self.backend_name}, prompts)
        phase = self.journal.phase(label)
        try:
            done = {i for i, key in enumerate(keys) if key in phase.known}
            for i in done:
                results[i] = unpack(phase.known[keys[i]])
            name = f"{label} (after {len(done):,} done before)" if done else label
            left = len(prompts) - len(done)
            for batch in progress(self._timed(call(done)), name, left, "sample", size=len):
                phase.write((keys[i], pack(value)) for i, value in batch)
                for i, value in batch:
                    results[i] = value
        finally:
            phase.close()
        return results

    def _timed(self, batches: Iterator[T]) -> Iterator[T]:
        """Pass ``batches`` through; the time that each takes to come is the model's."""
        while True:
            start = time.monotonic()
            batch = next(batches, None)
            self.model_seconds += time.monotonic() - start
            if batch is None:
                return
            yield batch


def windows(ids: Sequence[int], size: int) -> list[tuple[list[int], int]]:
    """A text cut into windows of at most ``size`` tokens, each with how many of its last tokens are scored in it.

    Every token but the first is scored once. A window begins with the last token that the one before it scored, and the last one
    reaches back as far as it can: the disjoint windows by which lm-evaluation-harness takes the log-likelihood of a long text
    (``get_rolling_token_windows`` with a context of one).
    """
    found, scored = [], 1
    while scored < len(ids):
        end = min(scored + size - 1, len(ids))
        found.append((list(ids[max(0, end - size) : end]), end - scored))
        scored = end
    return found


def _spread(prompts: Sequence[list[int]]) -> tuple[list[list[int]], list[int]]:
    """Every thought of every prompt, and the prompt that each belongs to."""
    variants, owner = [], []
    for i, prompt in enumerate(prompts):
        several = [prompt, *getattr(prompt, "others", [])]
        variants += several
        owner += [i] * len(several)
    return variants, owner


def _merged(scores: Sequence[float], thoughts: int, merge: str) -> float:
    """One score of an item (or answer) from those it has after some of ``thoughts`` thoughts."""
    top = max(scores)
    if merge == "max" or thoughts == 1:
        return top
    return top + math.log(sum(math.exp(score - top) for score in scores) / thoughts)


def merge_thoughts(found: Sequence[Sequence[Hypothesis]], merge: str, keep: int) -> list[Hypothesis]:
    """The hypotheses after each thought as one ranking of at most ``keep``, best first, equal scores by SID.

    A SID that a thought's beams did not reach counts with probability 0 there.
    """
    scores: dict[tuple[int, ...], list[float]] = {}
    pids = {}
    for hypotheses in found:
        for h in hypotheses:
            scores.setdefault(h.codes, []).append(h.logprob)
            pids[h.codes] = h.pids
    merged = [Hypothesis(codes, _merged(several, len(found), merge), pids[codes]) for codes, several in scores.items()]
    return sorted(merged, key=lambda h: (-h.logprob, h.codes))[:keep]


def add_model_arguments(parser: ArgumentParser) -> None:
    """The flags of how the model is run; `open_model` reads them."""
    add = parser.add_argument
    add("--backend", choices=BACKENDS, default="hf", help="what runs the model: hf (any device) or vllm")
    add("--device", default="auto", help="hf: cpu, cuda or auto")
    add("--precision", choices=PRECISIONS, default="auto", help="auto: bf16 on a GPU, fp32 elsewhere")
    add("--token_budget", type=COUNT, default=16384, help="hf: tokens of a padded batch")
    add("--tensor_parallel", type=COUNT, default=1, help="vllm: GPUs that share one copy of the model")
    add(
        "--data_parallel",
        type=COUNT_OR_0,
        default=1,
        help="vllm: copies of the model, run by Ray (0: all GPUs)",
    )
    add("--normalize", choices=NORMALIZE, default=NORMALIZE[0], help="item scores: softmax over what")
    add("--thoughts", type=integer(1, 1024), default=1, help="thoughts a prompt, their items merged by score")
    add("--thinking_temperature", type=NOT_NEGATIVE, default=0.0, help="of the thoughts (0: greedy)")
    add(
        "--thinking_top_p",
        type=SHARE_ABOVE_0,
        default=1.0,
        help="thoughts are sampled from this share of likely tokens",
    )
    add("--overwrite", action="store_true", help="throw away what a results folder of another model holds")  # fmt: skip


def open_model(args: argparse.Namespace, journal: Journal | None) -> BenchModel:
    """The model that the flags describe; raises `InputError` where they contradict each other."""
    if args.thoughts > 1 and args.thinking_temperature <= 0:
        raise InputError(
            "--thoughts", f"{args.thoughts} greedy thoughts are all the same", "set --thinking_temperature, as 0.6"
        )  # fmt: skip
    sampling = Sampling(args.thinking_temperature, args.thinking_top_p, args.seed)
    return BenchModel(
        args.model_path, args.device, args.token_budget, args.backend, journal,
        Thinking(args.thoughts, sampling), args.normalize, args.tensor_parallel, args.data_parallel,
        args.precision,
    )  # fmt: skip
