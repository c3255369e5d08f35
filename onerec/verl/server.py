"""A verl rollout without vLLM: a server beside every training process, with its weights; what it answers is a stage's.

Weights come from the training process of the same GPU in parts: by CUDA IPC, or on a CPU through Ray. (verl's own
sender would import vLLM, which costs every process of a run many seconds.)
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from torch.multiprocessing.reductions import reduce_tensor
from verl.plugin.platform import get_platform
from verl.utils.device import get_device_name, get_resource_name, get_visible_devices_keyword
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica
from verl.workers.rollout.utils import ensure_async_iterator

from onerec.errors import InputError
from onerec.model_folder import needed_tensors, read_config
from onerec.verl.export import merged_weights

# How long a request waits for others to share its forward passes, in seconds, and how many share at most.
_GATHER_SECONDS = 0.01
_GATHER_REQUESTS = 256


class Together:
    """Requests that come together and are alike are answered by one call of ``answer``, in a thread of its own."""

    def __init__(self, answer: Callable[[Sequence[Any]], Sequence[Any]]) -> None:
        self._answer = answer
        self._waiting: list[tuple[Any, Hashable, asyncio.Future[Any]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def ask(self, request: Any, alike: Hashable = None) -> Any:
        """The answer to a request, which shares its call with others of the same ``alike``."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, alike, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._waiting:
            await asyncio.sleep(_GATHER_SECONDS)
            first, batch, later = self._waiting[0][1], [], []
            for one in self._waiting:
                shares = one[1] == first and len(batch) < _GATHER_REQUESTS
                (batch if shares else later).append(one)
            self._waiting = later
            try:
                answers = await asyncio.to_thread(self._answer, [request for request, _, _ in batch])
                for (_, _, future), answer in zip(batch, answers, strict=True):
                    future.set_result(answer)
            except Exception as error:  # whoever waits is told; the requests that come next are tried again
                for _, _, future in batch:
                    if not future.done():
                        future.set_exception(error)


class WeightServer:
    """Ray actor: a model on one GPU (or in a process on a CPU) that training sends its weights.

    It has none before the first `renew`, nor while it sleeps. A subclass says in `use` what takes the weights, a dense
    Qwen3's by their Hugging Face names, and answers ``generate``.

    dtype: torch's name of the weights' type. devices: the GPU of the node that its process sees (`environment_of`);
    empty on a CPU. settings: verl's of the rollout.
    """

    def __init__(self, model: str, dtype: str, devices: str, settings: Any = None) -> None:
        self.path, self.dtype, self.settings = model, getattr(torch, dtype), settings
        self.config = read_config(model)
        self.device = torch.device("cuda", 0) if devices else torch.device("cpu")
        self.weights: dict[str, torch.Tensor] = {}
        self.taken: set[str] = set()
        self.global_steps: int | None = None

    def use(self) -> None:
        """Answer with ``self.weights`` from now on; raises ValueError where no dense Qwen3 is made of them."""
        raise NotImplementedError

    def drop(self) -> None:
        """Let go of what holds the weights."""
        raise NotImplementedError

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
        """Answer with the weights that were taken, those of the training step ``global_steps``, from now on.

        Raises `InputError` where they are not whole: a tensor of the step before would go unnoticed.
        """
        taken, self.taken = self.taken, set()
        if lacking := [name for name, _ in needed_tensors(self.config) if name not in taken]:
            what = f"the weights of step {global_steps} do not hold {lacking[0]}"
            raise InputError(self.path, what, "a dense Qwen3 with all of its weights")
        self.global_steps = global_steps
        try:
            self.use()
        except ValueError as error:
            raise InputError(self.path, str(error), "a dense Qwen3") from None

    def load_merged(self, checkpoints: str, base_model: str, merge_ratio: float) -> None:
        """Take the average of the newest checkpoint and the base model from now on."""
        for weight in merged_weights(Path(checkpoints), Path(base_model), merge_ratio):
            self.take([weight])
        self.renew(self.global_steps)

    def sleep(self) -> None:
        """Let go of a GPU's memory; the next weights fill it again."""
        if self.device.type == "cuda":
            self.drop()
            self.weights = {}
            torch.cuda.empty_cache()

    def nothing(self, *_: Any, **__: Any) -> None:
        """What verl asks of a server between steps and this one has no need of: it keeps no cache and no request."""

    wake_up = abort_all_requests = resume_generation = clear_kv_cache = nothing
    release_kv_cache = resume_kv_cache = start_profile = stop_profile = nothing


def server_name(rank: int) -> str:
    """Ray's name of the server beside the training process ``rank``."""
    return f"onerec_server_{rank}"


def environment_of(device: str) -> dict[str, str]:
    """Variables with which the process of a server on the node's GPU ``device`` (empty: on a CPU) starts.

    Importing verl asks torch for GPUs, and CUDA reads once only which of them a process sees.
    """
    variables = {name: "1" for name in get_platform().ray_noset_envvars()}
    return variables | ({get_visible_devices_keyword(): device} if device else {})


async def launch_servers(replica: RolloutReplica, server: type[WeightServer]) -> list[Any]:
    """A ``server`` beside every worker of a replica, on the worker's node and GPU."""
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
    # By verl's platform: this process, the trainer's, may stand on a node without GPUs.
    places = [(node, "" if get_device_name() == "cpu" else device) for node, device in places]
    model, settings = str(replica.model_config.path), replica.config
    return [
        ray.remote(server)
        .options(
            name=server_name(replica.replica_rank * replica.world_size + number),
            scheduling_strategy=ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False),
            runtime_env={"env_vars": environment_of(device)},
            max_concurrency=replica.max_concurrency,
        )
        .remote(model, str(settings.dtype), device, settings)
        for number, (node, device) in enumerate(places)
    ]


class Replica(RolloutReplica):
    """A replica of one server; a subclass names its class."""

    server: type[WeightServer]

    async def launch_servers(self) -> None:
        """Start the server beside the replica's worker."""
        self.servers = await launch_servers(self, self.server)
        self._server_handle, self._server_address = self.servers[0], server_name(self.replica_rank)


class Adapter(BaseRollout):
    """The training process' side of its server."""

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
            raise NotImplementedError(f"the server takes whole tensors, not {wire_format}")
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
