"""A checkpoint under test, and what the benchmark asks of it: rank items, weigh two answers, answer, score text.

`BenchModel` owns tokens and thinking; a backend runs the model, behind the journal where there is one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.backends import BACKENDS, open_backend
from benchmarks.backends.base import PRECISIONS, Also, Excluded, Finished, Sampling, Stopwatch
from benchmarks.journal import Journal, JournaledBackend
from benchmarks.prompts import Prompts
from onerec.catalog import ItemIndex
from onerec.errors import InputError
from onerec.files import SID_SPEC
from onerec.flags import COUNT, COUNT_OR_0, NOT_NEGATIVE, SHARE_ABOVE_0, ArgumentParser
from onerec.items.item import NORMALIZE, Item
from onerec.model_folder import loading, open_model_folder
from onerec.sid import SidSpec
from onerec.startup import load_transformers

T = TypeVar("T")
GREEDY = Sampling()


class BenchModel:
    """A causal language model with its tokenizer and, where it has SIDs, its `SidSpec`.

    ``sampling`` is how it thinks; answers are greedy. ``options`` are those of `open_backend`.
    """

    def __init__(
        self,
        path: Path,
        backend: str = "hf",
        journal: Journal | None = None,
        sampling: Sampling = GREEDY,
        normalize: str = "vocabulary",
        precision: str = "auto",
        **options: Any,
    ) -> None:
        self.path, self.journal, self.sampling, self.normalize = path, journal, sampling, normalize
        opened = open_model_folder(path)
        self.spec, self.renderer = opened.spec, opened.renderer
        with loading(path):
            self.tokenizer = load_transformers().AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        self.ends = self.renderer.end_ids(path, self.tokenizer)
        self.backend_name = backend if precision == "auto" else f"{backend} {precision}"
        self.backend = Stopwatch(open_backend(backend, path, self.tokenizer, precision=precision, **options))
        self.context = self.backend.context
        self.prompts = Prompts(self.tokenizer, self.context, self.spec, self.renderer)
        self.start = time.monotonic()

    @property
    def truncated(self) -> int:
        """Prompts that were cut to the context so far."""
        return self.prompts.truncated

    def check_spec(self, data: SidSpec, data_dir: Path) -> SidSpec:
        """The checkpoint's SIDs, when they are those of the data; raises `InputError` otherwise."""
        if self.spec is None:
            what = f"has no {SID_SPEC}: its vocabulary holds no SIDs"
            raise InputError(self.path, what, "expand its vocabulary, or --tasks general")
        if not self.spec.same_codebooks(data):
            what = f"has codebooks {self.spec.codebook_sizes}"
            raise InputError(self.path, what, f"those of {data_dir}: {data.codebook_sizes}")
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
        also: Also = None,
    ) -> list[list[Item]]:
        """The best ``num_beams`` SIDs of the catalogue for every prompt, and those of ``also``, without ``exclude``."""
        assert self.spec is not None
        batches = self._phase(label).rank(prompts, index, self.spec, num_beams, exclude, self.normalize, also=also)
        return _in_order(batches, len(prompts))

    def think(self, prompts: Sequence[list[int]], max_tokens: int, label: str) -> list[list[int]]:
        """Prompts with the model's thinking behind them, closed where it did not close itself, ready for the answer.

        The first stage of two: it ends at ``</think>`` or after ``max_tokens``; items or text follow in the second.
        """
        think = self.renderer.think_ids(self.tokenizer)
        whole = []
        thoughts = self.generate(prompts, max_tokens, [think.close], label, self.sampling)
        for prompt, thought in zip(prompts, thoughts, strict=True):
            if thought and thought[-1] != think.close:
                thought = [*thought, *think.before_close, think.close]
            whole.append([*prompt, *([*thought, *think.after_close] if thought else think.empty)])
        return whole

    def generate(
        self,
        prompts: Sequence[list[int]],
        max_tokens: int,
        stop: Sequence[int],
        label: str,
        sampling: Sampling = GREEDY,
    ) -> list[list[int]]:
        """Continuations of the prompts up to and with a ``stop`` token.

        An answer that the model ends itself (`Renderer.end_ids`) comes without the token that ends it.
        """
        batches = self._phase(label).generate(prompts, max_tokens, sorted({*stop, *self.ends}), sampling)
        unspoken = set(self.ends) - set(stop)
        return [ids[:-1] if ids and ids[-1] in unspoken else ids for ids in _in_order(batches, len(prompts))]

    def answer_logprobs(self, prompts: Sequence[list[int]], answers: Sequence[str], label: str) -> list[list[float]]:
        """Log-probability of each of ``answers`` after every prompt, [n_prompts][n_answers]."""
        coded = [self.tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
        if all(len(ids) == 1 for ids in coded):
            batches = self._phase(label).next_logprobs(prompts, [ids[0] for ids in coded])
            return _in_order(batches, len(prompts))
        columns = [
            self.text_logprobs([[*prompt, *ids] for prompt in prompts], label, [len(ids)] * len(prompts))
            for ids in coded
        ]
        return [list(row) for row in zip(*columns, strict=True)]

    def text_logprobs(self, texts: Sequence[list[int]], label: str, last: Sequence[int]) -> list[float]:
        """Sum of the log-probabilities of the ``last`` tokens of each text."""
        return _in_order(self._phase(label).tail_logprobs(texts, last), len(texts))

    def rolling_logprobs(self, texts: Sequence[list[int]], label: str) -> list[float]:
        """Sum of the log-probabilities of all tokens of each text but its first, of any length: by `windows`."""
        parts = [(i, *window) for i, ids in enumerate(texts) for window in windows(ids, self.context)]
        values = self.text_logprobs([ids for _, ids, _ in parts], label, [last for _, _, last in parts])
        sums = [0.0] * len(texts)
        for (i, _, _), value in zip(parts, values, strict=True):
            sums[i] += value
        return sums

    def speed_line(self) -> str:
        """How much of the time since the model was loaded was the backend's: the model and its item search."""
        total, inside = max(time.monotonic() - self.start, 1e-9), self.backend.seconds
        return f"time: {total:.1f} s, {inside:.1f} s ({inside / total:.1%}) of it in the model"

    def _phase(self, label: str) -> JournaledBackend:
        phase = self.journal.phase(label) if self.journal else None
        return JournaledBackend(self.backend, phase, label, self.backend_name)


def _in_order(batches: Finished[T], n: int) -> list[T]:
    """The values of all batches, by the index of their prompt."""
    found = dict(pair for batch in batches for pair in batch)
    return [found[i] for i in range(n)]


def windows(ids: Sequence[int], size: int) -> list[tuple[list[int], int]]:
    """A text cut into windows of at most ``size`` tokens, each with how many of its last tokens are scored in it.

    Every token but the first is scored once. A window begins with the last token that the one before it scored, and
    the last one reaches back as far as it can: the disjoint windows by which lm-evaluation-harness takes the
    log-likelihood of a long text (``get_rolling_token_windows`` with a context of one).
    """
    found, scored = [], 1
    while scored < len(ids):
        end = min(scored + size - 1, len(ids))
        found.append((list(ids[max(0, end - size) : end]), end - scored))
        scored = end
    return found


def add_model_arguments(parser: ArgumentParser) -> None:
    """The flags of how the model is run; `open_model` reads them."""
    add = parser.add_argument
    add("--backend", choices=BACKENDS, default="hf", help="what runs the model: hf (any device) or vllm")
    add("--device", default="auto", help="hf: cpu, cuda or auto")
    add("--precision", choices=PRECISIONS, default="auto", help="auto: bf16 on a GPU, fp32 elsewhere")
    add("--token_budget", type=COUNT, default=16384, help="tokens of a batch; vLLM sizes those of text itself")
    add("--tensor_parallel", type=COUNT, default=1, help="vllm: GPUs that share one copy of the model")
    add("--data_parallel", type=COUNT_OR_0, default=1, help="vllm: copies of the model, run by Ray (0: all GPUs)")
    add("--normalize", choices=NORMALIZE, default=NORMALIZE[0], help="item scores: softmax over what")
    add("--thinking_temperature", type=NOT_NEGATIVE, default=0.0, help="of the thinking (0: greedy)")
    add("--thinking_top_p", type=SHARE_ABOVE_0, default=1.0, help="share of likely tokens that thinking is drawn from")
    add("--overwrite", action="store_true", help="throw away what a results folder of another model holds")


def open_model(args: argparse.Namespace, journal: Journal) -> BenchModel:
    """The model that the flags describe."""
    options = ("backend", "normalize", "precision", "device", "token_budget", "tensor_parallel", "data_parallel")
    sampling = Sampling(args.thinking_temperature, args.thinking_top_p, args.seed)
    given = {name: getattr(args, name) for name in options}
    return BenchModel(args.model_path, journal=journal, sampling=sampling, **given)
