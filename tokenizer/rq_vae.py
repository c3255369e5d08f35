"""RQ-VAE: an autoencoder whose code is quantised residual by residual (Lee et al., CVPR 2022; TIGER, arXiv 2305.05065).

Loss of a vector: squared error of the decoder, plus for every layer the squared distance of its residual to the chosen
code, once for the code and ``beta`` times for the residual; the gradient passes the quantisation unchanged. Codebooks
begin as k-means of the first latents, and a code that an epoch did not use is put onto a latent residual drawn from it.
To compare residual k-means with.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from onerec.errors import InputError
from onerec.run import get_logger
from tokenizer.kmeans import Kmeans, KmeansConfig
from tokenizer.quantizer import Quantizer, chosen_device
from tokenizer.tiles import Codebook, beam_codes, residual_codes

_BATCH = 8192  # rows encoded at a time
_INIT_POINTS = 64  # latents a code that the codebooks begin from


@dataclasses.dataclass(frozen=True)
class RqVaeConfig:
    """Settings of the network and of its training."""

    hidden: tuple[int, ...] = (512, 256, 128)
    latent_dim: int = 32
    beta: float = 0.25
    epochs: int = 200
    batch_size: int = 1024
    lr: float = 1e-3
    seed: int = 0


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        layers += [*([nn.ReLU()] if i else []), nn.Linear(a, b)]
    return nn.Sequential(*layers)


class _Network(nn.Module):
    """Encoder, codebooks [layers][k, latent_dim], decoder; ``mean`` [dim] and ``scale`` give vectors unit variance."""

    def __init__(self, dim: int, layers: int, codes: int, hidden: Sequence[int], latent_dim: int) -> None:
        super().__init__()
        self.encoder = mlp([dim, *hidden, latent_dim])
        self.decoder = mlp([latent_dim, *reversed(hidden), dim])
        self.codebooks = nn.ParameterList(nn.Parameter(torch.zeros(codes, latent_dim)) for _ in range(layers))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(()))

    def latent(self, vectors: torch.Tensor) -> torch.Tensor:
        return self.encoder((vectors - self.mean) / self.scale)

    def books(self) -> list[Codebook]:
        return [Codebook(book.detach()) for book in self.codebooks]

    def loss(self, vectors: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(loss, codes int64 [n, layers], latents) of a batch."""
        latents = self.latent(vectors)
        codes = residual_codes(latents.detach(), self.books()).long()
        residual, total, quantised = latents, latents.new_zeros(()), torch.zeros_like(latents)
        for layer, book in enumerate(self.codebooks):
            chosen = book[codes[:, layer]]
            total = total + ((residual.detach() - chosen) ** 2).sum(1).mean()
            total = total + beta * ((residual - chosen.detach()) ** 2).sum(1).mean()
            residual, quantised = residual - chosen.detach(), quantised + chosen
        passed = latents + (quantised - latents).detach()
        wanted = (vectors - self.mean) / self.scale
        return total + ((self.decoder(passed) - wanted) ** 2).sum(1).mean(), codes, latents


