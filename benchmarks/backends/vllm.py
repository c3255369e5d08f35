"""The vLLM backend: continuous batching, tensor parallel, and data parallel by Ray; on a CPU with a CPU build of vLLM.

Items are decoded level by level: one request a beam for one token, its children in the trie as the only ones that can
follow (`benchmarks.backends.vllm_logits`); the prompt's keys and values come from vLLM's prefix cache. Scores are
those of `onerec.items.search`, up to the rounding of vLLM's kernels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks.backends.base import NONE, Excluded, Finished, Known, Sampling, dtype_of
from onerec.catalog import ItemIndex
from onerec.errors import InputError
from onerec.items.item import Item
from onerec.items.search import dead_nodes
from onerec.run import ROOT, read_json
from onerec.sid import SidSpec

T = TypeVar("T")
# Prompts handed to an engine at a time: what is written at once, and lost when a run is killed.
_BATCH = 256
_PROCESSOR = "benchmarks.backends.vllm_logits:TrieLogits"
# KV cache of a CPU engine where the environment does not say (GiB); vLLM would take 40 % of the memory, whatever is
# free.
_CPU_CACHE_GIB = "1"


class Engine:
    """One copy of the model in one vLLM engine, in this process or in a Ray actor."""

    def __init__(self, path: str, tensor_parallel: int = 1, precision: str = "auto") -> None:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", _CPU_CACHE_GIB)
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        # vLLM's second model runner (a GPU's default for some models) takes no logits processors of others.
        os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
        import torch
        from vllm import LLM

        gpu = torch.cuda.is_available()
        self.llm = LLM(
            model=path,
            trust_remote_code=False,
            load_format="safetensors",
            skip_tokenizer_init=True,
            tensor_parallel_size=tensor_parallel,
            enable_prefix_caching=True,
            dtype=str(dtype_of(precision, gpu)).removeprefix("torch."),
            enforce_eager=not gpu,
            max_logprobs=-1,
            logprobs_mode="processed_logprobs",
            logits_processors=[_PROCESSOR],
            disable_log_stats=True,
            hf_overrides={"head_dtype": "float32"},  # as `onerec.items.model.float32_logits`, and why
        )

    def generate(
        self, prompts: Sequence[list[int]], max_tokens: int, stop: Sequence[int], sampling: Sampling
    ) -> list[list[int]]:
        """Continuations, up to and with a stop token."""
        common = {"max_tokens": max_tokens, "stop_token_ids": list(stop)}
        common |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
        asked = [{**common, "seed": sampling.key(prompt) % (1 << 31)} for prompt in prompts]
        return [list(out.outputs[0].token_ids) for out in self._ask(prompts, asked)]

    def next_logprobs(self, prompts: Sequence[list[int]], tokens: Sequence[int]) -> list[list[float]]:
        """Log-probabilities of ``tokens`` after every prompt."""
        distinct = list(dict.fromkeys(tokens))
        asked = [_one_of(distinct, _unlike(distinct), len(distinct))] * len(prompts)
        found = [out.outputs[0].logprobs[0] for out in self._ask(prompts, asked)]
        return [[row[token].logprob for token in tokens] for row in found]

    def tail_logprobs(self, texts: Sequence[list[int]], last: Sequence[int]) -> list[float]:
        """Sums of the log-probabilities of the texts' last tokens."""
        # vLLM always generates a token, for which the longest text leaves no room: its last token is scored as that
        # one.
        asked = [{**_one_of([text[-1]], _unlike([text[-1]]), 1), "prompt_logprobs": 0} for text in texts]
        sums = []
        for text, count, out in zip(texts, last, self._ask([t[:-1] for t in texts], asked), strict=True):
            total = out.outputs[0].logprobs[0][text[-1]].logprob
            first = len(text) - count
            rows = out.prompt_logprobs[first:]
            sums.append(total + sum(row[t].logprob for row, t in zip(rows, text[first:-1], strict=True)))
        return sums

    def rank(
        self,
        prompts: Sequence[list[int]],
        index: ItemIndex,
        spec: SidSpec,
        num_beams: int,
        exclude: Excluded,
        normalize: str,
    ) -> list[list[tuple[float, int]]]:
        """For every prompt (log-probability, row of the catalogue) of its hypotheses, best first."""
        dead = dead_nodes(index, exclude) if exclude is not None and any(map(len, exclude)) else None
        beams: list[list[tuple[float, int, list[int]]]] = [[(0.0, 0, [])] for _ in prompts]
        for depth, level in enumerate(index.levels):
            first, last = spec.layer_ranges[depth]
            within = None if normalize == "vocabulary" else [first, last]
            requests, asked, owner, nodes = [], [], [], []
            for i, prompt in enumerate(prompts):
                for score, node, tokens in beams[i]:
                    children = np.arange(level.start[node], level.start[node + 1])
                    if dead is not None:
                        children = children[~np.isin(i * len(level.code) + children, dead[depth])]
                    if not len(children):
                        continue
                    ids = (level.code[children] + first).tolist()
                    requests.append([*prompt, spec.begin_id, *tokens])
                    asked.append(_one_of(ids, spec.begin_id, min(len(ids), num_beams), within))
                    owner.append((i, score, tokens))
                    nodes.append(dict(zip(ids, children.tolist(), strict=True)))
            grown: list[list[tuple[float, int, list[int]]]] = [[] for _ in prompts]
            for (i, score, tokens), known, out in zip(owner, nodes, self._ask(requests, asked), strict=True):
                for token, value in out.outputs[0].logprobs[0].items():
                    if token in known:
                        grown[i].append((score + value.logprob, known[token], [*tokens, token]))
            beams = [sorted(row, key=lambda b: (-b[0], b[1]))[:num_beams] for row in grown]
        return [[(score, node) for score, node, _ in row] for row in beams]

    def _ask(self, prompts: Sequence[list[int]], asked: Sequence[dict[str, Any]]) -> list[Any]:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        if not prompts:
            return []
        return self.llm.generate(
            [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts],
            [SamplingParams(detokenize=False, **values) for values in asked],
            use_tqdm=False,
        )


