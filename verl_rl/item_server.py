"""The item engine as a verl rollout: a server beside every training process, with its weights, that finds items.

Alone it is the rollout ``onerec_items``, for answers without thinking, where no vLLM is started. Beside vLLM, which
writes the thoughts, it is the second half of the rollout ``onerec_vllm`` (`verl_rl.server`). Weights come from the
training process of the same GPU in parts: by CUDA IPC, or on a CPU through Ray. (verl's own sender would import vLLM,
which costs every process of a run many seconds.)
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import ray
import torch
from torch.multiprocessing.reductions import reduce_tensor
from verl.plugin.platform import get_platform
from verl.utils.device import get_resource_name
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput
from verl.workers.rollout.utils import ensure_async_iterator

from onerec.catalog import ItemIndex
from onerec.errors import InputError
from onerec.items.item import Draws, Item
from onerec.items.model import ItemModel
from onerec.items.search import find_items
from onerec.model_folder import needed_tensors, read_config
from onerec.qwen3 import check_engine_fits, shape_of
from onerec.sid import SidSpec
from onerec.verl.export import merged_weights
from verl_rl.settings import ITEM_TOKENS

# The key of sampling parameters that asks for items, and that of an answer's extra fields with them.
ITEMS = "items"
# How long a search waits for others to share its forward passes, in seconds, and how many share at most.
_GATHER_SECONDS = 0.01
_GATHER_PROMPTS = 256


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


class ItemServer:
    """Ray actor: the engine of one GPU (or CPU process). It has no weights before the first `renew`, nor while it
    sleeps.

    devices: what of the node's GPUs it sees; empty on a CPU.
    """

    def __init__(self, model: str, dtype: str, devices: str) -> None:
        if devices:
            os.environ["CUDA_VISIBLE_DEVICES"] = devices
        self.path, self.spec, self.dtype = model, SidSpec.load(model), getattr(torch, dtype)
        self.config = read_config(model)
        self.device = torch.device("cuda", 0) if devices else torch.device("cpu")
        if devices:
            memory = torch.cuda.get_device_properties(0).total_memory
            check_engine_fits(model, shape_of(self.config), memory, ITEM_TOKENS, self.dtype.itemsize)
        self.weights: dict[str, torch.Tensor] = {}
        self.taken: set[str] = set()
        self.engine: ItemModel | None = None
        self.global_steps: int | None = None
        self._waiting: list[tuple[list[int], Wanted, asyncio.Future[list[Item]]]] = []
        self._searcher: asyncio.Task[None] | None = None

    async def generate(
        self, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any
    ) -> TokenOutput:
        """The items that ``sampling_params[ITEMS]`` (a `Wanted`) asks for, in the answer's ``extra_fields[ITEMS]``.

        Searches that come together share their forward passes.
        """
        answer: asyncio.Future[list[Item]] = asyncio.get_running_loop().create_future()
        self._waiting.append((list(prompt_ids), sampling_params[ITEMS], answer))
        if self._searcher is None or self._searcher.done():
            self._searcher = asyncio.create_task(self._search())
        return TokenOutput(token_ids=[], extra_fields={ITEMS: await answer, "global_steps": self.global_steps})

    async def _search(self) -> None:
        while self._waiting:
            await asyncio.sleep(_GATHER_SECONDS)
            alike, batch, later = self._waiting[0][1].alike, [], []
            for one in self._waiting:
                shares = one[1].alike == alike and len(batch) < _GATHER_PROMPTS
                (batch if shares else later).append(one)
            self._waiting = later
            try:
                found = await asyncio.to_thread(self._find, [one[0] for one in batch], [one[1] for one in batch])
                for (_, _, answer), items in zip(batch, found, strict=True):
                    answer.set_result(items)
            except Exception as error:  # whoever waits is told; the searches that come next are tried again
                for _, _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)

    def _find(self, prompts: list[list[int]], wanted: list[Wanted]) -> list[list[Item]]:
        if self.engine is None:
            raise RuntimeError("the item engine has no weights yet")
        first = wanted[0]
        index = None if first.catalogue is None else _index(first.catalogue, self.path)
        draws = None if first.seed is None else Draws([one.seed for one in wanted], first.temperature)
        return find_items(self.engine, prompts, index, first.width, ITEM_TOKENS, draws=draws)

    def take(self, weights: list[tuple[str, Any]]) -> None:
        """Take some weights: tensors, or what `torch.multiprocessing` makes of tensors on this GPU."""
        self.taken |= {name for name, _ in weights}
        for name, tensor in weights:
            if not isinstance(tensor, torch.Tensor):
                rebuild, arguments = tensor
                # The seventh is the GPU's number, which processes may count differently.
                tensor = rebuild(*arguments[:6], self.device.index, *arguments[7:])
            if name in self.weights:
                self.weights[name].copy_(tensor)
            else:
                self.weights[name] = tensor.to(self.device, self.dtype, copy=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize()  # the sender lets go of its tensors now

    def renew(self, global_steps: int | None) -> None:
        """Search with the weights that were taken, those of the training step ``global_steps``, from now on.

        Raises `InputError` where they are not whole: a tensor of the step before would go unnoticed.
        """
        taken, self.taken = self.taken, set()
        if lacking := [name for name, _ in needed_tensors(self.config) if name not in taken]:
            what = f"the weights of step {global_steps} do not hold {lacking[0]}"
            raise InputError(self.path, what, "a dense Qwen3 with all of its weights")
        self.global_steps = global_steps
        try:
            if self.engine is None:
                self.engine = ItemModel(self.config, self.spec, self.weights)
            else:
                self.engine.load(self.weights)
        except ValueError as error:
            raise InputError(self.path, str(error), "a dense Qwen3") from None

    def load_merged(self, checkpoints: str, base_model: str, merge_ratio: float) -> None:
        """Take the average of the newest checkpoint and the base model from now on."""
        for weights in merged_weights(Path(checkpoints), Path(base_model), merge_ratio):
            self.take(list(weights.items()))
        self.renew(self.global_steps)

    def sleep(self) -> None:
        """Let go of a GPU's memory; the next weights fill it again."""
        if self.device.type == "cuda":
            self.engine, self.weights = None, {}
            torch.cuda.empty_cache()

    def nothing(self, *_: Any, **__: Any) -> None:
        """What verl asks of a server between steps and this one has no need of: it keeps no cache and no request."""

    wake_up = abort_all_requests = resume_generation = clear_kv_cache = nothing
    release_kv_cache = resume_kv_cache = start_profile = stop_profile = nothing


