"""Residual k-means: every layer clusters what the layers before it left over (OpenOneRec, arXiv 2512.24762).

Codes of a vector x: c_1 is the nearest centroid of layer 1, c_2 the nearest of layer 2 to x minus the first centroid,
and so on; the reconstruction is the sum of the chosen centroids.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from onerec.errors import InputError
from onerec.run import atomic_path
from onerec.sid import SidSpec

MODEL_FILE = "model.pt"


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """How one layer fits: reconstruction error after it, and how evenly its codes are used.

    ``mse``: mean squared length of the residual per vector; ``relative``: the same over the mean squared length of the
    vectors; ``codes_used``; ``entropy`` in bits; ``perplexity`` = 2 ** entropy; ``objective``: k-means loss by iteration.
    """

    layer: int
    mse: float
    relative: float
    codes_used: int
    entropy: float
    perplexity: float
    objective: list[float]

    def line(self, codebook_size: int) -> str:
        """One line for the log."""
        return (
            f"layer {self.layer}: error {self.mse:.6f}, relative {self.relative:.4f}, codes used "
            f"{self.codes_used}/{codebook_size}, entropy {self.entropy:.2f} bits, perplexity {self.perplexity:.1f}"
        )


class ResKmeans:
    """Centroids of every layer, float32 [codebook_size, dim] each."""

    def __init__(self, centroids: list[np.ndarray]) -> None:
        self.centroids = [np.ascontiguousarray(layer, dtype=np.float32) for layer in centroids]

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return self.centroids[0].shape[1]

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return len(self.centroids)

    @property
    def spec(self) -> SidSpec:
        """The SID specification that these codebooks imply."""
        return SidSpec(tuple(len(layer) for layer in self.centroids))

    @classmethod
    def fit(
        cls,
        vectors: np.ndarray,
        n_layers: int,
        codebook_size: int,
        niter: int = 20,
        nredo: int = 1,
        seed: int = 0,
        on_layer: Callable[[LayerReport], None] | None = None,
    ) -> ResKmeans:
        """Train on ``vectors`` float32 [n, dim], layer by layer, with faiss (on GPU where faiss-gpu is installed).

        Empty clusters are re-seeded by faiss, which splits a large one. Raises ValueError with fewer vectors than codes.
        """
        import faiss

        if len(vectors) < codebook_size:
            raise ValueError(f"{len(vectors)} vectors cannot fill {codebook_size} codes")
        gpu = getattr(faiss, "get_num_gpus", lambda: 0)() > 0
        residual = np.array(vectors, dtype=np.float32, order="C")
        total = float((residual**2).sum(1).mean())
        centroids = []
        for layer in range(n_layers):
            kmeans = faiss.Kmeans(
                residual.shape[1],
                codebook_size,
                niter=niter,
                nredo=nredo,
                seed=seed + layer + 1,
                gpu=gpu,
                min_points_per_centroid=1,
                max_points_per_centroid=1 << 30,
            )
            kmeans.train(residual)
            centroids.append(kmeans.centroids.copy())
            codes = nearest(residual, centroids[-1])
            residual -= centroids[-1][codes]
            if on_layer:
                on_layer(
                    _report(layer + 1, residual, total, codes, codebook_size, [float(x) for x in kmeans.obj])
                )
        return cls(centroids)

    def encode(self, vectors: np.ndarray, n_layers: int | None = None) -> np.ndarray:
        """Codes int32 [n, n_layers] of ``vectors`` [n, dim], greedy, layer by layer."""
        residual = np.array(vectors, dtype=np.float32, order="C")
        codes = np.empty((len(residual), n_layers or self.n_layers), dtype=np.int32)
        for layer in range(codes.shape[1]):
            codes[:, layer] = nearest(residual, self.centroids[layer])
            residual -= self.centroids[layer][codes[:, layer]]
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Reconstructions float32 [n, dim] of ``codes`` [n, layers]; fewer layers than trained give the prefix's."""
        return sum(self.centroids[layer][codes[:, layer]] for layer in range(codes.shape[1]))

    def save(self, path: Path) -> None:
        """Write ``model.pt`` (state dict ``centroids.N`` and the specification), atomically."""
        import torch

        state: dict[str, Any] = {
            f"centroids.{i}": torch.from_numpy(layer) for i, layer in enumerate(self.centroids)
        }
        with atomic_path(path) as temporary:
            torch.save({"state_dict": state, "sid_spec": self.spec.as_dict()}, temporary)

    @classmethod
    def load(cls, path: Path) -> ResKmeans:
        """Read ``model.pt``, ours or a plain ``centroids.N`` state dict as the original saves; weights only."""
        import torch

        try:
            value = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise InputError(path, "no such file", "give the model.pt of train_res_kmeans.py") from None
        except (
            Exception
        ) as error:  # torch raises a different type for every way in which a file is not a checkpoint
            raise InputError(
                path, f"is not a checkpoint ({type(error).__name__})", "train it again"
            ) from None
        state = value.get("state_dict", value) if isinstance(value, dict) else {}
        layers = sorted(
            (int(key.rpartition(".")[2]), t) for key, t in state.items() if key.rpartition(".")[2].isdigit()
        )
        if not layers or [number for number, _ in layers] != list(range(len(layers))):
            raise InputError(
                path, "holds no centroids.0, centroids.1, …", "give the model.pt of train_res_kmeans.py"
            )
        return cls([tensor.float().numpy() for _, tensor in layers])


def nearest(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Index int64 [n] of the centroid nearest to each vector; the smaller index where two are equally near."""
    import faiss

    index = faiss.IndexFlatL2(centroids.shape[1])
    index.add(centroids)
    return index.search(vectors, 1)[1][:, 0]


def _report(
    layer: int, residual: np.ndarray, total: float, codes: np.ndarray, size: int, objective: list[float]
) -> LayerReport:
    mse = float((residual**2).sum(1).mean())
    counts = np.bincount(codes, minlength=size)
    share = counts[counts > 0] / counts.sum()
    entropy = float(-(share * np.log2(share)).sum())
    return LayerReport(layer, mse, mse / total, int((counts > 0).sum()), entropy, 2.0**entropy, objective)
