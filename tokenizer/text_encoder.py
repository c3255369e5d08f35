"""A Hugging Face text encoder: texts to vectors, batched by length, pooled as its model folder says.

Qwen3-Embedding (arXiv 2506.05176, section 2): the last token's state, L2-normalised, shorter vectors by Matryoshka. A
sentence-transformers folder says in modules.json which pooling and which dense layers follow; they are applied here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onerec.errors import InputError
from onerec.model_folder import check_finite, loading, open_encoder
from onerec.run import progress, read_json

_TEXTS = 256  # of a batch, at most
POOLINGS = ("last", "mean", "cls", "max")
_ACTIVATIONS = {name: getattr(torch.nn, name) for name in ("Identity", "Tanh", "ReLU", "GELU")}
_POOLING_KEYS = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max", "lasttoken": "last"}


def model_file(name: str, path: str) -> Path | None:
    """A file of a model by local folder or hub name; None where the model has no such file."""
    from transformers.utils import cached_file

    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    found = cached_file(name, path, **quiet)
    return Path(found) if found else None


def model_json(name: str, path: str) -> Any:
    """The content of a model's JSON file; None where the model has no such file."""
    file = model_file(name, path)
    return read_json(file) if file else None


class TextEncoder:
    """Texts to unit vectors. ``dim``: values of a vector; ``pooling``: one of `POOLINGS`.

    Args:
        name: local folder or hub name. pooling: auto takes the model folder's, or last for decoders and mean otherwise.
        dim: values kept of a vector (Matryoshka; -1: all). max_tokens: longer texts are cut.
        max_batch_tokens: padded tokens of a batch, at most.
        device, dtype: as torch names them.

    Raises `InputError` where the model cannot be had, has a module that is not known here, or gives fewer than ``dim``
    values.
    """

    def __init__(
        self,
        name: str,
        pooling: str = "auto",
        dim: int = -1,
        max_tokens: int = 512,
        max_batch_tokens: int = 16384,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        from transformers import AutoModel, AutoTokenizer

        if os.path.isdir(name):
            open_encoder(name)
        with loading(name, "a local folder, a hub name with network, or tfidf_svd"):
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            model, found = AutoModel.from_pretrained(
                name, dtype=dtype, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
            # A pooler is a head of its own (BERT's), and nothing here uses it.
            if missing := [key for key in found["missing_keys"] if not key.startswith("pooler.")]:
                raise ValueError(f"its weights do not hold {missing[0]}")
        check_finite(name, model.named_parameters())
        self._name, self._device = name, device
        self._model = model.to(device).eval()
        self._max_batch_tokens = max_batch_tokens
        self._dense: list[torch.nn.Module] = []
        self.pooling = ""
        with loading(name):
            self._read_modules()
        if pooling != "auto":
            self.pooling = pooling
        elif not self.pooling:
            self.pooling = "last" if is_decoder(model.config) else "mean"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        # Where the last token counts, it stands in the last column; absolute positions want the padding behind.
        tokenizer.padding_side = "left" if self.pooling == "last" else "right"
        self._tokenizer, self._max_tokens = tokenizer, max_tokens
        limit = getattr(model.config, "max_position_embeddings", None)
        if limit and not is_decoder(model.config):
            self._max_tokens = min(max_tokens, limit)
        width = self._dense[-1][0].out_features if self._dense else model.config.hidden_size
        if dim > width:
            raise InputError("--dim", f"{dim} is more than the encoder gives", f"at most {width}")
        self.dim = dim if dim > 0 else width

    def _read_modules(self) -> None:
        """Pooling and dense layers of a sentence-transformers folder; other models have no modules.json."""
        for module in model_json(self._name, "modules.json") or []:
            kind, path = str(module.get("type", "")).rpartition(".")[2], module.get("path")
            if kind == "Pooling":
                self.pooling = self._pooling_of(model_json(self._name, f"{module['path']}/config.json") or {})
            elif kind == "Dense":
                self._dense.append(self._dense_of(module["path"]))
            elif kind == "Transformer" and path:
                what = f"{self._name} keeps its model in {path}"
                raise InputError("--encoder", what, f"the folder {path} of it, with --pooling")
            elif kind not in ("Transformer", "Normalize"):
                what = f"{self._name} has a module {kind}, which is not known here"
                raise InputError("--encoder", what, "a model of Transformer, Pooling, Dense and Normalize")

    def _pooling_of(self, config: dict[str, Any]) -> str:
        # Older versions say pooling_mode_mean_tokens: true, newer ones pooling_mode: mean.
        on = [key.removeprefix("pooling_mode_") for key, value in config.items() if value is True]
        found = [_POOLING_KEYS.get(key, key) for key in on if f"pooling_mode_{key}" in config]
        if not found:
            named = config.get("pooling_mode")
            found = ["last" if named == "lasttoken" else named]
        if len(found) != 1 or found[0] not in POOLINGS:
            right = f"one of {', '.join(POOLINGS)} by --pooling"
            raise InputError("--encoder", f"{self._name} pools by {found}", right)
        return found[0]

    def _dense_of(self, path: str) -> torch.nn.Module:
        from safetensors.torch import load_file

        config = model_json(self._name, f"{path}/config.json")
        weights = model_file(self._name, f"{path}/model.safetensors")
        activation = str((config or {}).get("activation_function", "")).rpartition(".")[2]
        if not config or not weights or activation not in _ACTIVATIONS:
            right = f"config.json with an activation of {', '.join(_ACTIVATIONS)}, and model.safetensors"
            raise InputError("--encoder", f"the dense layer {path} of {self._name} cannot be read", right)
        with loading(weights):
            linear = torch.nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
            linear.load_state_dict({key.removeprefix("linear."): value for key, value in load_file(weights).items()})
        check_finite(weights, linear.named_parameters())
        return torch.nn.Sequential(linear, _ACTIVATIONS[activation]()).to(self._device).eval()

    def batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices of texts in batches of near lengths, longest first; the same for the same lengths."""
        batch: list[int] = []
        for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
            if batch and (len(batch) == _TEXTS or (len(batch) + 1) * lengths[batch[0]] > self._max_batch_tokens):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], label: str = "embed") -> np.ndarray:
        """Vectors float32 [n, dim] of length one, in the order of ``texts``; NaN where the model gave no number."""
        coded = self._tokenizer(list(texts), truncation=True, max_length=self._max_tokens)["input_ids"]
        out = np.zeros((len(texts), self.dim), np.float32)
        batches = list(self.batches([len(ids) for ids in coded]))
        for batch in progress(batches, label, len(texts), "text", size=len):
            inputs = self._tokenizer.pad({"input_ids": [coded[i] for i in batch]}, return_tensors="pt").to(self._device)
            mask = inputs["attention_mask"]
            more = {}
            if self.pooling == "last":
                more["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
            hidden = self._model(**inputs, **more).last_hidden_state.float()
            pooled = self._pool(hidden, mask)
            for dense in self._dense:
                pooled = dense(pooled)
            out[batch] = torch.nn.functional.normalize(pooled[:, : self.dim], dim=1).cpu().numpy()
        return out

    def _pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[n, width] of states [n, tokens, width]."""
        if self.pooling == "last":
            return hidden[:, -1]
        if self.pooling == "cls":
            return hidden[:, 0]
        wide = mask[:, :, None]
        if self.pooling == "max":
            return hidden.masked_fill(wide == 0, -torch.inf).amax(1)
        return (hidden * wide).sum(1) / wide.sum(1)


def is_decoder(config: Any) -> bool:
    """Whether a model reads from left to right, so that its last token has seen the text."""
    architecture = (config.architectures or [""])[0]
    return "Causal" in architecture or getattr(config, "model_type", "").startswith(
        ("qwen", "llama", "mistral", "gemma", "gpt", "phi")
    )