class RqVae(Quantizer):
    """A trained RQ-VAE; codes are those of its latents."""

    kind = "rq_vae"

    def __init__(self, network: _Network, config: dict[str, Any]) -> None:
        self._network, self._config = network.eval(), config
        self.normalize = bool(config["normalize"])
        self._device = torch.device("cpu")

    def to(self, device: str | torch.device) -> RqVae:
        self._device = torch.device(device)
        self._network.to(self._device)
        return self

    @property
    def dim(self) -> int:
        return len(self._network.mean)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return tuple(len(book) for book in self._network.codebooks)

    @classmethod
    def train(cls, vectors: np.ndarray, args: argparse.Namespace) -> tuple[RqVae, list[float]]:
        config = RqVaeConfig(epochs=args.epochs, lr=args.lr, seed=args.seed)
        losses: list[float] = []

        def on_epoch(loss: float) -> None:
            losses.append(loss)
            if len(losses) % max(1, args.epochs // 10) == 0:
                get_logger("tokenizer").info(f"epoch {len(losses)}/{args.epochs}: loss {loss:.6f}")

        sizes, device = (args.n_layers, args.codebook_size), chosen_device(args.device)
        try:
            model = cls.fit(vectors, *sizes, config, args.normalize, device, on_epoch)
        except ValueError as error:
            raise InputError(args.data_path[0], str(error), "another --lr") from None
        return model.to("cpu"), losses

    @classmethod
    def fit(
        cls,
        vectors: np.ndarray,
        n_layers: int,
        codebook_size: int,
        config: RqVaeConfig | None = None,
        normalize: bool = False,
        device: str | torch.device = "cpu",
        on_epoch: Callable[[float], None] | None = None,
    ) -> RqVae:
        """Train on ``vectors`` float32 [n, dim]; ``on_epoch`` gets each epoch's mean loss.

        Raises ValueError with fewer vectors than codes, or where the loss is no longer finite.
        """
        config = config or RqVaeConfig()
        if len(vectors) < codebook_size:
            raise ValueError(f"{len(vectors)} vectors cannot fill {codebook_size} codes")
        generator = torch.Generator().manual_seed(config.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = _Network(vectors.shape[1], n_layers, codebook_size, config.hidden, config.latent_dim)
        network.to(device)
        kept = {"hidden": list(config.hidden), "latent_dim": config.latent_dim, "normalize": normalize}
        model = cls(network, kept).to(device)
        points = torch.from_numpy(model.prepare(vectors))
        network.mean.copy_(points.mean(0))
        network.scale.copy_((points - points.mean(0)).square().mean().sqrt().clamp(min=1e-12))
        _begin_codebooks(network, points, codebook_size, config, device)
        optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=0.0)
        network.train()
        for _ in range(config.epochs):
            used = [torch.zeros(codebook_size, dtype=torch.bool) for _ in range(n_layers)]
            losses, last = [], None
            for rows in torch.randperm(len(points), generator=generator).split(config.batch_size):
                loss, codes, last = network.loss(points[rows].to(device), config.beta)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
                for layer, seen in enumerate(used):
                    seen[codes[:, layer].cpu()] = True
            if not np.isfinite(losses).all():
                raise ValueError("the loss is not finite: lower the learning rate")
            _reseed(network, used, last.detach(), generator)
            if on_epoch:
                on_epoch(float(np.mean(losses)))
        network.eval()
        return model

    @torch.inference_mode()
    def encode(self, vectors: np.ndarray, n_layers: int | None = None, beam: int = 1) -> np.ndarray:
        """Codes int32 [n, n_layers]: greedy in the latent space, or the best there of ``beam`` paths."""
        vectors = self.prepare(vectors)
        books = self._network.books()[: n_layers or self.n_layers]
        found = []
        for start in range(0, len(vectors), _BATCH):
            latents = self._network.latent(torch.from_numpy(vectors[start : start + _BATCH]).to(self._device))
            codes = residual_codes(latents, books) if beam == 1 else beam_codes(latents, books, beam)
            found.append(codes.cpu().numpy())
        return np.concatenate(found) if found else np.zeros((0, len(books)), np.int32)

    @torch.inference_mode()
    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Reconstructions float32 [n, dim]: what the decoder makes of the sum of the codes that there are."""
        network, wanted = self._network, torch.from_numpy(codes).long().to(self._device)
        latents = sum(network.codebooks[layer][wanted[:, layer]] for layer in range(codes.shape[1]))
        return (network.decoder(latents) * network.scale + network.mean).cpu().numpy()

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        tensors = {name: value.detach().cpu() for name, value in self._network.state_dict().items()}
        return tensors, self._config

    @classmethod
    def from_state(cls, tensors: dict[str, Any], config: dict[str, Any]) -> RqVae:
        layers = sum(name.startswith("codebooks.") for name in tensors)
        network = _Network(
            len(tensors["mean"]), layers, len(tensors["codebooks.0"]), config["hidden"], config["latent_dim"]
        )
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(str(error).splitlines()[0]) from None
        return cls(network, dict(config))


@torch.no_grad()
def _begin_codebooks(
    network: _Network, points: torch.Tensor, size: int, config: RqVaeConfig, device: str | torch.device
) -> None:
    """Codebooks from k-means of the untrained encoder's latents, layer by layer."""
    some = np.random.default_rng(config.seed).permutation(len(points))[: _INIT_POINTS * size]
    residual = network.latent(points[torch.from_numpy(some)].to(device))
    for layer, book in enumerate(network.codebooks):
        clusters = Kmeans(size, KmeansConfig(niter=10, seed=config.seed + layer)).fit(residual)
        book.copy_(clusters.centroids)
        residual_codes(residual, [Codebook(clusters.centroids)], residuals=True)


@torch.no_grad()
def _reseed(network: _Network, used: Sequence[torch.Tensor], latents: torch.Tensor, generator: torch.Generator) -> None:
    """Put codes that an epoch did not use onto residuals of ``latents``, drawn at random."""
    residual = latents.clone()
    for seen, book in zip(used, network.codebooks, strict=True):
        dead = torch.flatten((~seen).nonzero())
        if len(dead):
            chosen = torch.randint(len(residual), (len(dead),), generator=generator)
            book[dead.to(book.device)] = residual[chosen.to(residual.device)]
        residual_codes(residual, [Codebook(book.detach())], residuals=True)
