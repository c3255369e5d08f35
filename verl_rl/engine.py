"""verl's FSDP engine on rows that share their prompts (`verl_rl.shared_prompts`); registers itself."""

from __future__ import annotations

import os
from typing import Any

import torch
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id
from verl.workers.engine.base import EngineRegistry

from onerec.verl.engine import Engine
from onerec.verl.rows import nested
from verl_rl.settings import SHARE_KEY
from verl_rl.shared_prompts import build, gather, split_groups

# An engine of our own beside verl's: the registry tells engines of one device apart by their vendor.
_VENDOR = "onerec_grpo"
os.environ["VERL_ENGINE_VENDOR"] = _VENDOR


def _rows(values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Rows of a nested tensor, on the CPU: one copy for all of them."""
    return values.values().cpu().split(values.offsets().diff().tolist())


@EngineRegistry.register("language_model", ["fsdp", "fsdp2"], ["cuda", "npu", "cpu"], vendor=_VENDOR)
class SharedPromptEngine(Engine):
    """verl's FSDP engine; where the model's configuration says so, rows of a micro-batch share their beginnings."""

    @property
    def _shares(self) -> bool:
        return bool(getattr(self.model_config.hf_config, SHARE_KEY, False))

    def forward_backward_batch(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """verl's, in micro-batches of whole groups: a group in two of them would pay for its prompt twice."""
        if self._shares and tu.get_non_tensor_data(data=data, key="use_dynamic_bsz", default=True):
            prompts, responses = _rows(data["prompts"]), _rows(data["responses"])
            groups, parts = split_groups(prompts, responses, data["max_token_len_per_gpu"])
            # As many on every rank, or FSDP's collectives would wait for each other.
            most = torch.tensor([parts, -groups, groups], device=get_device_id())
            torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX, self.get_data_parallel_group())
            parts, fewest, groups = most.tolist()
            if groups and -fewest == groups:
                rows = len(data) // parts
                tu.assign_non_tensor(data, use_dynamic_bsz=False, micro_batch_size_per_gpu=rows)
        return super().forward_backward_batch(data, *args, **kwargs)

    def prepare_model_inputs(self, micro_batch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The micro-batch as trees, and what `prepare_model_outputs` needs of them."""
        if not self._shares:
            return super().prepare_model_inputs(micro_batch)
        for name in ("use_remove_padding", "use_fused_kernels", "calculate_sum_pi_squared", "distillation_use_topk"):
            if tu.get_non_tensor_data(data=micro_batch, key=name, default=False):
                raise NotImplementedError(f"shared prompts do not go together with {name}")
        temperature = micro_batch["temperature"]
        if isinstance(temperature, torch.Tensor):
            if temperature.unique().numel() > 1:
                raise NotImplementedError("shared prompts want one temperature for all rows")
            temperature = float(temperature.flatten()[0])
        pad_id = tu.get_non_tensor_data(data=micro_batch, key="pad_token_id", default=0)
        prompts, responses = micro_batch["prompts"], micro_batch["responses"]
        trees = build(_rows(prompts), _rows(responses), pad_id, responses.device)
        inputs = {"input_ids": trees.input_ids, "position_ids": trees.position_ids}
        inputs |= {"attention_mask": trees.mask, "logits_to_keep": trees.keep}
        return inputs, {"trees": trees, "temperature": temperature}

    def prepare_model_outputs(
        self, output: Any, output_args: dict[str, Any], micro_batch: Any, logits_processor_func: Any
    ) -> dict[str, Any]:
        """Log-probabilities, and entropies where asked for, in verl's form: nested, one before each response token."""
        if "trees" not in output_args:
            return super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        wanted = tu.get_non_tensor_data(data=micro_batch, key="calculate_entropy", default=False)
        log_probs, entropy = gather(output.logits / output_args["temperature"], output_args["trees"], wanted)
        return nested({"log_probs": log_probs} | ({"entropy": entropy} if wanted else {}), micro_batch)
