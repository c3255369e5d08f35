"""Residual k-means: every layer clusters what the layers before it left over (OpenOneRec, arXiv 2512.24762).

Codes of a vector x: c_1 is the nearest centroid of layer 1, c_2 the nearest of layer 2 to x minus the first centroid,
and so on; the reconstruction is the sum of the chosen centroids. Balanced layers add a price to a centroid's squared
distance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from tokenizer.kmeans import Clusters, Kmeans, KmeansConfig, all_reduce, squared_norms
from tokenizer.quantizer import LayerReport, Quantizer, layer_report
from tokenizer.tiles import Codebook, beam_codes, residual_codes


class ResKmeans(Quantizer):
    """``centroids`` of a layer: float32 [codebook_size, dim]; ``prices``: [codebook_size] where it is balanced."""

    kind = "res_kmeans"

    def __init__(
        self,
        centroids: Sequence[np.ndarray],
        prices: Sequence[np.ndarray | None] | None = None,
        normalize: bool = False,
    ) -> None:
        self.centroids = [np.ascontiguousarray(layer, dtype=np.float32) for layer in centroids]
        self.prices = list(prices) if prices is not None else [None] * len(self.centroids)
        self.normalize = normalize
        self.to("cpu")

    def to(self, device: str | torch.device) -> ResKmeans:
        self._device = torch.device(device)
        self._codebooks = []
        for centroids, price in zip(self.centroids, self.prices, strict=True):
            price = None if price is None else torch.from_numpy(price).to(device)
            self._codebooks.append(Codebook(torch.from_numpy(centroids).to(device), price))
        return self

    @property
    def dim(self) -> int:
        return self.centroids[0].shape[1]

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return tuple(len(layer) for layer in self.centroids)

    @classmethod
    def fit(
        cls,
        vectors: np.ndarray,
        n_layers: int,
        codebook_size: int,
        config: KmeansConfig | None = None,
        *,
        backend: str = "faiss",
        normalize: bool = False,
        device: str | torch.device = "cpu",
        overwrite: bool = False,
        on_layer: Callable[[LayerReport], None] | None = None,
    ) -> ResKmeans:
        """Train on ``vectors`` float32 [n, dim], layer by layer; layer l draws from ``config.seed`` + l.

        ``backend`` faiss (on a GPU where faiss-gpu is installed) or torch (on ``device``; under torchrun every process
        brings its share of the vectors and gets the same model). ``overwrite``: ``vectors`` are working memory,
        instead of a copy. Empty clusters are re-seeded beside large ones. Raises ValueError with fewer vectors than
        codes.
        """
        config = config or KmeansConfig()
        model = cls([np.zeros((1, vectors.shape[1]))], normalize=normalize)
        prepared = model.prepare(vectors)
        if prepared is vectors and not overwrite:
            prepared = prepared.copy()
        points = torch.from_numpy(prepared).to(device)
        count = float(all_reduce(torch.tensor(float(len(points)), dtype=torch.float64, device=points.device)))
        total = _mean(squared_norms(points), count)
        centroids, prices = [], []
        for layer in range(n_layers):
            own = dataclasses.replace(config, seed=config.seed + layer + 1)
            faiss = backend == "faiss"
            clusters = _faiss_clusters(points, codebook_size, own) if faiss else Kmeans(codebook_size, own).fit(points)
            codebook = Codebook(clusters.centroids, clusters.price)
            codes = residual_codes(points, [codebook], residuals=True)
            used = all_reduce(torch.bincount(codes[:, 0].long(), minlength=codebook_size).float())
            centroids.append(clusters.centroids.cpu().numpy())
            prices.append(None if clusters.price is None else clusters.price.cpu().numpy())
            if on_layer:
                error = _mean(squared_norms(points), count)
                on_layer(layer_report(layer + 1, error, total, used.cpu().numpy(), clusters.objective))
        return cls(centroids, prices, normalize)

    def encode(self, vectors: np.ndarray, n_layers: int | None = None, beam: int = 1) -> np.ndarray:
        """Codes int32 [n, n_layers] of ``vectors`` [n, dim]: greedy, or the best of ``beam`` paths."""
        points = torch.from_numpy(self.prepare(vectors)).to(self._device)
        codebooks = self._codebooks[: n_layers or self.n_layers]
        codes = residual_codes(points, codebooks) if beam == 1 else beam_codes(points, codebooks, beam)
        return codes.cpu().numpy()

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Reconstructions float32 [n, dim] of ``codes`` [n, layers]; fewer layers than trained give the prefix's."""
        return sum(self.centroids[layer][codes[:, layer]] for layer in range(codes.shape[1]))

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """``centroids.N`` as the original saves them, and ``prices.N`` of balanced layers."""
        tensors = {f"centroids.{i}": torch.from_numpy(layer) for i, layer in enumerate(self.centroids)}
        tensors |= {f"prices.{i}": torch.from_numpy(price) for i, price in enumerate(self.prices) if price is not None}
        return tensors, {"normalize": self.normalize}

    @classmethod
    def from_state(cls, tensors: dict[str, Any], config: dict[str, Any]) -> ResKmeans:
        """From `state`, or from a plain ``centroids.N`` state dict; raises ValueError where it holds none."""
        layers = {}
        for key, tensor in tensors.items():
            name, _, number = str(key).rpartition(".")
            if name.rpartition(".")[2] == "centroids" and number.isdigit():
                layers[int(number)] = tensor.float().numpy()
        if not layers or sorted(layers) != list(range(len(layers))):
            raise ValueError("it holds no centroids.0, centroids.1, …")
        if len({layer.shape[1:] for layer in layers.values()}) > 1 or layers[0].ndim != 2:
            raise ValueError("its layers are of different dimensions")
        prices = [tensors.get(f"prices.{number}") for number in sorted(layers)]
        return cls(
            [layers[number] for number in sorted(layers)],
            [None if price is None else price.numpy() for price in prices],
            bool(config.get("normalize", False)),
        )


def _mean(values: torch.Tensor, count: float) -> float:
    """Mean over all processes' ``values`` [n], of which there are ``count``."""
    return float(all_reduce(values.double().sum())) / count


def _faiss_clusters(points: torch.Tensor, size: int, config: KmeansConfig) -> Clusters:
    """k-means by faiss, which re-seeds an empty cluster by splitting a large one."""
    import faiss

    if len(points) < size:
        raise ValueError(f"{len(points)} vectors cannot fill {size} codes")
    kmeans = faiss.Kmeans(
        points.shape[1],
        size,
        niter=config.niter,
        nredo=config.nredo,
        seed=config.seed % 2**31,  # an int of C
        gpu=getattr(faiss, "get_num_gpus", lambda: 0)() > 0,
        min_points_per_centroid=1,
        max_points_per_centroid=1 << 30,
    )
    if config.init == "kmeans++":
        kmeans.cp.init_method = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    kmeans.train(points.numpy())
    # faiss gives the sum over the points.
    objective = [float(value) / len(points) for value in kmeans.obj]
    return Clusters(torch.from_numpy(kmeans.centroids.copy()), None, objective)
