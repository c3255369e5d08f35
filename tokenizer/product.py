"""Product quantisation (Jégou et al., PAMI 2011) and its optimised rotation (Ge et al., CVPR 2013), by faiss.

To compare residual k-means with: a layer is a sub-space of its own, so a SID's prefix says nothing about the rest.
"""

from __future__ import annotations

import argparse
from typing import Any, ClassVar

import numpy as np
import torch

from onerec.errors import InputError
from tokenizer.quantizer import Quantizer
from tokenizer.tiles import Codebook, assign


class ProductQuantizer(Quantizer):
    """``centroids`` float32 [n_layers, codebook_size, d / n_layers], ``rotation`` [d, d] (None for PQ), ``mean`` [d].

    ``d`` is ``dim`` rounded up to a multiple of the layers; vectors are padded with zeros.
    """

    residual: ClassVar[bool] = False

    def __init__(
        self,
        dim: int,
        centroids: np.ndarray,
        mean: np.ndarray,
        rotation: np.ndarray | None = None,
        normalize: bool = False,
    ) -> None:
        self._dim, self.centroids, self.mean, self.rotation = dim, centroids, mean, rotation
        self.normalize = normalize
        self.kind = "pq" if rotation is None else "opq"
        self.to("cpu")

    def to(self, device: str | torch.device) -> ProductQuantizer:
        self._device = torch.device(device)
        self._codebooks = [Codebook(torch.from_numpy(layer).to(self._device)) for layer in self.centroids]
        return self

    @property
    def dim(self) -> int:
        return self._dim

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.centroids.shape[1],) * self.centroids.shape[0]

    @classmethod
    def train(cls, vectors: np.ndarray, args: argparse.Namespace) -> tuple[ProductQuantizer, list[float]]:
        rotate = args.kind == "opq"
        try:
            fitted = cls.fit(vectors, args.n_layers, args.codebook_size, rotate, args.niter, args.seed, args.normalize)
        except ValueError as error:
            raise InputError("--codebook_size", f"{error}, which faiss's {args.kind} needs", "a power of two") from None
        return fitted, []

    @classmethod
    def fit(
        cls,
        vectors: np.ndarray,
        n_layers: int,
        codebook_size: int,
        rotate: bool,
        niter: int = 25,
        seed: int = 0,
        normalize: bool = False,
    ) -> ProductQuantizer:
        """Train on ``vectors`` float32 [n, dim]; raises ValueError where ``codebook_size`` is no power of two."""
        import faiss

        bits = codebook_size.bit_length() - 1
        if codebook_size != 1 << bits:
            raise ValueError(f"{codebook_size} is not a power of two")
        dim = vectors.shape[1]
        padded = -(-dim // n_layers) * n_layers
        empty = np.zeros((n_layers, 1, padded // n_layers), np.float32)
        points, rotation = cls(dim, empty, np.zeros(padded, np.float32), None, normalize)._padded(vectors), None
        if rotate:
            opq = faiss.OPQMatrix(padded, n_layers, padded)
            opq.niter = niter
            opq.pq = inner = _faiss_pq(padded, n_layers, bits, 4, seed)  # k-means iterations of each of OPQ's rounds
            opq.train(points)
            del inner
            rotation = faiss.vector_to_array(opq.A).reshape(padded, padded).copy()
            points = np.ascontiguousarray(points @ rotation.T)
        pq = _faiss_pq(padded, n_layers, bits, niter, seed)
        pq.train(points)
        centroids = faiss.vector_to_array(pq.centroids).reshape(n_layers, codebook_size, -1).copy()
        return cls(dim, centroids, points.mean(0), rotation, normalize)

    def _padded(self, vectors: np.ndarray) -> np.ndarray:
        vectors = self.prepare(vectors)
        return np.ascontiguousarray(np.pad(vectors, ((0, 0), (0, len(self.mean) - vectors.shape[1]))))

    def encode(self, vectors: np.ndarray, n_layers: int | None = None, beam: int = 1) -> np.ndarray:
        """Codes int32 [n, n_layers]; sub-spaces do not depend on another, so a beam is refused (ValueError)."""
        if beam > 1:
            raise ValueError("product quantisation has no residual paths")
        points = self._padded(vectors)
        if self.rotation is not None:
            points = points @ self.rotation.T
        width = self.centroids.shape[2]
        codes = []
        for layer, codebook in enumerate(self._codebooks[: n_layers or self.n_layers]):
            some = np.ascontiguousarray(points[:, layer * width : (layer + 1) * width])
            codes.append(assign(torch.from_numpy(some).to(self._device), codebook)[0].int().cpu().numpy())
        return np.stack(codes, axis=1)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Reconstructions float32 [n, dim]; the sub-spaces of layers that ``codes`` lacks get the training mean."""
        width = self.centroids.shape[2]
        points = np.tile(self.mean, (len(codes), 1))
        for layer in range(codes.shape[1]):
            points[:, layer * width : (layer + 1) * width] = self.centroids[layer][codes[:, layer]]
        if self.rotation is not None:
            points = points @ self.rotation
        return points[:, : self.dim]

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        tensors = {"centroids": torch.from_numpy(self.centroids), "mean": torch.from_numpy(self.mean)}
        if self.rotation is not None:
            tensors["rotation"] = torch.from_numpy(self.rotation)
        return tensors, {"dim": self.dim, "normalize": self.normalize}

    @classmethod
    def from_state(cls, tensors: dict[str, Any], config: dict[str, Any]) -> ProductQuantizer:
        rotation = tensors.get("rotation")
        return cls(
            int(config["dim"]),
            tensors["centroids"].numpy(),
            tensors["mean"].numpy(),
            None if rotation is None else rotation.numpy(),
            bool(config["normalize"]),
        )


def _faiss_pq(dim: int, layers: int, bits: int, niter: int, seed: int) -> Any:
    import faiss

    pq = faiss.ProductQuantizer(dim, layers, bits)
    pq.cp.niter, pq.cp.seed = niter, seed % 2**31
    pq.cp.min_points_per_centroid, pq.cp.max_points_per_centroid = 1, 1 << 30
    return pq
