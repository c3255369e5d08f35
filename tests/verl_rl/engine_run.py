"""One process: verl's FSDP2 engine and ours on the same rows; prints a JSON line of what each gave and how they differ.

    python tests/verl_rl/engine_run.py <folder> --device cpu|cuda

Rows of groups once as verl pads them and once as trees, in float32 and in bfloat16, by the engines that a GRPO run has:
log-probabilities and entropies, one update, log-probabilities after it.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path, help="for the model and the process group's file")
parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
args = parser.parse_args()
if args.device == "cpu":
    os.environ |= {"VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": "onerec.verl.cpu"}

import torch  # noqa: E402  the platform is chosen before verl is imported
from verl.trainer.config import CheckpointConfig  # noqa: E402
from verl.utils import tensordict_utils as tu  # noqa: E402
from verl.workers.config import (  # noqa: E402
    FSDPEngineConfig,
    FSDPOptimizerConfig,
    HFModelConfig,
)
from verl.workers.engine import EngineRegistry  # noqa: E402
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead  # noqa: E402

import verl_rl.engine  # noqa: E402
from verl_rl.settings import SHARE_KEY  # noqa: E402

GROUPS, ITEMS, LIMIT = 4, 6, 150


def write_model(folder: Path) -> Path:
    """A Qwen3 whose logits are far from even."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=320,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        initializer_range=0.1,
        architectures=["Qwen3ForCausalLM"],
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder / "model")
    return folder / "model"


def batch():
    """Rows of `GROUPS` prompts of other lengths, each with `ITEMS` answers that begin alike."""
    generator = torch.Generator().manual_seed(1)

    def draw(n: int) -> torch.Tensor:
        return torch.randint(3, 320, (n,), generator=generator)

    prompts, responses = [], []
    for group in range(GROUPS):
        prompt, opening = draw(20 + 9 * group), draw(2)
        for _ in range(ITEMS):
            prompts.append(prompt)
            responses.append(torch.cat([opening, draw(int(torch.randint(1, 4, (), generator=generator)))]))
    rows = [torch.cat(pair) for pair in zip(prompts, responses, strict=True)]

    def nested(values):
        return torch.nested.as_nested_tensor(values, layout=torch.jagged)

    masks = [torch.cat([torch.zeros(len(p)), torch.ones(len(r))]) for p, r in zip(prompts, responses, strict=True)]
    tensors = {
        "prompts": nested(prompts),
        "responses": nested(responses),
        "input_ids": nested(rows),
        "loss_mask": nested(masks),
        "position_ids": nested([torch.arange(len(row)) for row in rows]),
        "advantage": torch.tensor([1.0, -1.0]).repeat(len(rows) // 2),
    }
    settings = {
        "temperature": 0.8,
        "use_remove_padding": False,
        "calculate_entropy": True,
        "pad_token_id": 0,
        "use_dynamic_bsz": True,
        "max_token_len_per_gpu": LIMIT,
        "use_fused_kernels": False,
    }
    return tu.get_tensordict(tensors, settings)


def responses_of(values: torch.Tensor, data) -> list[float]:
    """Of rows of prompt and response, what stands before each response token."""
    firsts = (data["prompts"].offsets().diff() - 1).tolist()
    return torch.cat([row[first:-1] for row, first in zip(values.unbind(), firsts, strict=True)]).float().tolist()


def loss(model_output, data, dp_group):
    """A policy gradient's: minus the mean of the tokens' log-probabilities by their row's advantage."""
    rows = zip(data["advantage"], model_output["log_probs"].unbind(), data["prompts"].unbind(), strict=True)
    total = -sum(advantage * row[len(prompt) - 1 : -1].sum() for advantage, row, prompt in rows)
    return total / data["batch_num_tokens"], {}


def run(model: Path, shared: bool, dtype: str) -> dict:
    """What the engine gives before and after one update, and how often it ran the model."""
    override = {"attn_implementation": "sdpa", **({SHARE_KEY: True} if shared else {})}
    engine = EngineRegistry.new(
        model_type="language_model",
        backend="fsdp2",
        model_config=HFModelConfig(
            path=str(model), load_tokenizer=False, override_config=override, use_remove_padding=False
        ),
        engine_config=FSDPEngineConfig(
            strategy="fsdp2", mixed_precision={"param_dtype": dtype, "reduce_dtype": "fp32"}, use_torch_compile=False
        ),
        optimizer_config=FSDPOptimizerConfig(lr=1e-3, weight_decay=0.0, total_training_steps=10, lr_warmup_steps=0),
        checkpoint_config=CheckpointConfig(),
    )
    assert isinstance(engine, verl_rl.engine.SharedPromptEngine)
    calls = []
    engine.initialize()
    engine.module.register_forward_pre_hook(
        lambda _, inputs, named: calls.append(named["input_ids"].numel()), with_kwargs=True
    )
    found: dict = {}

    def infer() -> list[float]:
        with engine.eval_mode():
            output = engine.infer_batch(batch())["model_output"]
        found["entropy"] = responses_of(output["entropy"], batch())
        return responses_of(output["log_probs"], batch())

    found["before"] = infer()
    found["tokens"] = list(calls)
    with engine.train_mode():
        found["gradient"] = engine.train_batch(batch(), loss)["metrics"]["grad_norm"]
    found["after"] = infer()
    return found


def main() -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    backend = "cpu:gloo,cuda:nccl" if args.device == "cuda" else "gloo"
    torch.distributed.init_process_group(
        backend, init_method=f"file://{args.folder.resolve() / 'group'}", rank=0, world_size=1
    )
    assert issubclass(verl_rl.engine.SharedPromptEngine, FSDPEngineWithLMHead)
    model = write_model(args.folder)
    results = {
        f"{'trees' if shared else 'rows'} {dtype}": run(model, shared, dtype)
        for dtype in ("fp32", "bf16")
        for shared in (False, True)
    }
    torch.distributed.destroy_process_group()
    print("RESULT " + json.dumps(results))
    reference = results["rows fp32"]
    for side, found in results.items():
        apart = {
            name: max(abs(a - b) for a, b in zip(found[name], reference[name], strict=True))
            for name in ("before", "after", "entropy")
        }
        print(f"{side}: at most {apart} from rows fp32")


if __name__ == "__main__":
    main()
