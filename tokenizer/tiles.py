"""Nearest of many centroids at the speed of the matrix product: tiles of scores that stay in the cache.

On a CPU every thread takes tiles of its own, with a single-threaded matrix product and NumPy's argmax (both let other
threads run), so a tile's scores are read while they are in that core's cache. On a GPU a tile is a share of its memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

# Bytes of scores in a tile: what a core's cache holds on a CPU, a small share of a GPU's memory.
_TILE_BYTES = {"cpu": 2 << 20, "cuda": 256 << 20}
_MIN_ROWS = 64
_TASKS_A_THREAD = 8  # so that a thread that is held up leaves its tiles to the others


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads whose torch operators use one thread each."""
    pool = ThreadPoolExecutor(threads, "tiles", initializer=torch.set_num_threads, initargs=(1,))
    list(pool.map(lambda _: None, range(threads)))
    # The initialiser also sets what threads born later begin with; this thread's number goes back to what it was.
    torch.set_num_threads(threads)
    return pool


def for_tiles(n: int, columns: int, device: torch.device, work: Callable[[int, int, torch.Tensor], None]) -> None:
    """Call ``work(start, end, scores)`` for tiles that cover 0 to ``n``.

    ``scores`` is room for float32 [end - start, columns]. On a CPU the calls come from several threads. The tiles'
    bounds depend on ``columns`` alone, not on the number of threads.
    """
    rows = max(_TILE_BYTES[device.type] // (4 * columns), _MIN_ROWS)
    starts = range(0, n, rows)

    def some(first: int, last: int) -> None:
        room = torch.empty((min(rows, n), columns), dtype=torch.float32, device=device)
        for start in starts[first:last]:
            end = min(start + rows, n)
            work(start, end, room[: end - start])

    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if threads == 1 or not starts:
        some(0, len(starts))
        return
    step = max(1, -(-len(starts) // (threads * _TASKS_A_THREAD)))
    pool = _pool(threads)
    torch.set_num_threads(1)  # MKL knows one number for all threads, and with another one sums in another order
    try:
        jobs = [pool.submit(some, first, first + step) for first in range(0, len(starts), step)]
        for job in jobs:
            job.result()
    finally:
        torch.set_num_threads(threads)


class Codebook:
    """Centroids float32 [k, d] to assign vectors to; ``price`` [k] is added to a centroid's squared distances."""

    def __init__(self, centroids: torch.Tensor, price: torch.Tensor | None = None) -> None:
        self.centroids, self.price = centroids, price
        squares = (centroids.double() ** 2).sum(1)
        if price is not None:
            squares = squares + price.double()
        # Of |x - c|^2 + price only 2 x.c - |c|^2 - price depends on the centroid; its half is one addmm.
        self.offset = (-squares / 2).float()
        self.columns = centroids.T.contiguous()

    def __len__(self) -> int:
        return len(self.centroids)

    def scores(self, points: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """(|x|^2 - |x - c|^2 - price) / 2, float32 [n, k] into ``out``: the larger the nearer."""
        return torch.addmm(self.offset, points, self.columns, out=out)


def best_column(scores: torch.Tensor) -> torch.Tensor:
    """Index int64 [n] of the largest score of every row, the smaller where two are equal on a CPU."""
    if scores.is_cuda:
        return scores.argmax(dim=1)
    return torch.from_numpy(scores.numpy().argmax(1))  # NumPy's reads at the speed of memory, torch's does not


def assign(points: torch.Tensor, codebook: Codebook) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes int64 [n], scores float32 [n]) of the nearest centroid of every point, prices included."""
    codes = torch.empty(len(points), dtype=torch.int64, device=points.device)
    best = torch.empty(len(points), dtype=torch.float32, device=points.device)

    def work(start: int, end: int, room: torch.Tensor) -> None:
        scores = codebook.scores(points[start:end], room)
        place = best_column(scores)
        codes[start:end] = place
        best[start:end] = scores.gather(1, place[:, None])[:, 0]

    for_tiles(len(points), len(codebook), points.device, work)
    return codes, best


def residual_codes(points: torch.Tensor, codebooks: list[Codebook], residuals: bool = False) -> torch.Tensor:
    """Greedy codes int32 [n, layers]: each layer takes what is nearest to what the layers before it left of a point.

    With ``residuals`` the points themselves become what the last layer leaves, in place.
    """
    codes = torch.empty((len(points), len(codebooks)), dtype=torch.int32, device=points.device)
    widest = max(len(codebook) for codebook in codebooks)

    def work(start: int, end: int, room: torch.Tensor) -> None:
        residual = points[start:end]
        for layer, codebook in enumerate(codebooks):
            scores = room.view(-1)[: (end - start) * len(codebook)].view(end - start, len(codebook))
            place = best_column(codebook.scores(residual, scores))
            codes[start:end, layer] = place
            if residuals:
                residual -= codebook.centroids[place]
            elif layer + 1 < len(codebooks):
                residual = residual - codebook.centroids[place]

    for_tiles(len(points), widest, points.device, work)
    return codes


def beam_codes(points: torch.Tensor, codebooks: list[Codebook], beam: int) -> torch.Tensor:
    """Codes int32 [n, layers] of the best reconstruction among ``beam`` residual paths; prices are left out.

    Every layer keeps, for every point, the ``beam`` best of all its paths' continuations (Babenko and Lempitsky, CVPR
    2014, for additive codes). Without prices ``beam`` 1 is `residual_codes`.
    """
    codebooks = [Codebook(codebook.centroids) if codebook.price is not None else codebook for codebook in codebooks]
    codes = torch.empty((len(points), len(codebooks)), dtype=torch.int32, device=points.device)
    columns = beam * max(len(codebook) for codebook in codebooks)

    def work(start: int, end: int, room: torch.Tensor) -> None:
        n = end - start
        left = points[start:end, None]  # what every path leaves: [n, paths, d]
        paths = torch.empty((n, 1, 0), dtype=torch.int32, device=points.device)
        for codebook in codebooks:
            width, k = left.shape[1], len(codebook)
            scores = room.view(-1)[: n * width * k].view(n * width, k)
            codebook.scores(left.reshape(n * width, -1), scores)
            # The squared length of what a continuation leaves is |left|^2 - 2 score.
            own = torch.linalg.vecdot(left, left) / 2
            scores = scores.view(n, width, k).sub_(own[:, :, None]).view(n, -1)
            place = scores.topk(min(beam, scores.shape[1]), dim=1).indices
            path, code = place // k, place % k
            row = torch.arange(n, device=points.device)[:, None]
            left = left[row, path] - codebook.centroids[code]
            paths = torch.cat([paths[row, path], code[:, :, None].int()], dim=2)
        best = torch.linalg.vecdot(left, left).argmin(dim=1)
        codes[start:end] = paths[torch.arange(n, device=points.device), best]

    for_tiles(len(points), columns, points.device, work)
    return codes
