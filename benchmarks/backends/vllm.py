"""The vLLM backend: text with continuous batching, tensor parallel, data parallel by Ray; on a CPU with a CPU build.

vLLM writes text and thoughts; items are found by the engine of `onerec.items`, with the same checkpoint, as GRPO's
rollout does it (`verl_rl.server`). Each is started by the first question for it: ranking without thinking starts no
vLLM. Both lie on one GPU, so that vLLM takes what the engine leaves of it; with ``tensor_parallel`` the engine lies on
the first GPU of its copy.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from benchmarks.backends.base import NONE, Also, Excluded, Finished, Known, Sampling, dtype_of
from onerec.catalog import ItemIndex
from onerec.distributed.tasks import start
from onerec.errors import InputError
from onerec.files import SID_SPEC
from onerec.items.item import Item
from onerec.model_folder import read_config
from onerec.qwen3 import GIB, check_engine_fits, engine_bytes, shape_of, weights
from onerec.run import ROOT, read_json
from onerec.sid import SidSpec

if TYPE_CHECKING:
    from onerec.items.model import ItemModel

T = TypeVar("T")
# Prompts handed to an engine at a time: what is written at once, and lost when a run is killed.
_BATCH = 256
# KV cache of a CPU engine where the environment does not say (GiB); vLLM would take 40 % of the memory, whatever is
# free.
_CPU_CACHE_GIB = "1"
# Of a GPU's memory, for vLLM and the item engine together; what vLLM needs at least beside its weights.
_SHARE, _VLLM_LEAST = 0.9, 2 * GIB


def vllm_share(path: Path, tensor_parallel: int, memory: int, tokens: int, width: int = 2) -> float:
    """The share of a GPU with ``memory`` bytes that vLLM may take: what the item engine of the same model leaves.

    A model without SIDs needs no engine. ``tokens``: of the engine's batches. ``width``: bytes of a number. Raises
    `InputError` where both do not fit.
    """
    if not (path / SID_SPEC).is_file():
        return _SHARE
    shape = shape_of(read_config(path))
    least = width * weights(shape) // tensor_parallel + _VLLM_LEAST
    check_engine_fits(path, shape, int(_SHARE * memory), tokens, width, least)
    return _SHARE - engine_bytes(shape, tokens, width) / memory


class Engine:
    """One copy of the model in one vLLM engine, in this process or in a Ray actor."""

    def __init__(self, path: str, tensor_parallel: int = 1, precision: str = "auto", token_budget: int = 16384) -> None:
        self.path, self.tensor_parallel, self.token_budget = Path(path), tensor_parallel, token_budget
        self.precision, self.index = precision, None

    @functools.cached_property
    def share(self) -> float | None:
        """See `vllm_share`; None on a CPU."""
        import torch

        if not torch.cuda.is_available():
            return None
        memory = torch.cuda.get_device_properties(0).total_memory
        width = dtype_of(self.precision, True).itemsize
        return vllm_share(self.path, self.tensor_parallel, memory, self.token_budget, width)

    @functools.cached_property
    def llm(self) -> Any:
        """vLLM, which the first question for text starts."""
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", _CPU_CACHE_GIB)
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        import torch
        from vllm import LLM

        gpu = torch.cuda.is_available()
        if gpu:
            torch.cuda.empty_cache()  # vLLM counts what the item engine holds and does not use as taken
        return LLM(
            model=str(self.path),
            trust_remote_code=False,
            load_format="safetensors",
            skip_tokenizer_init=True,
            tensor_parallel_size=self.tensor_parallel,
            enable_prefix_caching=True,
            dtype=str(dtype_of(self.precision, gpu)).removeprefix("torch."),
            enforce_eager=not gpu,
            logprobs_mode="raw_logprobs",
            disable_log_stats=True,
            hf_overrides={"head_dtype": "float32"},  # as `onerec.items.model.float32_logits`, and why
            **({"gpu_memory_utilization": self.share} if gpu else {}),
        )

    @functools.cached_property
    def items(self) -> ItemModel:
        """The item engine, which the first question for items loads."""
        import torch

        from onerec.items.model import ItemModel

        gpu = torch.cuda.is_available()
        device = "cuda:0" if gpu else "cpu"
        return ItemModel.open(self.path, SidSpec.load(self.path), device, dtype_of(self.precision, gpu))

    def use(self, index: ItemIndex) -> None:
        """Search this catalogue from now on: an actor takes it once, not with each batch."""
        self.index = index

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
        asked = [_forced(token) for token in distinct] * len(prompts)
        repeated = [prompt for prompt in prompts for _ in distinct]
        found = [_logprob(out) for out in self._ask(repeated, asked)]
        rows = (found[at : at + len(distinct)] for at in range(0, len(found), len(distinct)))
        known = (dict(zip(distinct, row, strict=True)) for row in rows)
        return [[row[token] for token in tokens] for row in known]

    def tail_logprobs(self, texts: Sequence[list[int]], last: Sequence[int]) -> list[float]:
        """Sums of the log-probabilities of the texts' last tokens."""
        # vLLM always generates a token, for which the longest text leaves no room: its last token is scored as that
        # one.
        asked = [{**_forced(text[-1]), "prompt_logprobs": 0} for text in texts]
        sums = []
        for text, count, out in zip(texts, last, self._ask([t[:-1] for t in texts], asked), strict=True):
            first = len(text) - count
            rows = out.prompt_logprobs[first:]
            sums.append(_logprob(out) + sum(row[t].logprob for row, t in zip(rows, text[first:-1], strict=True)))
        return sums

    def rank(
        self, prompts: Sequence[list[int]], num_beams: int, exclude: Excluded, normalize: str, also: Also
    ) -> list[list[Item]]:
        """The best SIDs of the catalogue in `use`, and those of ``also``."""
        from onerec.items.search import find_items

        begun = [[*prompt, self.items.spec.begin_id] for prompt in prompts]
        budget = self.token_budget
        return find_items(self.items, begun, self.index, num_beams, budget, exclude, normalize, also=also)

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


