"""verl's vLLM server with the item stage in it, as the rollout ``onerec_vllm``."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import ray
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica

from onerec.items.search import Found

# How long a search waits for others to share its forward passes, in seconds, and how many share at most.
_GATHER_SECONDS = 0.01
_GATHER_PROMPTS = 64


@dataclasses.dataclass
class _Waiting:
    prompt: list[int]
    catalogue: str | None
    width: int
    seed: int | None
    temperature: float
    answer: asyncio.Future[list[Found]]


class OneRecServer(vLLMHttpServer):
    """A vLLM server that also finds items; searches that come together share their forward passes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waiting: list[_Waiting] = []
        self._searcher: asyncio.Task[None] | None = None

    def _get_worker_extension_cls(self) -> str:
        return "verl_rl.worker.OneRecWorkerExtension"

    async def find_items(
        self, prompt_ids: list[int], catalogue: str | None, width: int, seed: int | None, temperature: float
    ) -> tuple[list[Found], int | None]:
        """The items behind ``prompt_ids``, which end in the SID's begin token, and the version of the weights.

        catalogue: pid2sid.parquet, or None for any tokens. seed: None for beam search, otherwise ``width`` draws.
        """
        answer: asyncio.Future[list[Found]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(list(prompt_ids), catalogue, width, seed, temperature, answer))
        if self._searcher is None or self._searcher.done():
            self._searcher = asyncio.create_task(self._search())
        return await answer, self.global_steps

    async def load_merged(self, checkpoints: str, base_model: str, merge_ratio: float) -> None:
        """Serve the average of the newest checkpoint and the base model from now on."""
        await self.engine.collective_rpc("onerec_load_merged", args=(checkpoints, base_model, merge_ratio))
        await self.clear_kv_cache()

    async def _search(self) -> None:
        while self._waiting:
            await asyncio.sleep(_GATHER_SECONDS)
            batch, self._waiting = self._waiting[:_GATHER_PROMPTS], self._waiting[_GATHER_PROMPTS:]
            each = [(one.prompt, one.catalogue, one.width, one.seed) for one in batch]
            args = (*map(list, zip(*each, strict=True)), batch[0].temperature, self.model_config.local_path)
            try:
                answers = await self.engine.collective_rpc("onerec_find_items", args=args)
                # Tensor-parallel workers all searched, and found the same.
                for one, items in zip(batch, answers[0], strict=True):
                    one.answer.set_result([Found(tuple(ids), tuple(lps), float(sum(lps))) for ids, lps in items])
            except Exception as error:  # whoever waits is told; the searches that come next are tried again
                for one in batch:
                    if not one.answer.done():
                        one.answer.set_exception(error)


class OneRecReplica(vLLMReplica):
    """A replica of `OneRecServer`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(OneRecServer)

    def _get_server_name_prefix(self) -> str:
        return "onerec_vllm_"