def _one_of(tokens: Sequence[int], rest: int, best: int, within: Sequence[int] | None = None) -> dict[str, Any]:
    """Sampling parameters that give the log-probabilities of the ``best`` most likely of ``tokens`` (see `TrieLogits`).

    One more is asked for: ``rest``, which carries the others' mass, may be among the most likely.
    """
    return {
        "max_tokens": 1,
        "temperature": 0.0,
        "logprobs": best + 1,
        "extra_args": {"children": list(tokens), "rest": rest, "within": within},
    }


def _unlike(tokens: Sequence[int]) -> int:
    """The smallest id that is none of ``tokens``."""
    return next(i for i in range(len(tokens) + 1) if i not in tokens)


class VllmBackend:
    """One engine here, or ``data_parallel`` of them as Ray actors that take batches as they are free (0: all GPUs)."""

    def __init__(self, path: Path, tensor_parallel: int = 1, data_parallel: int = 1, precision: str = "auto") -> None:
        config = read_json(path / "config.json")
        self.context = int(config.get("max_position_embeddings", 1 << 30))
        self.engine: Engine | None = None
        self.actors: list[Any] = []
        if data_parallel == 1:
            self.engine = Engine(str(path), tensor_parallel, precision)
            return
        import ray
        import torch

        gpus = torch.cuda.device_count()
        copies = data_parallel or gpus // tensor_parallel
        if gpus and (copies < 1 or copies * tensor_parallel > gpus):
            what = f"{copies} copies of {tensor_parallel} GPUs, and there are {gpus}"
            raise InputError("--data_parallel", what, "fewer")
        if not gpus and not data_parallel:
            raise InputError("--data_parallel", "0 means all GPUs, and there are none", "a number of copies")
        ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False)
        # A cluster that was started before would import what its environment was installed from.
        code = {"env_vars": {"PYTHONPATH": str(ROOT)}}
        actor = ray.remote(num_gpus=tensor_parallel if gpus else 0, num_cpus=1, runtime_env=code)(Engine)
        self.actors = [actor.remote(str(path.resolve()), tensor_parallel, precision) for _ in range(copies)]

    def generate(
        self,
        prompts: Sequence[list[int]],
        max_tokens: int,
        stop: Collection[int],
        sampling: Sampling,
        done: Known = NONE,
    ) -> Finished[list[int]]:
        """See `Backend.generate`."""
        more = (max_tokens, sorted(stop), sampling)
        return self._spread(len(prompts), done, lambda batch: ("generate", [prompts[i] for i in batch], *more))

    def rank(
        self,
        prompts: Sequence[list[int]],
        index: ItemIndex,
        spec: SidSpec,
        num_beams: int,
        exclude: Excluded = None,
        normalize: str = "vocabulary",
        done: Known = NONE,
    ) -> Finished[list[Item]]:
        """See `Backend.rank`."""
        catalogue: Any = index
        if self.actors:
            import ray

            catalogue = ray.put(index)

        def call(batch: list[int]) -> tuple[Any, ...]:
            banned = exclude and [exclude[i] for i in batch]
            return "rank", [prompts[i] for i in batch], catalogue, spec, num_beams, banned, normalize

        def hypothesis(score: float, row: int) -> Item:
            return Item(tuple(map(int, index.sids[row])), score, tuple(index.pids_at(row)))

        for batch in self._spread(len(prompts), done, call):
            yield [(i, [hypothesis(*found) for found in rows]) for i, rows in batch]

    def next_logprobs(
        self, prompts: Sequence[list[int]], tokens: Sequence[int], done: Known = NONE
    ) -> Finished[list[float]]:
        """See `Backend.next_logprobs`."""
        wanted = list(tokens)
        return self._spread(len(prompts), done, lambda batch: ("next_logprobs", [prompts[i] for i in batch], wanted))

    def tail_logprobs(self, texts: Sequence[list[int]], last: Sequence[int], done: Known = NONE) -> Finished[float]:
        """See `Backend.tail_logprobs`."""

        def call(batch: list[int]) -> tuple[Any, ...]:
            return "tail_logprobs", [texts[i] for i in batch], [last[i] for i in batch]

        return self._spread(len(texts), done, call)

    def _spread(
        self, n: int, done: Known, call: Callable[[list[int]], tuple[Any, ...]]
    ) -> Iterator[list[tuple[int, Any]]]:
        """Batches of prompts through the engines; each is yielded when it is finished."""
        batches = [list(range(at, min(at + _BATCH, n))) for at in range(0, n, _BATCH)]
        batches = [batch for batch in batches if not done.issuperset(batch)]
        if self.engine is not None:
            for batch in batches:
                name, *arguments = call(batch)
                yield list(zip(batch, getattr(self.engine, name)(*arguments), strict=True))
            return
        import ray

        waiting, running = list(reversed(batches)), {}
        idle = list(self.actors)
        while waiting or running:
            while waiting and idle:
                batch, actor = waiting.pop(), idle.pop()
                name, *arguments = call(batch)
                running[getattr(actor, name).remote(*arguments)] = (batch, actor)
            [ready], _ = ray.wait(list(running))
            batch, actor = running.pop(ready)
            idle.append(actor)
            yield list(zip(batch, ray.get(ready), strict=True))