def _forced(token: int) -> dict[str, Any]:
    """Sampling parameters that write ``token``, whose log-probability is that of the whole softmax (raw)."""
    return {"max_tokens": 1, "temperature": 0.0, "logprobs": 0, "allowed_token_ids": [token]}


def _logprob(out: Any) -> float:
    """The log-probability of an answer's only token."""
    [row] = out.outputs[0].logprobs
    [value] = row.values()
    return value.logprob


class VllmBackend:
    """One engine here, or ``data_parallel`` of them as Ray actors that take batches as they are free (0: all GPUs)."""

    def __init__(
        self,
        path: Path,
        tensor_parallel: int = 1,
        data_parallel: int = 1,
        precision: str = "auto",
        token_budget: int = 16384,
    ) -> None:
        config = read_json(path / "config.json")
        self.context = int(config.get("max_position_embeddings", 1 << 30))
        self.engine: Engine | None = None
        self.actors: list[Any] = []
        settings = (str(path.resolve()), tensor_parallel, precision, token_budget)
        if data_parallel == 1:
            self.engine = Engine(*settings)
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
        start(ray, ignore_reinit_error=True, include_dashboard=False, log_to_driver=False)
        # A cluster that was started before would import what its environment was installed from.
        code = {"env_vars": {"PYTHONPATH": str(ROOT)}}
        actor = ray.remote(num_gpus=tensor_parallel if gpus else 0, num_cpus=1, runtime_env=code)(Engine)
        self.actors = [actor.remote(*settings) for _ in range(copies)]

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
        also: Also = None,
    ) -> Finished[list[Item]]:
        """See `Backend.rank`."""
        if self.engine is not None:
            self.engine.use(index)
        else:
            import ray

            shared = ray.put(index)
            ray.get([actor.use.remote(shared) for actor in self.actors])

        def call(batch: list[int]) -> tuple[Any, ...]:
            banned = exclude and [exclude[i] for i in batch]
            more = None if also is None else [also[i] for i in batch]
            return "rank", [prompts[i] for i in batch], num_beams, banned, normalize, more

        return self._spread(len(prompts), done, call)

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
            try:
                values = ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, InputError) else error) from None
            yield list(zip(batch, values, strict=True))
