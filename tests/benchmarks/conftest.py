"""A checkpoint and test data small enough to be evaluated in a second, for the tests of running models."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from onerec.parquet import write_table
from onerec.records import message
from onerec.sid import SidSpec

TINY_SPEC = SidSpec((4, 4, 4))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """A random Qwen3 with a byte-level tokenizer, chat tokens and the SIDs of `TINY_SPEC`; its logits are far apart."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_tokens(["<|im_start|>", "<think>", "</think>"], special_tokens=True)
    spec = SidSpec(TINY_SPEC.codebook_sizes, first_id=len(tokenizer))
    tokenizer.add_tokens(spec.tokens)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    spec.save(folder)
    return folder


@pytest.fixture
def tiny_data(tmp_path):
    """See `write_tiny_data`."""
    return write_tiny_data(tmp_path / "benchmark_data")


def write_tiny_data(folder: Path) -> Path:
    """Twelve video tests with histories of different lengths, twelve label tests, a catalogue of 16 items."""

    def sid(pid: int) -> str:
        return TINY_SPEC.text([pid % 4, pid // 4 % 4, 0])

    rows, labels = [], []
    for i in range(12):
        history = [(i + j) % 16 for j in range(1 + i)]
        prompt = json.dumps([message("user", "看过" + "".join(map(sid, history)) + "推荐")])
        target = (i + 3) % 16
        metadata = {"uid": i, "answer": sid(target), "answer_pid": [target], "history_pid": history}
        rows.append({"uuid": str(i), "source": "s", "messages": prompt, "metadata": json.dumps(metadata)})
        metadata = {"uid": i // 2, "label": i % 2, "answer": "是"}
        labels.append({"uuid": f"l{i}", "source": "s", "messages": prompt, "metadata": json.dumps(metadata)})
    write_table(folder / "video" / "video_test.parquet", pa.Table.from_pylist(rows))
    write_table(folder / "label_pred" / "label_pred_test.parquet", pa.Table.from_pylist(labels))
    codes = pa.array([[p % 4, p // 4 % 4, 0] for p in range(16)], pa.list_(pa.int32()))
    write_table(folder / "video_ad_pid2sid.parquet", pa.table({"pid": list(range(16)), "codes": codes}))
    sequences = {"uid": [1], "task": ["video"], "history_pid": [[1]], "target_pid": [[2]]}
    write_table(folder / "train_sequences.parquet", pa.table(sequences))
    TINY_SPEC.save(folder)
    return folder
