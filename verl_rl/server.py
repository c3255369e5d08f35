"""verl's vLLM server with an item server beside it, as the rollout ``onerec_vllm``: vLLM writes the thought, the engine
finds the items.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import ray
import torch
from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.vllm_rollout import ServerAdapter
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica

from onerec.verl.export import merged_weights
from onerec.verl.server import Adapter, launch_servers
from verl_rl.item_server import ITEMS, ItemServer, send_to_all


class OneRecWorkerExtension(vLLMColocateWorkerExtension):
    """verl's own, which can also serve an average of two models."""

    def onerec_load_merged(self, checkpoints: str, base_model: str, merge_ratio: float) -> None:
        """Serve the average of the newest checkpoint and the base model, loaded as verl loads a step's weights."""
        from vllm.model_executor.model_loader.utils import process_weights_after_loading

        for weight in merged_weights(Path(checkpoints), Path(base_model), merge_ratio):
            self._update_weights([weight], peft_config=None, base_sync_done=False)
        for model, config in self._iter_all_models_with_config():
            process_weights_after_loading(model, config, self.device)


class OneRecServer(vLLMHttpServer):
    """A vLLM server that passes what asks for items on to the item servers of its GPUs, in turn."""

    def _get_worker_extension_cls(self) -> str:
        return "verl_rl.server.OneRecWorkerExtension"

    async def use_items(self, servers: list[Any]) -> None:
        """Pass searches on to these item servers."""
        self._items = itertools.cycle(servers)

    async def generate(
        self, prompt_ids: list[int], sampling_params: dict[str, Any], request_id: str, **more: Any
    ) -> TokenOutput:
        """verl's; items where ``sampling_params`` ask for them."""
        if ITEMS in sampling_params:
            return await next(self._items).generate.remote(request_id, prompt_ids, sampling_params)
        return await super().generate(prompt_ids, sampling_params, request_id, **more)

    async def load_merged(self, checkpoints: str, base_model: str, merge_ratio: float) -> None:
        """Serve the average of the newest checkpoint and the base model from now on.

        The engine is the first node's, where a replica has several.
        """
        if self.node_rank:
            return
        await self.engine.collective_rpc("onerec_load_merged", args=(checkpoints, base_model, merge_ratio))
        await self.clear_kv_cache()


class OneRecReplica(vLLMReplica):
    """A replica of `OneRecServer` and of an item server a GPU."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(OneRecServer)
        self.item_servers: list[Any] = []

    async def launch_servers(self) -> None:
        """Start vLLM, then the item servers."""
        await super().launch_servers()
        self.item_servers = await launch_servers(self, ItemServer)
        for server in self.servers:
            await server.use_items.remote(self.item_servers)

    async def sleep(self) -> None:
        """Let both let go of their memory."""
        await super().sleep()
        for server in self.item_servers:
            await server.sleep.remote()

    def _get_server_name_prefix(self) -> str:
        return "onerec_vllm_"


class OneRecAdapter(ServerAdapter):
    """The training process' side: each tensor goes to vLLM and to the item server."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, model_config, device_mesh, *args, **kwargs)
        self.items = Adapter(config, model_config, device_mesh)

    @torch.no_grad()
    async def update_weights(self, weights: Any, global_steps: int | None = None, **kwargs: Any) -> None:
        """verl's, for both."""
        to_vllm = super().update_weights
        await send_to_all(
            weights,
            lambda stream: to_vllm(stream, global_steps=global_steps, **kwargs),
            lambda stream: self.items.update_weights(stream, global_steps=global_steps),
        )

    async def release(self) -> None:
        """Let both let go of their memory."""
        await super().release()
        await self.items.release()
