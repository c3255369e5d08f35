"""The item engine as a verl rollout: a server beside every training process, with its weights, that finds items.

Alone it is the rollout ``onerec_items``, for answers without thinking, where no vLLM is started. Beside vLLM, which
writes the thoughts, it is the second half of the rollout ``onerec_vllm`` (`verl_rl.server`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import torch
from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.utils import ensure_async_iterator

from onerec.catalog import ItemIndex
from onerec.items.item import Draws, Item
from onerec.items.model import ItemModel
from onerec.items.search import find_items
from onerec.qwen3 import check_engine_fits, shape_of
from onerec.sid import SidSpec
from onerec.verl.server import Replica, Together, WeightServer
from verl_rl.settings import ITEM_TOKENS

# The key of sampling parameters that asks for items, and that of an answer's extra fields with them.
ITEMS = "items"


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is wanted behind a prompt that ends in the SID's begin token.

    catalogue: a pid2sid.parquet, or None for any tokens. seed: None for the ``width`` best, otherwise as many draws at
    ``temperature``.
    """

    catalogue: str | None
    width: int
    seed: int | None
    temperature: float

    @property
    def alike(self) -> tuple[Any, ...]:
        """What prompts of one search have in common."""
        return self.catalogue, self.width, self.seed is None, self.temperature


@functools.lru_cache(maxsize=16)
def _index(path: str, model: str) -> ItemIndex:
    return ItemIndex.load(path, SidSpec.load(model))


class ItemServer(WeightServer):
    """The item engine of one GPU (or CPU process)."""

    def __init__(self, model: str, dtype: str, devices: str, settings: Any = None) -> None:
        super().__init__(model, dtype, devices, settings)
        self.spec = SidSpec.load(model)
        if devices:
            memory = torch.cuda.get_device_properties(0).total_memory
            check_engine_fits(model, shape_of(self.config), memory, ITEM_TOKENS, self.dtype.itemsize)
        self.engine: ItemModel | None = None
        self._together = Together(self._find)

    def use(self) -> None:
        """See `WeightServer.use`."""
        if self.engine is None:
            self.engine = ItemModel(self.config, self.spec, self.weights)
        else:
            self.engine.load(self.weights)

    def drop(self) -> None:
        """See `WeightServer.drop`."""
        self.engine = None

    async def generate(
        self, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any
    ) -> TokenOutput:
        """The items that ``sampling_params[ITEMS]`` (a `Wanted`) asks for, in the answer's ``extra_fields[ITEMS]``.

        Searches that come together share their forward passes.
        """
        wanted = sampling_params[ITEMS]
        found = await self._together.ask((list(prompt_ids), wanted), wanted.alike)
        return TokenOutput(token_ids=[], extra_fields={ITEMS: found, "global_steps": self.global_steps})

    def _find(self, batch: Sequence[tuple[list[int], Wanted]]) -> list[list[Item]]:
        if self.engine is None:
            raise RuntimeError("the item engine has no weights yet")
        first = batch[0][1]
        index = None if first.catalogue is None else _index(first.catalogue, self.path)
        draws = None if first.seed is None else Draws([wanted.seed for _, wanted in batch], first.temperature)
        prompts = [prompt for prompt, _ in batch]
        return find_items(self.engine, prompts, index, first.width, ITEM_TOKENS, draws=draws)


class ItemReplica(Replica):
    """A replica of the rollout ``onerec_items``: one `ItemServer`."""

    server = ItemServer


async def send_to_all(weights: Any, *senders: Callable[[AsyncIterator[tuple[str, torch.Tensor]]], Any]) -> None:
    """One stream of tensors for several senders; the next tensor is made when all have done with the one before."""
    queues: list[asyncio.Queue[tuple[str, torch.Tensor] | None]] = [asyncio.Queue(1) for _ in senders]

    async def read(queue: asyncio.Queue[tuple[str, torch.Tensor] | None]) -> AsyncIterator[tuple[str, torch.Tensor]]:
        while (pair := await queue.get()) is not None:
            yield pair
            queue.task_done()

    async def pump() -> None:
        async for pair in ensure_async_iterator(weights):
            for queue in queues:
                await queue.put(pair)
            for queue in queues:
                await queue.join()
        for queue in queues:
            await queue.put(None)

    await asyncio.gather(pump(), *(send(read(queue)) for send, queue in zip(senders, queues, strict=True)))