def server_name(rank: int) -> str:
    """Ray's name of the item server beside the training process ``rank``."""
    return f"onerec_items_server_{rank}"


async def launch_item_servers(replica: RolloutReplica) -> list[Any]:
    """An `ItemServer` beside every worker of a replica, on the worker's node and GPU."""
    resource = get_resource_name()
    places = await asyncio.gather(
        *(
            worker.__ray_call__.remote(
                lambda self: (
                    ray.get_runtime_context().get_node_id(),
                    ray.get_runtime_context().get_accelerator_ids()[resource][0],
                )
            )
            for worker in replica.workers
        )
    )
    variables = {name: "1" for name in get_platform().ray_noset_envvars()}
    return [
        ray.remote(ItemServer)
        .options(
            name=server_name(replica.replica_rank * replica.world_size + number),
            scheduling_strategy=ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False),
            runtime_env={"env_vars": variables},
            max_concurrency=replica.max_concurrency,
        )
        .remote(str(replica.model_config.path), str(replica.config.dtype), device if torch.cuda.is_available() else "")
        for number, (node, device) in enumerate(places)
    ]


class ItemReplica(RolloutReplica):
    """A replica of the rollout ``onerec_items``: one `ItemServer`."""

    async def launch_servers(self) -> None:
        """Start the server beside the replica's worker."""
        self.servers = await launch_item_servers(self)
        self._server_handle, self._server_address = self.servers[0], server_name(self.replica_rank)


class ItemAdapter(BaseRollout):
    """The training process' side of its `ItemServer`."""

    server: Any = None

    async def resume(self, tags: list[str]) -> None:
        """Nothing: memory is taken when weights come."""

    async def release(self) -> None:
        """Let the server let go of its memory."""
        await self._server().sleep.remote()

    async def update_weights(
        self, weights: Any, global_steps: int | None = None, wire_format: str = "named_tensors", **_: Any
    ) -> None:
        """Send the server these weights, a generator of (name, tensor)."""
        if wire_format != "named_tensors":
            raise NotImplementedError(f"the item engine takes whole tensors, not {wire_format}")
        bucket: list[tuple[str, torch.Tensor]] = []
        size, limit = 0, self.config.checkpoint_engine.update_weights_bucket_megabytes << 20
        async for name, tensor in ensure_async_iterator(weights):
            bucket.append((name, tensor.detach()))
            size += tensor.nbytes
            if size >= limit:
                await self._send(bucket)
                bucket, size = [], 0
        await self._send(bucket)
        await self._server().renew.remote(global_steps)

    async def _send(self, bucket: list[tuple[str, torch.Tensor]]) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        await self._server().take.remote([(n, reduce_tensor(t) if t.is_cuda else t) for n, t in bucket])

    def _server(self) -> Any:
        if self.server is None:
            self.server = ray.get_actor(server_name(int(os.environ["RANK"])))
        return self.server


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
