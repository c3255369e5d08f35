"""What joins vLLM's worker in a rollout server."""

from __future__ import annotations

from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

from onerec.vllm_items import ItemWorker


class OneRecWorkerExtension(vLLMColocateWorkerExtension, ItemWorker):
    """verl's weight sync and this project's item search."""
