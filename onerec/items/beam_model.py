"""The model's side of item decoding: prompts prefilled once, beams that attend to them without repeating their cache.

The beams of a prompt are the queries of one attention against the prompt's keys and values as they lie in the prefill's
cache; a beam's own ancestors, one key a level, are kept beside it and joined in the same softmax (the idea of tree
attention: SpecInfer, arXiv 2305.09781, section 4; and of shared-prefix attention: Hydragen, arXiv 2402.05099).
Nothing is repeated a beam, nothing is concatenated a step, and the prompt's padding is never read.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from onerec.sid import SidSpec

if TYPE_CHECKING:
    import torch

_ATTENTION = "onerec_beams"
# Attention scores held at a time, logits held at a time, vocabulary rows of one product: on a CPU what stays in its cache, so that
# the passes over a product's result cost little; on a GPU what keeps it busy.
_BLOCKS = {"cpu": (1 << 20, 1 << 20, 4096), "cuda": (1 << 26, 1 << 27, 32768)}


class BeamModel:
    """A Hugging Face causal language model that runs a batch of prompts once and then level after level of beams.

    ``model.model`` must give hidden states, every layer must attend to all positions (no sliding window), and the output
    layer must be linear without bias; ValueError otherwise.
    """

    def __init__(self, model: Any, spec: SidSpec) -> None:
        self.model, self.spec = model, spec
        head = model.get_output_embeddings()
        if getattr(head, "bias", None) is not None:
            raise ValueError("item decoding needs an output layer without bias")
        if any(kind != "full_attention" for kind in getattr(model.config, "layer_types", None) or ()):
            raise ValueError("item decoding needs a model whose layers all have full attention")
        self.head: torch.Tensor = head.weight
        if spec.end_id >= len(self.head):
            raise ValueError(f"the model's vocabulary ends at {len(self.head) - 1}, the SIDs at {spec.end_id}")
        self.device = self.head.device
        kind = "cpu" if self.device.type == "cpu" else "cuda"
        self.max_scores, self.max_logits, self.vocab_rows = _BLOCKS[kind]
        self.lengths: list[int] = []
        self.prompt: list[tuple[torch.Tensor, torch.Tensor]] = []  # keys, values a layer, [B, KV, P, D]
        # Keys and values of every beam's ancestors and of itself, [B, KV, W, D] each: [layer][level]. A level is a
        # list entry of its own, so that a step appends instead of copying what earlier steps made.
        self.own: list[list[tuple[torch.Tensor, torch.Tensor]]] = []

    def prefill(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Run the prompts ``rows``; the hidden state of each one's last token, [B, 1, hidden]."""
        import torch
        from transformers import DynamicCache

        self.lengths = [len(row) for row in rows]
        # Right padding: under the causal mask a prompt never sees the padding behind it, so the prefill needs no mask.
        ids = torch.zeros(len(rows), max(self.lengths), dtype=torch.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.as_tensor(row)
        cache = DynamicCache()
        out = self.model.model(input_ids=ids.to(self.device), past_key_values=cache, use_cache=True)
        self.prompt = [(layer.keys, layer.values) for layer in cache.layers]
        self.own = [[] for _ in self.prompt]
        last = torch.tensor(self.lengths, device=self.device) - 1
        return out.last_hidden_state[torch.arange(len(rows), device=self.device), last][:, None]

    def step(self, depth: int, parents: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Feed codes of layer ``depth`` behind the beams ``parents`` ([B, W] each); hidden states, [B, W, hidden]."""
        import torch

        if depth:
            self.own = [[_of_parents(pair, parents) for pair in levels] for levels in self.own]
        first, _ = self.spec.layer_ranges[depth]
        position = torch.tensor(self.lengths, device=self.device) + depth
        with _beam_attention(self.model):
            return self.model.model(
                input_ids=codes + first,
                position_ids=position[:, None].expand(-1, codes.shape[1]),
                use_cache=False,
                onerec_beams=self,
            ).last_hidden_state

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Attention of the beams' queries [B, H, W, D] to their prompt, ancestors and selves; [B, W, H, D]."""
        import torch

        self.own[layer].append((key, value))
        prompt_keys, prompt_values = self.prompt[layer]
        n, heads, width, dim = query.shape
        groups = prompt_keys.shape[1]
        query = (query * scaling).reshape(n, groups, heads // groups, width, dim)
        # One score a level, [B, KV, G, W, levels].
        own = torch.stack([(query * k[:, :, None]).sum(-1) for k, _ in self.own[layer]], dim=-1).float()
        out = torch.empty_like(query)
        longest = max(self.lengths)
        rows = max(1, self.max_scores // (heads * width * longest))
        for at in range(0, n, rows):
            lengths = self.lengths[at : at + rows]
            end = max(lengths)
            keys, values = prompt_keys[at : at + rows, :, :end], prompt_values[at : at + rows, :, :end]
            scores = query[at : at + rows].flatten(2, 3) @ keys.transpose(-1, -2)  # [b, KV, G * W, end]
            if min(lengths) < end:
                hidden = torch.arange(end, device=self.device) >= torch.tensor(lengths, device=self.device).unsqueeze(1)
                scores.masked_fill_(hidden[:, None, None], -torch.inf)
            # One softmax over two tables of scores, the prompt's and the beam's own: both are shifted by their common
            # maximum and divided by their common sum. One tensor of keys would copy the prompt's cache once a beam.
            mine = own[at : at + rows].flatten(2, 3)
            top = torch.maximum(scores.amax(-1, keepdim=True).float(), mine.amax(-1, keepdim=True))
            weights = scores.float().sub_(top).exp_()
            mine = mine.sub(top).exp_()
            total = weights.sum(-1, keepdim=True) + mine.sum(-1, keepdim=True)
            mixed = (weights.to(values.dtype) @ values).view(len(lengths), groups, -1, width, dim)
            for level, (_, v) in enumerate(self.own[layer]):
                share = mine[..., level].view(len(lengths), groups, -1, width, 1).to(v.dtype)
                mixed = mixed.addcmul_(share, v[at : at + rows, :, None])
            out[at : at + rows] = mixed / total.view(len(lengths), groups, -1, width, 1).to(mixed.dtype)
        return out.reshape(n, heads, width, dim).transpose(1, 2)

    def logits(self, hidden: torch.Tensor, layer: int, owner: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """Logits, float32 [C], of candidate ``code`` of ``layer`` behind row ``owner`` (never falling) of hidden [N, hidden].

        Only rows of the level's own codes are read. The logits are those of `float32_logits`.
        """
        import torch

        first, last = self.spec.layer_ranges[layer]
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

    def log_normalizer(self, hidden: torch.Tensor, layer: int | None, near: torch.Tensor | None = None) -> torch.Tensor:
        """Log of the softmax's denominator, float32 [N], over the whole vocabulary or over one ``layer``'s codes.

        hidden: [N, hidden]. near: any logit of each row, float32 [N]: with one near the largest, a pass over the logits is saved.
        The logits are made block by block and never held together.
        """
        import torch

        first, last = (0, len(self.head) - 1) if layer is None else self.spec.layer_ranges[layer]
        weight = self.head[first : last + 1]
        parts = []
        rows = max(1, self.max_logits // min(len(weight), self.vocab_rows))
        for at in range(0, len(hidden), rows):
            block = hidden[at : at + rows]
            # With a shift known before, exp(logit - shift) is summed in one pass over the logits, where a logsumexp needs
            # one more for their maximum. In float32 the shift rides along in the product.
            shift = (near[at : at + rows] if near is not None else block.float() @ weight[0].float())[:, None]
            total = torch.zeros(len(block), device=self.device)
            for piece in weight.split(self.vocab_rows):
                if block.dtype == torch.float32:
                    logits = torch.addmm(-shift, block, piece.T)
                else:
                    logits = float32_logits(block, piece).sub_(shift)
                total += logits.exp_().sum(-1)
            result = total.log_() + shift[:, 0]
            if not torch.isfinite(result).all():  # the shift was too far off: the careful way
                pieces = [torch.logsumexp(float32_logits(block, p), -1) for p in weight.split(self.vocab_rows)]
                result = torch.logsumexp(torch.stack(pieces), 0)
            parts.append(result)
        return torch.cat(parts)


def float32_logits(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``hidden`` [..., H] times the head's rows ``weight`` [V, H]: float32 [..., V], whatever the type of the two.

    A bfloat16 logit has 8 bits: near 20 its steps are 0.125, and candidates tie or change places. The product of two bfloat16
    numbers is exact in float32, so that nothing is rounded but the sum; on a GPU at the price of the bfloat16 product.
    """
    import torch

    if weight.dtype == torch.float32:
        return hidden @ weight.T
    if weight.is_cuda:
        flat = torch.mm(hidden.flatten(0, -2), weight.T, out_dtype=torch.float32)
        return flat.view(*hidden.shape[:-1], len(weight))
    # Converted a block of the vocabulary at a time, not the whole head.
    return torch.cat([hidden.float() @ rows.float().T for rows in weight.split(_BLOCKS["cpu"][2])], -1)


def _of_parents(pair: tuple[torch.Tensor, torch.Tensor], parents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [B, KV, W, D] taken over by the beams whose ``parents`` [B, W'] they belong to."""
    index = parents[:, None, :, None].expand(-1, pair[0].shape[1], -1, pair[0].shape[3])
    return pair[0].gather(2, index), pair[1].gather(2, index)


def _attention(
    module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float = 1.0, **kwargs: Any
) -> tuple[Any, None]:
    """The attention function that Hugging Face's layers call while a `BeamModel` steps."""
    return kwargs["onerec_beams"].attend(module.layer_idx, query, key, value, scaling), None


@contextlib.contextmanager
def _beam_attention(model: Any) -> Iterator[None]:
    """The model's layers call `_attention` inside; what they called before is put back after."""
    from transformers import AttentionInterface

    AttentionInterface.register(_ATTENTION, _attention)
    before = model.config._attn_implementation
    model.set_attn_implementation(_ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
