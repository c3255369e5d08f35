"""The interface of every quantiser of item embeddings: train, encode, decode, one file, one report.

A new one is a class of its own file, named in `KINDS`. ``model.pt`` holds ``kind``, ``state_dict`` (tensors),
``config`` (plain values) and ``sid_spec``, and loads with ``weights_only=True``. A plain ``centroids.N`` state dict,
as the original saves, loads as residual k-means.
"""

from __future__ import annotations

import abc
import argparse
import dataclasses
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from onerec.errors import InputError
from onerec.folders import atomic_path
from onerec.model_folder import check_finite, loading
from onerec.sid import SidSpec
from onerec.sparse import unit

MODEL_FILE = "model.pt"
SCHEMA = pa.schema([("pid", pa.int64()), ("codes", pa.list_(pa.int32()))])  # of pid2sid.parquet
_ROWS, _VECTORS = 1 << 20, 1 << 13  # of a table, and of embeddings, at a time
# kind in model.pt: the class that reads it. Imported when it is needed, as some need torch and some faiss.
KINDS = {
    "res_kmeans": "tokenizer.res_kmeans:ResKmeans",
    "pq": "tokenizer.product:ProductQuantizer",
    "opq": "tokenizer.product:ProductQuantizer",
    "rq_vae": "tokenizer.rq_vae:RqVae",
}


def quantizer_class(kind: str) -> type[Quantizer]:
    module, _, name = KINDS[kind].partition(":")
    return getattr(importlib.import_module(module), name)


class Quantizer(abc.ABC):
    """Vectors float32 [n, dim] to codes int32 [n, n_layers] and back.

    ``normalize``: vectors are scaled to length one before anything else, in training and in encoding. ``residual``: a
    layer refines what the layers before it left, so that there are paths for a beam to search.
    """

    kind: ClassVar[str] | str
    residual: ClassVar[bool] = True
    dim: int
    normalize: bool = False

    @classmethod
    def train(cls, vectors: np.ndarray, args: argparse.Namespace) -> tuple[Quantizer, list[float]]:
        """(trained on ``vectors``, loss by iteration) by train_baselines.py's flags; raises `InputError`."""
        raise NotImplementedError

    @property
    @abc.abstractmethod
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes of every layer."""

    @abc.abstractmethod
    def encode(self, vectors: np.ndarray, n_layers: int | None = None, beam: int = 1) -> np.ndarray:
        """Codes int32 [n, n_layers] of ``vectors`` [n, dim]; ``beam`` paths are searched where it is `residual`."""

    @abc.abstractmethod
    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Reconstructions float32 [n, dim] of ``codes`` [n, layers], fewer than trained too; as `prepare` scales."""

    @abc.abstractmethod
    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """(tensors, plain values) that `from_state` rebuilds the quantiser from."""

    @classmethod
    @abc.abstractmethod
    def from_state(cls, tensors: dict[str, Any], config: dict[str, Any]) -> Quantizer:
        """The quantiser of `state`; raises KeyError or ValueError where they are not one's."""

    @property
    def n_layers(self) -> int:
        return len(self.codebook_sizes)

    @property
    def spec(self) -> SidSpec:
        return SidSpec(self.codebook_sizes)

    def to(self, device: Any) -> Quantizer:
        """Encode on ``device`` (a torch device or its name) from now on, where it can; returns itself."""
        return self

    def prepare(self, vectors: np.ndarray) -> np.ndarray:
        """``vectors`` as they are quantised: float32, scaled to length one with ``normalize``."""
        return unit(vectors) if self.normalize else np.ascontiguousarray(vectors, dtype=np.float32)

    def save(self, path: Path) -> None:
        """Write ``model.pt``, atomically."""
        import torch

        tensors, config = self.state()
        value = {"kind": self.kind, "state_dict": tensors, "config": config, "sid_spec": self.spec.as_dict()}
        with atomic_path(path) as temporary:
            torch.save(value, temporary)


def load_quantizer(path: str | Path) -> Quantizer:
    """Read ``model.pt`` (the file, or its folder), of any kind; raises `InputError` where it is not one."""
    import torch

    path, right = Path(path), f"give the {MODEL_FILE} of train_res_kmeans.py"
    path = path / MODEL_FILE if path.is_dir() else path
    if not path.is_file():
        raise InputError(path, "no such file", right)
    with loading(path, right):
        value = torch.load(path, map_location="cpu", weights_only=True)
        kind = value.get("kind", "res_kmeans")
        if kind not in KINDS:
            raise InputError(path, f"holds a quantiser of kind {kind}", f"one of {', '.join(KINDS)}")
        tensors = value.get("state_dict", value)
        model = quantizer_class(kind).from_state(tensors, value.get("config", {}))
        sizes = (value.get("sid_spec") or {}).get("codebook_sizes", model.codebook_sizes)
    check_finite(path, [(key, tensor) for key, tensor in tensors.items() if isinstance(tensor, torch.Tensor)])
    if tuple(sizes) != model.codebook_sizes:
        raise InputError(path, "has codebooks of other sizes than its sid_spec says", "train it again")
    return model


