"""A dense Qwen3 that is run for items: prompts once and packed, then level after level of beams.

Its weights are tensors by their Hugging Face names, wherever they come from: a checkpoint folder, a model of
transformers (shared, not copied), or a stream that replaces them (RL's weight sync). The arithmetic is that of
transformers' Qwen3.

A batch of prompts has no padding but in its attention, and the last layer runs on each prompt's last token alone, as
nothing else of it is read. The beams of a prompt are the queries of one attention against the prompt's keys and values
as the prefill left them; a beam's own ancestors, one key a level, are kept beside it and joined in the same softmax
(the idea of tree attention: SpecInfer, arXiv 2305.09781, section 4; and of shared-prefix attention: Hydragen, arXiv
2402.05099).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from onerec.errors import InputError
from onerec.items import kernels
from onerec.items.kernels import float32_logits
from onerec.model_folder import needed_tensors, read_config
from onerec.qwen3 import check_engine_fits, shape_of
from onerec.sid import SidSpec
from onerec.startup import load_transformers

# Attention scores held at a time, logits held at a time, vocabulary rows of one product: on a CPU what stays in its
# cache, so that the passes over a product's result cost little; on a GPU what keeps it busy. Then the multiple to which
# prompts are padded for their beams: steps are recorded by their shapes, which are to come again.
_BLOCKS = {"cpu": (1 << 20, 1 << 20, 4096, 1), "cuda": (1 << 26, 1 << 27, 32768, 128)}
_EMBEDDING, _HEAD, _NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
_LAYER = [
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.q_norm",
    "self_attn.k_norm",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
]


class ItemModel:
    """The model and the batch that it is at work on.

    Args:
        config: ``config.json`` of a dense Qwen3. spec: its SIDs, with ids.
        weights: every tensor by its Hugging Face name, of one type and on one device; a tied head may be missing.

    Raises ValueError for another family, a bias, sliding windows, and codes beyond the vocabulary; KeyError names a
    missing tensor.
    """

    def __init__(self, config: Mapping[str, Any], spec: SidSpec, weights: Mapping[str, torch.Tensor]) -> None:
        load_transformers()
        from transformers import Qwen3Config
        from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

        _check(config, weights)
        self.spec, self.config = spec, Qwen3Config.from_dict(dict(config))
        self.n_layers, self.eps = self.config.num_hidden_layers, self.config.rms_norm_eps
        self.context = self.config.max_position_embeddings
        self.heads, self.groups, self.dim = (
            self.config.num_attention_heads,
            self.config.num_key_value_heads,
            self.config.head_dim,
        )
        self.replays: kernels.Replays | None = None
        self.load(weights)
        if spec.end_id >= len(self.head):
            raise ValueError(f"the model's vocabulary ends at {len(self.head) - 1}, the SIDs at {spec.end_id}")
        self.device = self.head.device
        self.rotary = Qwen3RotaryEmbedding(self.config, self.device)
        self.max_scores, self.max_logits, self.vocab_rows, self.multiple = _BLOCKS[
            "cpu" if self.device.type == "cpu" else "cuda"
        ]
        self.lengths: list[int] = []
        self.sizes = torch.zeros(0, dtype=torch.int64, device=self.device)  # the same, [B]
        self.prompt: list[tuple[torch.Tensor, torch.Tensor]] = []  # keys, values a layer, [B, KV, P, D]
        # Keys and values of every beam's ancestors and of itself, [B, KV, W, D] each: [layer][level].
        self.own: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
        self.records = self.device.type != "cpu"

    @classmethod
    def of(cls, model: Any, spec: SidSpec) -> ItemModel:
        """The engine of a `transformers` Qwen3, whose weights it shares and whose later updates in place it sees."""
        weights = dict(model.named_parameters())
        head = model.get_output_embeddings()
        if getattr(head, "bias", None) is not None:
            weights["lm_head.bias"] = head.bias
        return cls(model.config.to_dict(), spec, weights)

    @classmethod
    def open(cls, path: str | Path, spec: SidSpec, device: torch.device | str, dtype: torch.dtype) -> ItemModel:
        """The engine of a checkpoint folder (see `onerec.model_folder.open_model_folder`, which checks it)."""
        from safetensors.torch import load_file

        config = read_config(path)
        if torch.device(device).type == "cuda":
            memory = torch.cuda.get_device_properties(device).total_memory
            check_engine_fits(path, shape_of(config), memory, tokens=0, width=dtype.itemsize)
        weights = {
            name: tensor.to(dtype)
            for file in sorted(Path(path).glob("*.safetensors"))
            for name, tensor in load_file(file, device=str(device)).items()
        }
        try:
            return cls(config, spec, weights)
        except (KeyError, ValueError) as error:
            raise InputError(path, str(error.args[0]), "a dense Qwen3 with all of its weights") from None

    def load(self, weights: Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take these weights from now on; raises KeyError, which names it, where one is missing."""
        weights = {name: tensor.detach() for name, tensor in dict(weights).items()}
        for name, _ in needed_tensors(self.config.to_dict()):
            if name not in weights:
                raise KeyError(f"the weights do not hold {name}")
        self.embedding, self.norm = weights[_EMBEDDING], weights[_NORM]
        self.head = self.embedding if self.config.tie_word_embeddings else weights[_HEAD]
        names = [f"model.layers.{layer}." for layer in range(self.n_layers)]
        self.layers = [tuple(weights[f"{layer}{part}.weight"] for part in _LAYER) for layer in names]
        self.replays = None

    @torch.inference_mode()
    def prefill(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Run the prompts ``rows``; the hidden state of each one's last token, [B, 1, hidden]."""
        self.lengths = list(map(len, rows))
        packing = _Packing(self.lengths, self.device, self.multiple)
        ids = torch.tensor(list(itertools.chain(*rows)), device=self.device)
        place = self._place(packing.position)
        x = functional.embedding(ids, self.embedding)
        attention = kernels.packed_attention(x)
        self._begin(packing)
        for number, layer in enumerate(self.layers):
            query, key, value = self._project(layer, x, place)
            keys, values = packing.padded(key), packing.padded(value)
            self._keep(number, keys, values)
            if number == self.n_layers - 1:
                x, last = x[packing.last], query[packing.last][:, :, None]
                hidden = packing.hidden[:, None, None] if packing.hidden is not None else None
                mixed = functional.scaled_dot_product_attention(
                    last, keys, values, attn_mask=hidden, enable_gqa=self.groups < self.heads
                )[:, :, 0]
            elif attention is not None:
                mixed = attention(query, key, value, packing.bounds, max(self.lengths))
            else:
                mixed = functional.scaled_dot_product_attention(
                    packing.padded(query), keys, values, is_causal=True, enable_gqa=self.groups < self.heads
                )
                mixed = packing.packed(mixed)
            x = self._finish(layer, x, mixed)
        return kernels.normed(x, self.norm, self.eps)[:, None]

    def _begin(self, packing: _Packing) -> None:
        """Make room for a batch. Where steps are recorded, one of the same shape takes the place of the one before."""
        whole = self.replays is not None and len(self.prompt) == self.n_layers
        if whole and (packing.n, packing.longest) == self.prompt[0][0].shape[::2]:
            self.sizes.copy_(packing.sizes)
        else:
            self.sizes, self.prompt = packing.sizes, []
            self.replays = kernels.Replays() if self.records else None
        self.forget_beams()

    def _keep(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keep a layer's keys and values of the prompts for their beams."""
        if layer == len(self.prompt):
            self.prompt.append((keys, values))
            return
        for held, given in zip(self.prompt[layer], (keys, values), strict=True):
            held.copy_(given)

    @torch.inference_mode()
    def step(self, depth: int, parents: torch.Tensor, tokens: torch.Tensor, again: bool = True) -> torch.Tensor:
        """Feed ``tokens`` [B, W] behind beams ``parents`` [B, W] of level ``depth``; hidden states, [B, W, hidden].

        On a GPU they are overwritten by the next step of the same shape. ``again``: whether that is to come, so that
        the step is worth its recording, which holds memory.
        """
        recorded = again and self.replays is not None
        step = functools.partial(self.replays, self._step) if recorded else self._step
        hidden, self.own = step(depth, self.own, parents, tokens)
        return hidden

    def _step(
        self,
        depth: int,
        own: list[list[tuple[torch.Tensor, torch.Tensor]]],
        parents: torch.Tensor,
        tokens: torch.Tensor,
    ) -> tuple[torch.Tensor, list[list[tuple[torch.Tensor, torch.Tensor]]]]:
        """`step` behind ancestors' keys and values ``own``; with the beams' own behind theirs."""
        own = [[_of_parents(pair, parents) for pair in levels] for levels in own] if depth else [[] for _ in own]
        n, width = tokens.shape
        position = self.sizes[:, None].expand(-1, width) + depth
        place = self._place(position.flatten())
        x = functional.embedding(tokens.flatten(), self.embedding)
        for number, layer in enumerate(self.layers):
            query, key, value = (
                part.view(n, width, -1, self.dim).transpose(1, 2) for part in self._project(layer, x, place)
            )
            own[number].append((key, value))
            mixed = self._attend(number, own[number], query)
            x = self._finish(layer, x, mixed.reshape(n * width, self.heads, self.dim))
        return kernels.normed(x, self.norm, self.eps).view(n, width, -1), own

    def forget_beams(self) -> None:
        """Let the next `step` begin behind the prompts again."""
        self.own = [[] for _ in self.layers]

    def _place(self, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine of positions [T], each [T, 1, D]."""
        cos, sin = self.rotary(self.embedding, position[None])
        return cos[0][:, None], sin[0][:, None]

    def _project(
        self, layer: tuple[torch.Tensor, ...], x: torch.Tensor, place: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries [T, H, D], keys and values [T, KV, D] of hidden states [T, hidden]."""
        norm, q, k, v, q_norm, k_norm = layer[:6]
        x = kernels.normed(x, norm, self.eps)
        query, key, value = (functional.linear(x, weight).view(len(x), -1, self.dim) for weight in (q, k, v))
        query = kernels.normed_and_rotated(query, q_norm, self.eps, *place)
        return query, kernels.normed_and_rotated(key, k_norm, self.eps, *place), value

    def _finish(self, layer: tuple[torch.Tensor, ...], x: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        """The rest of a layer behind its attention, whose result is ``mixed`` [T, H, D]."""
        o, norm, gate, up, down = layer[6:]
        x = x + functional.linear(mixed.reshape(len(x), -1), o)
        y = kernels.normed(x, norm, self.eps)
        return x + functional.linear(kernels.gated(functional.linear(y, gate), functional.linear(y, up)), down)

    def _attend(
        self, layer: int, levels: Sequence[tuple[torch.Tensor, torch.Tensor]], query: torch.Tensor
    ) -> torch.Tensor:
        """Attention of the beams' queries [B, H, W, D] to their prompt, ancestors and selves; [B, W, H, D]."""
        prompt_keys, prompt_values = self.prompt[layer]
        n, heads, width, dim = query.shape
        groups = prompt_keys.shape[1]
        query = (query * dim**-0.5).reshape(n, groups, heads // groups, width, dim)
        # One score a level, [B, KV, G, W, levels].
        own = torch.stack([(query * k[:, :, None]).sum(-1) for k, _ in levels], dim=-1).float()
        out = torch.empty_like(query)
        longest = prompt_keys.shape[2]
        rows = max(1, self.max_scores // (heads * width * longest))
        for at in range(0, n, rows):
            # A recorded step serves batches of other lengths, so that it takes them from the device.
            lengths = [longest] * len(self.sizes[at : at + rows]) if self.records else self.lengths[at : at + rows]
            end = max(lengths)
            keys, values = prompt_keys[at : at + rows, :, :end], prompt_values[at : at + rows, :, :end]
            scores = query[at : at + rows].flatten(2, 3) @ keys.transpose(-1, -2)  # [b, KV, G * W, end]
            if self.records or min(lengths) < end:
                hidden = torch.arange(end, device=self.device) >= self.sizes[at : at + rows, None]
                scores.masked_fill_(hidden[:, None, None], -torch.inf)
            mine = own[at : at + rows].flatten(2, 3)
            top = torch.maximum(scores.amax(-1, keepdim=True).float(), mine.amax(-1, keepdim=True))
            weights = scores.float().sub_(top).exp_()
            mine = mine.sub(top).exp_()
            total = weights.sum(-1, keepdim=True) + mine.sum(-1, keepdim=True)
            mixed = (weights.to(values.dtype) @ values).view(len(lengths), groups, -1, width, dim)
            for level, (_, v) in enumerate(levels):
                share = mine[..., level].view(len(lengths), groups, -1, width, 1).to(v.dtype)
                mixed = mixed.addcmul_(share, v[at : at + rows, :, None])
            out[at : at + rows] = mixed / total.view(len(lengths), groups, -1, width, 1).to(mixed.dtype)
        return out.reshape(n, heads, width, dim).transpose(1, 2)

    def logits(
        self, hidden: torch.Tensor, first: int, last: int, owner: torch.Tensor, code: torch.Tensor
    ) -> torch.Tensor:
        """Logits, float32 [C], of token ``first + code`` (at most ``last``) behind row ``owner`` (never falling) of
        hidden [N, hidden].

        Only rows of the level's own codes are read. The logits are those of `float32_logits`.
        """
        weight = self.head[first : last + 1]
        out = torch.empty(len(code), device=self.device)
        if len(code) * 64 <= len(hidden) * len(weight):
            # Few children a beam: a dot product each is less work than a matrix product with the whole codebook.
            block = max(1, self.max_logits // hidden.shape[1])
            for at in range(0, len(code), block):
                pair = hidden[owner[at : at + block]].float() * weight[code[at : at + block]].float()
                out[at : at + block] = pair.sum(-1)
            return out
        block = max(1, self.max_logits // len(weight))
        bounds = torch.searchsorted(owner, torch.arange(0, len(hidden) + block, block, device=self.device)).tolist()
        for i, (begin, end) in enumerate(itertools.pairwise(bounds)):
            rows = float32_logits(hidden[i * block : (i + 1) * block], weight)
            out[begin:end] = rows[owner[begin:end] - i * block, code[begin:end]]
        return out

    def best_tokens(self, hidden: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(logits, ids) of the ``width`` likeliest tokens behind each row of hidden [N, hidden], ids rising; [N, width]
        each.
        """
        values, ids = [], []
        for rows in hidden.split(max(1, self.max_logits // len(self.head))):
            value, id = float32_logits(rows, self.head).topk(min(width, len(self.head)))
            order = id.argsort(-1)
            values.append(value.gather(-1, order))
            ids.append(id.gather(-1, order))
        return torch.cat(values), torch.cat(ids)

    def log_normalizer(self, hidden: torch.Tensor, layer: int | None, near: torch.Tensor | None = None) -> torch.Tensor:
        """Log of the softmax's denominator, float32 [N], over the whole vocabulary or over one ``layer``'s codes.

        hidden: [N, hidden]. near: any logit of each row, float32 [N]: with one near the largest, a pass over the logits
        is saved. The logits are made block by block and never held together.
        """
        first, last = (0, len(self.head) - 1) if layer is None else self.spec.layer_ranges[layer]
        weight = self.head[first : last + 1]
        parts = []
        rows = max(1, self.max_logits // min(len(weight), self.vocab_rows))
        for at in range(0, len(hidden), rows):
            block = hidden[at : at + rows]
            shift = (near[at : at + rows] if near is not None else block.float() @ weight[0].float())[:, None]
            total = torch.zeros(len(block), device=self.device)
            for piece in weight.split(self.vocab_rows):
                total += kernels.sum_of_exp(block, piece, shift)
            result = total.log_() + shift[:, 0]
            if not torch.isfinite(result).all():  # the shift was too far off: the careful way
                pieces = [torch.logsumexp(float32_logits(block, p), -1) for p in weight.split(self.vocab_rows)]
                result = torch.logsumexp(torch.stack(pieces), 0)
            parts.append(result)
        return torch.cat(parts)


class _Packing:
    """Rows of several lengths in one, without padding [T, …], and side by side, padded on the right [B, …, P, …].

    P is the longest length, made a ``multiple``.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device, multiple: int = 1) -> None:
        self.sizes = sizes = torch.tensor(lengths, device=device)
        self.n, self.longest = len(lengths), -(-max(lengths) // multiple) * multiple
        ends = sizes.cumsum(0)
        self.bounds = functional.pad(ends, (1, 0)).int()
        self.last = ends - 1
        row = torch.repeat_interleave(torch.arange(self.n, device=device), sizes, output_size=sum(lengths))
        self.position = torch.arange(len(row), device=device) - (ends - sizes)[row]
        self.even = min(lengths) == self.longest
        self.slot = row * self.longest + self.position
        # Where a padded row has a token [B, P]; None where every row is full.
        self.hidden = None if self.even else torch.arange(self.longest, device=device) < sizes[:, None]

    def padded(self, x: torch.Tensor) -> torch.Tensor:
        """[T, heads, D] as [B, heads, P, D]."""
        if not self.even:
            wide = x.new_zeros(self.n * self.longest, *x.shape[1:])
            x = wide.index_copy_(0, self.slot, x)
        return x.view(self.n, self.longest, *x.shape[1:]).transpose(1, 2)

    def packed(self, x: torch.Tensor) -> torch.Tensor:
        """[B, heads, P, D] as [T, heads, D]."""
        x = x.transpose(1, 2).flatten(0, 1)
        return x if self.even else x[self.slot]


def _of_parents(pair: tuple[torch.Tensor, torch.Tensor], parents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [B, KV, W, D] taken over by the beams whose ``parents`` [B, W'] they belong to."""
    index = parents[:, None, :, None].expand(-1, pair[0].shape[1], -1, pair[0].shape[3])
    return pair[0].gather(2, index), pair[1].gather(2, index)


def _check(config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
    if config.get("model_type") != "qwen3":
        raise ValueError(f"item decoding runs a dense Qwen3, not {config.get('model_type')}")
    if any(name.endswith(".bias") for name in weights):
        raise ValueError("item decoding needs layers without bias")
    windows = any(kind != "full_attention" for kind in config.get("layer_types") or ())
    if windows or config.get("use_sliding_window"):
        raise ValueError("item decoding needs a model whose layers all have full attention")
