"""What joins vLLM's worker in a rollout server."""

from __future__ import annotations

from pathlib import Path

from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

from onerec.items.vllm_items import ItemWorker
from onerec.verl.export import merged_weights


class OneRecWorkerExtension(vLLMColocateWorkerExtension, ItemWorker):
    """verl's weight sync and this project's item search."""

    def onerec_load_merged(self, checkpoints: str, base_model: str, merge_ratio: float) -> None:
        """Serve the average of the newest checkpoint and the base model, loaded as verl loads a step's weights."""
        from vllm.model_executor.model_loader.utils import process_weights_after_loading

        for weights in merged_weights(Path(checkpoints), Path(base_model), merge_ratio):
            self._update_weights(list(weights.items()), peft_config=None, base_sync_done=False)
        for model, config in self._iter_all_models_with_config():
            process_weights_after_loading(model, config, self.device)
