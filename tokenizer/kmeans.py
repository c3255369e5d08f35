"""k-means in torch: on a CPU, one GPU, or several under torchrun, each with its share of the points.

Lloyd's iterations (IEEE Trans. Inf. Theory 28, 1982) from random points or from k-means|| (Bahmani et al., VLDB 2012:
rounds that each draw many seeds with probability proportional to the squared distance from those already there). A
cluster that runs empty is re-seeded beside a large one, as faiss does. Balanced: after the plain iterations as many
more in which every centroid has a price, added to its squared distance, that makes the shares even: the dual variables
of an optimal transport with entropy (Cuturi, NeurIPS 2013), which cools from iteration to iteration.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist

from tokenizer.tiles import Codebook, assign

_SEEDING_POINTS = 16  # points a code that the seeding looks at
_ROUNDS = 12  # of k-means||
_SUM_POINTS = 1 << 16
_SPLIT = 1 / 1024  # how far the two halves of a split cluster part
# Balanced: how soft the assignment that the prices even out is, of the mean squared distance; where it begins and ends.
_COOLING, _SOFTNESS = 0.8, 0.1
_NO_DISTANCE = 1e-30  # in squared distance
_PRICE_POINTS = 64  # points a code that the prices look at
_SOFT_BYTES = 64 << 20
_CONVERGED = 1e-7  # relative change of the objective at which the iterations end


@dataclasses.dataclass(frozen=True)
class KmeansConfig:
    """Settings: ``niter`` iterations, ``nredo`` restarts of which the best is kept, ``init`` and ``balanced``."""

    niter: int = 20
    nredo: int = 1
    init: Literal["random", "kmeans++"] = "random"
    balanced: bool = False
    seed: int = 0


@dataclasses.dataclass
class Clusters:
    """``centroids`` float32 [k, d]; ``price`` float32 [k], None unless balanced; mean squared distance by iteration."""

    centroids: torch.Tensor
    price: torch.Tensor | None
    objective: list[float]


def world() -> tuple[int, int]:
    """(rank, processes) of the process group; (0, 1) without one."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def all_reduce(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over processes, in place; the tensor itself where there is one process."""
    if world()[1] > 1:
        dist.all_reduce(tensor)
    return tensor


