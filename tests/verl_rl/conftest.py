"""A world small enough for a real GRPO run: a Qwen3 of 50 thousand parameters with SIDs, a catalogue, RL data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onerec.render import THINK_CLOSE, THINK_OPEN
from onerec.render.qwen3 import END_OF_TEXT, IM_END, IM_START, chat_template
from onerec.sid import SidSpec

CODEBOOKS = (8, 8, 8)


# Settings of a rollout; tests add the beams, the catalogues and the cut-offs.
ROLLOUT = {
    "two_stage": True,
    "stage2": "beam",
    "constrained": True,
    "think": False,
    "nonthink": True,
    "force_prefix": True,
    "stage1_max_tokens": 8,
    "weights": {"full_hit": 1.0},
    "seed": 0,
}


def write_model(folder: Path) -> SidSpec:
    """A random Qwen3 with a byte-level tokenizer that holds the itemic tokens."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = [END_OF_TEXT, IM_START, IM_END]
    inner.train_from_iterator(
        ["user assistant\n\n看过 推荐"] * 3,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=IM_END, pad_token=END_OF_TEXT)
    tokenizer.add_tokens([THINK_OPEN, THINK_CLOSE])
    spec = SidSpec(CODEBOOKS, first_id=len(tokenizer))
    tokenizer.add_tokens(spec.tokens)
    tokenizer.chat_template = chat_template()
    config = Qwen3Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config)
    # Qwen3's own: it ends by either.
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids([IM_END, END_OF_TEXT])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    spec.save(folder)
    return spec


def rl_row(spec: SidSpec, codes: np.ndarray, index: int, task: str = "video") -> dict:
    """One row as `data/prepare_rl.py` writes it: the items seen, the items taken."""
    return {
        "data_source": f"onerec/{task}",
        "prompt": [{"role": "user", "content": "看过" + "".join(spec.format(c) for c in codes[:3]) + "推荐"}],
        "ability": "recommendation",
        "reward_model": {"style": "rule", "ground_truth": "".join(spec.format(c) for c in codes[3:])},
        "extra_info": {"uid": index, "task": task, "index": index, "uuid": str(index)},
    }


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """A folder with ``model``, ``data/{train,test}.parquet`` and ``pid2sid.parquet``."""
    folder = tmp_path_factory.mktemp("rl_world")
    spec = write_model(folder / "model")
    rng = np.random.default_rng(0)
    codes = np.unique(rng.integers(0, 8, (60, 3)), axis=0)
    pids = pa.array(np.arange(len(codes)))
    pq.write_table(
        pa.table({"pid": pids, "codes": pa.array(codes.tolist(), pa.list_(pa.int32()))}),
        folder / "pid2sid.parquet",
    )
    (folder / "data").mkdir()
    for name, n in (("train", 16), ("test", 4)):
        rows = [rl_row(spec, codes[rng.permutation(len(codes))[:23]], i, ("video", "ad")[i % 2]) for i in range(n)]
        pq.write_table(pa.Table.from_pylist(rows), folder / "data" / f"{name}.parquet")
    return folder
