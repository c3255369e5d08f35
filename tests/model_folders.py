"""A tiny language model's folder for tests, written without torch: real weights, a real tokenizer, SIDs on request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from onerec.model_folder import needed_tensors
from onerec.sid import SidSpec

CONFIG: dict[str, Any] = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


def tiny_model(folder: Path, words: list[str], spec: SidSpec | None = None, rows: int = 16, **config: Any) -> Path:
    """Write a Qwen3 (or what ``config`` says; ``...`` leaves a key out) whose tokens are ``words``.

    Those of ``spec`` and the turn marks are added tokens.
    """
    from tokenizers import AddedToken, Tokenizer, models

    folder.mkdir(parents=True)
    itemic = spec.tokens if spec else []
    plain = [word for word in words if word not in itemic and not word.startswith("<")]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(plain)}, plain[0]))
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words if word not in plain])
    tokenizer.save(str(folder / "tokenizer.json"))
    value = {key: item for key, item in (CONFIG | {"vocab_size": rows} | config).items() if item is not ...}
    (folder / "config.json").write_text(json.dumps(value))
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in needed_tensors(value)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if spec:
        spec.save(folder)
    return folder