def squared_norms(points: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vecdot(points, points)


def cluster_sums(points: torch.Tensor, codes: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(sums float64 [k, d], counts float64 [k]) over all processes; the same bytes every time, on a GPU too.

    Pieces are summed in float32: one sum of many millions would no longer grow by what is added to it.
    """
    sums = torch.zeros((k, points.shape[1]), dtype=torch.float64, device=points.device)
    rows = max(_SUM_POINTS, 8 * k)
    for start in range(0, len(points), rows):
        some, piece = points[start : start + rows], codes[start : start + rows]
        if points.is_cuda:
            # Atomic additions come in any order; sorted segments do not.
            order = torch.argsort(piece, stable=True)
            lengths = torch.bincount(piece, minlength=k)
            sums += torch.segment_reduce(some[order], "sum", lengths=lengths, initial=0)
        else:
            sums += torch.zeros((k, points.shape[1])).index_add_(0, piece, some)
    counts = torch.bincount(codes, minlength=k).double()
    return all_reduce(sums), all_reduce(counts)


class Kmeans:
    """k-means of one process's share of the points; all processes end with the same clusters."""

    def __init__(self, k: int, config: KmeansConfig) -> None:
        self.k, self.config = k, config

    def fit(self, points: torch.Tensor) -> Clusters:
        """Cluster this process's ``points`` float32 [n, d]. Raises ValueError with fewer points than clusters."""
        rank, processes = world()
        shares = torch.zeros(processes, dtype=torch.int64, device=points.device)
        shares[rank] = len(points)
        counts = all_reduce(shares).tolist()
        if sum(counts) < self.k:
            raise ValueError(f"{sum(counts)} vectors cannot fill {self.k} codes")
        norms = squared_norms(points)
        runs = (
            self._run(points, norms, counts, np.random.default_rng([self.config.seed, redo]))
            for redo in range(self.config.nredo)
        )
        return min(runs, key=lambda run: run.objective[-1])

    def _run(self, points: torch.Tensor, norms: torch.Tensor, counts: list[int], rng: np.random.Generator) -> Clusters:
        centroids, price, total = self._seeds(points, counts, rng), None, sum(counts)
        objective: list[float] = []
        for _ in range(self.config.niter):
            centroids, mean = self._step(points, norms, Codebook(centroids), total, rng)
            objective.append(mean)
            if len(objective) > 1 and objective[-2] - objective[-1] <= _CONVERGED * objective[-1]:
                break
        if self.config.balanced:
            # Prices are found before the step that uses them, at a temperature that falls: hot, every price moves a
            # little and none runs away; cold, the soft shares are near the hard ones that encoding will see.
            some = self._price_points(points, len(counts))
            price = torch.zeros(self.k, device=points.device)
            for softness in np.maximum(_COOLING ** np.arange(self.config.niter), _SOFTNESS).tolist():
                price = even_price(points, some, centroids, price, softness * objective[-1])
                centroids, mean = self._step(points, norms, Codebook(centroids, price), total, rng)
                objective.append(mean)
            price = even_price(points, some, centroids, price, _SOFTNESS * objective[-1], rounds=20)
        return Clusters(centroids, price, objective)

    def _step(
        self, points: torch.Tensor, norms: torch.Tensor, codebook: Codebook, total: int, rng: np.random.Generator
    ) -> tuple[torch.Tensor, float]:
        """(centroids after one iteration, mean squared distance before it over all processes, prices left out)."""
        codes, scores = assign(points, codebook)
        distances = norms - 2 * scores
        if codebook.price is not None:
            distances = distances - codebook.price[codes]
        mean = max(float(all_reduce(distances.double().sum())) / total, 0.0)
        sums, sizes = cluster_sums(points, codes, self.k)
        means = (sums / sizes.clamp(min=1)[:, None]).float()
        moved = torch.where(sizes[:, None] > 0, means, codebook.centroids)
        self._refill(moved, sizes, rng)
        return moved, mean

    def _price_points(self, points: torch.Tensor, processes: int) -> torch.Tensor:
        """Numbers of the points that the prices look at, drawn: the items of a file may stand by category."""
        wanted = min(-(-_PRICE_POINTS * self.k // processes), len(points))
        chosen = np.random.default_rng(self.config.seed).choice(len(points), wanted, replace=False)
        return torch.from_numpy(np.sort(chosen)).to(points.device)

    def _pick(self, points: torch.Tensor, counts: list[int], chosen: np.ndarray) -> torch.Tensor:
        """Points [m, d] by their numbers over all processes, on every process."""
        rank = world()[0]
        first = sum(counts[:rank])
        mine = (chosen >= first) & (chosen < first + counts[rank])
        found = torch.zeros((len(chosen), points.shape[1]), dtype=torch.float32, device=points.device)
        places = torch.from_numpy(np.flatnonzero(mine)).to(points.device)
        found[places] = points[torch.from_numpy(chosen[mine] - first).to(points.device)]
        return all_reduce(found)

    def _seeds(self, points: torch.Tensor, counts: list[int], rng: np.random.Generator) -> torch.Tensor:
        total = sum(counts)
        if self.config.init == "random":
            return self._pick(points, counts, rng.choice(total, self.k, replace=False))
        looked_at = min(total, _SEEDING_POINTS * self.k)
        return parallel_seeds(self._pick(points, counts, rng.choice(total, looked_at, replace=False)), self.k, rng)

    def _refill(self, centroids: torch.Tensor, sizes: torch.Tensor, rng: np.random.Generator) -> None:
        """Put every empty cluster beside one drawn by its size, the two a little apart; in place."""
        weights = sizes.cpu().numpy()
        for empty in np.flatnonzero(weights == 0).tolist():
            spare = np.maximum(weights - 1, 0)
            if not spare.any():
                return
            donor = int(rng.choice(self.k, p=spare / spare.sum()))
            signs = torch.from_numpy(rng.choice([-1.0, 1.0], centroids.shape[1])).to(centroids)
            centroids[empty] = centroids[donor] * (1 + _SPLIT * signs)
            centroids[donor] = centroids[donor] * (1 - _SPLIT * signs)
            weights[empty] = weights[donor] / 2
            weights[donor] /= 2


def even_price(
    points: torch.Tensor,
    chosen: torch.Tensor,
    centroids: torch.Tensor,
    price: torch.Tensor,
    softness: float,
    rounds: int = 3,
) -> torch.Tensor:
    """Prices float32 [k] that make the centroids' shares of all processes' ``points`` more even, from ``price`` on.

    ``chosen`` int64 [m]: the points that are looked at. ``softness`` is the temperature of the soft assignment, in
    squared distance. A round is a step of Sinkhorn's iteration: a centroid with more than its share becomes dearer by
    the logarithm of the excess. That settles because the assignment is soft: with a hard one a small change of price
    would move whole groups of points at once.
    """
    k, rows = len(centroids), max(1, _SOFT_BYTES // (4 * len(centroids)))
    # With fewer different points than centroids every point lies on one, and no price would move it.
    for _ in range(rounds if softness > _NO_DISTANCE else 0):
        codebook = Codebook(centroids, price)
        shares = torch.zeros(k + 1, dtype=torch.float64, device=points.device)
        for start in range(0, len(chosen), rows):
            some = points[chosen[start : start + rows]]
            scores = codebook.scores(some, torch.empty((len(some), k), device=points.device))
            shares[:k] += torch.softmax(scores.mul_(2 / softness), dim=1).sum(0, dtype=torch.float64)
        shares[k] = len(chosen)
        shares = all_reduce(shares)
        price = price + softness * torch.log((shares[:k] / shares[k] * k).clamp(min=1e-6)).float()
        price = price - price.mean()
    return price


def parallel_seeds(points: torch.Tensor, k: int, rng: np.random.Generator) -> torch.Tensor:
    """``k`` of ``points`` [m, d], each round drawn by the squared distance from the seeds before it."""
    seeds = [int(rng.integers(len(points)))]
    norms = squared_norms(points)
    nearest = torch.full((len(points),), torch.inf, device=points.device)
    fresh = seeds
    while len(seeds) < k:
        _, scores = assign(points, Codebook(points[torch.tensor(fresh, device=points.device)]))
        nearest = torch.minimum(nearest, (norms - 2 * scores).clamp(min=0))
        nearest[torch.tensor(seeds, device=points.device)] = 0
        weights = nearest.double().cpu().numpy()
        wanted = min(k - len(seeds), max(1, k // _ROUNDS) if len(seeds) > 1 else min(8, k))
        far = int((weights > 0).sum())
        if far == 0:  # fewer different points than seeds: any others will do
            others = np.setdiff1d(np.arange(len(points)), seeds)
            fresh = rng.choice(others, wanted, replace=False).tolist()
        else:
            shares = weights / weights.sum()
            fresh = rng.choice(len(points), min(wanted, far), replace=False, p=shares).tolist()
        seeds = seeds + fresh
    return points[torch.tensor(seeds, device=points.device)].clone()