def chosen_device(wanted: str) -> str:
    """Torch's device for --device ``wanted`` (auto: this process's GPU, or the CPU); raises `InputError`."""
    import torch

    if wanted not in ("auto", "cuda"):
        return wanted
    if torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if wanted == "cuda":
        raise InputError("--device", "cuda is not available on this machine", "cpu or auto")
    return "cpu"


def codes_batch(pids: np.ndarray, codes: np.ndarray) -> pa.RecordBatch:
    """Rows of a pid2sid.parquet: ``pids`` int64 [n] and ``codes`` [n, layers] as lists of int32."""
    offsets = np.arange(len(codes) + 1, dtype=np.int32) * codes.shape[1]
    lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(codes.astype(np.int32).ravel()))
    return pa.RecordBatch.from_arrays([pa.array(pids), lists], schema=SCHEMA)


def codes_batches(pids: np.ndarray, codes: np.ndarray) -> Iterator[pa.RecordBatch]:
    """`codes_batch` of so many rows at a time: the offsets of one have room for 2^31 codes."""
    for start in range(0, len(pids), _ROWS):
        yield codes_batch(pids[start : start + _ROWS], codes[start : start + _ROWS])


def sid_keys(codes: np.ndarray, spec: SidSpec) -> np.ndarray:
    """One value a SID, [n], equal where the SIDs are: int64 while the codebooks allow that many, otherwise bytes."""
    if np.prod([float(size) for size in spec.codebook_sizes]) < 2**63:
        return np.ravel_multi_index(tuple(codes.T), spec.codebook_sizes).astype(np.int64)
    return np.ascontiguousarray(codes).view(f"V{codes.shape[1] * codes.itemsize}").ravel()


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """How the first ``layer`` layers fit, and how evenly the codes of the last of them are used.

    ``mse``: mean squared length of the residual per vector; ``relative``: the same over the mean squared length of the
    vectors; ``codes_used``; ``entropy`` in bits; ``perplexity`` = 2 ** entropy; ``objective``: training loss by
    iteration.
    """

    layer: int
    mse: float
    relative: float
    codes_used: int
    entropy: float
    perplexity: float
    objective: list[float]

    def line(self, codebook_size: int) -> str:
        return (
            f"layer {self.layer}: error {self.mse:.6f}, relative {self.relative:.4f}, codes used "
            f"{self.codes_used}/{codebook_size}, entropy {self.entropy:.2f} bits, perplexity {self.perplexity:.1f}"
        )


def layer_report(layer: int, error: float, total: float, counts: np.ndarray, objective: list[float]) -> LayerReport:
    """The report of a layer: mean squared residual ``error``, mean square ``total`` of the vectors, ``counts`` [k]."""
    return LayerReport(layer, error, error / total if total else 0.0, *code_usage(counts), objective)


def code_usage(counts: np.ndarray) -> tuple[int, float, float]:
    """(codes used, entropy in bits, perplexity) of the items a code ``counts`` [k]."""
    share = counts[counts > 0] / counts.sum()
    entropy = float(-(share * np.log2(share)).sum())
    return len(share), entropy, float(2.0**entropy)


def layer_reports(model: Quantizer, vectors: np.ndarray, objective: list[float] = ()) -> list[LayerReport]:
    """A report for every layer of ``model`` over ``vectors`` [n, dim]; the training ``objective`` goes to the last."""
    errors, total = np.zeros(model.n_layers), 0.0
    used = [np.zeros(size, np.int64) for size in model.codebook_sizes]
    for start in range(0, len(vectors), _VECTORS):
        some = model.prepare(vectors[start : start + _VECTORS])
        codes = model.encode(some)
        total += float((some.astype(np.float64) ** 2).sum())
        for layer, counts in enumerate(used):
            errors[layer] += float(((some - model.decode(codes[:, : layer + 1])) ** 2).sum(dtype=np.float64))
            counts += np.bincount(codes[:, layer], minlength=len(counts))
    reports = []
    for layer, (error, counts) in enumerate(zip((errors / len(vectors)).tolist(), used, strict=True), 1):
        losses = list(objective) if layer == model.n_layers else []
        reports.append(layer_report(layer, error, total / len(vectors), counts, losses))
    return reports
