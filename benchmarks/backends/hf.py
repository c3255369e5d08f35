"""The Hugging Face backend: any device, padded batches by length, items by the engine of `onerec.items`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.backends.base import NONE, Also, Excluded, Finished, Known, Sampling, device_of, dtype_of
from onerec.catalog import ItemIndex
from onerec.items.item import Item, batches_by_length
from onerec.items.model import ItemModel, float32_logits
from onerec.items.search import find_items
from onerec.model_folder import check_finite, loading
from onerec.sid import SidSpec
from onerec.startup import load_transformers

if TYPE_CHECKING:
    import torch


class HfBackend:
    """A causal language model of transformers; precision ``auto`` is float32 on a CPU and bfloat16 on a GPU."""

    def __init__(
        self, path: Path, tokenizer: Any, device: str = "auto", token_budget: int = 16384, precision: str = "auto"
    ) -> None:
        place = device_of(device)
        transformers = load_transformers()
        dtype = dtype_of(precision, place.type == "cuda")
        with loading(path):
            model = transformers.AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype, attn_implementation="sdpa", trust_remote_code=False, use_safetensors=True
            )
        check_finite(path, model.named_parameters())
        self.model = model.to(place).eval()
        # Tokens are chosen as `Sampling` says and end where the caller says: nothing of the checkpoint's own settings
        # (a penalty on repetition, say) is mixed in, for vLLM takes none of them either.
        self.model.generation_config = transformers.GenerationConfig()
        _answer_in_float32(self.model.get_output_embeddings())
        self.pad = tokenizer.pad_token_id or 0  # behind the mask, whatever it is
        self.token_budget = token_budget
        self.context = int(getattr(self.model.config, "max_position_embeddings", 1 << 30))

    def generate(
        self,
        prompts: Sequence[list[int]],
        max_tokens: int,
        stop: Collection[int],
        sampling: Sampling,
        done: Known = NONE,
    ) -> Finished[list[int]]:
        """See `Backend.generate`."""
        import torch

        for batch in self._batches([len(prompt) + max_tokens for prompt in prompts], done):
            chosen = [prompts[i] for i in batch]
            width = max(map(len, chosen))
            ids = torch.full((len(batch), width), self.pad)
            mask = torch.zeros_like(ids)
            for row, prompt in enumerate(chosen):
                ids[row, width - len(prompt) :] = torch.tensor(prompt)
                mask[row, width - len(prompt) :] = 1
            device = self.model.device
            with torch.inference_mode():
                out = self.model.generate(
                    ids.to(device),
                    attention_mask=mask.to(device),
                    max_new_tokens=max_tokens,
                    do_sample=False,
                    eos_token_id=sorted(stop),
                    pad_token_id=self.pad,
                    logits_processor=_draws(chosen, width, max_tokens, sampling),
                )
            yield [(i, _until(new, stop)) for i, new in zip(batch, out[:, width:].cpu().tolist(), strict=True)]

    def rank(
        self,
        prompts: Sequence[list[int]],
        index: ItemIndex,
        spec: SidSpec,
        num_beams: int,
        exclude: Excluded = None,
        normalize: str = "vocabulary",
        done: Known = NONE,
        also: Also = None,
    ) -> Finished[list[Item]]:
        """See `Backend.rank`."""
        engine = ItemModel.of(self.model, spec)
        lengths = [len(prompt) + 1 + num_beams * (spec.n_layers - 1) for prompt in prompts]
        for batch in self._batches(lengths, done):
            banned = None if exclude is None else [exclude[i] for i in batch]
            chosen = [[*prompts[i], spec.begin_id] for i in batch]
            more = None if also is None else [also[i] for i in batch]
            decoded = find_items(engine, chosen, index, num_beams, 1 << 60, banned, normalize, also=more)
            yield list(zip(batch, decoded, strict=True))

    def next_logprobs(
        self, prompts: Sequence[list[int]], tokens: Sequence[int], done: Known = NONE
    ) -> Finished[list[float]]:
        """See `Backend.next_logprobs`."""
        import torch

        for batch in self._batches(list(map(len, prompts)), done):
            hidden, lengths = self._hidden([prompts[i] for i in batch])
            with torch.inference_mode():
                last = hidden[torch.arange(len(batch)), torch.tensor(lengths) - 1]
                values = self._logprobs(last)[:, list(tokens)].tolist()
            yield list(zip(batch, values, strict=True))

    def tail_logprobs(self, texts: Sequence[list[int]], last: Sequence[int], done: Known = NONE) -> Finished[float]:
        """See `Backend.tail_logprobs`."""
        import torch

        for batch in self._batches(list(map(len, texts)), done):
            hidden, lengths = self._hidden([texts[i][:-1] for i in batch])
            finished = []
            with torch.inference_mode():
                for row, i in enumerate(batch):
                    targets = torch.tensor(texts[i][len(texts[i]) - last[i] :], device=hidden.device)
                    total = 0.0
                    states = hidden[row, lengths[row] - last[i] : lengths[row]]
                    for part, wanted in zip(states.split(256), targets.split(256), strict=True):
                        total += self._logprobs(part).gather(1, wanted[:, None]).double().sum().item()
                    finished.append((i, total))
            yield finished

    def _batches(self, lengths: Sequence[int], done: Known) -> Iterator[list[int]]:
        for batch in batches_by_length(lengths, self.token_budget):
            if not done.issuperset(batch):
                yield batch

    def _hidden(self, rows: Sequence[list[int]]) -> tuple[torch.Tensor, list[int]]:
        """Last hidden states [B, longest, hidden] of the rows, and their lengths."""
        import torch

        lengths = list(map(len, rows))
        ids = torch.zeros(len(rows), max(lengths), dtype=torch.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        with torch.inference_mode():
            # Right padding under the causal mask: no real position sees it, so no mask is needed.
            out = self.model.model(input_ids=ids.to(self.model.device), use_cache=False)
        return out.last_hidden_state, lengths

    def _logprobs(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.model.get_output_embeddings()(hidden).log_softmax(-1)


def _answer_in_float32(head: Any) -> None:
    """Let an output layer give float32 logits whatever the model's type: all answers are chosen by them."""

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        logits = float32_logits(hidden, head.weight)
        return logits if head.bias is None else logits + head.bias.float()

    head.forward = forward


def _until(ids: list[int], stop: Collection[int]) -> list[int]:
    """``ids`` up to and with the first ``stop`` token."""
    end = next((j for j, token in enumerate(ids) if token in stop), len(ids) - 1)
    return ids[: end + 1]


def _draws(prompts: Sequence[list[int]], width: int, max_tokens: int, sampling: Sampling) -> Any:
    """A list of logits processors that leaves only the token drawn for each row, or nothing to do at temperature 0."""
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

    if sampling.temperature <= 0:
        return LogitsProcessorList()
    uniform = np.stack([np.random.Generator(np.random.Philox(key=sampling.key(p))).random(max_tokens) for p in prompts])

    class Draw(LogitsProcessor):
        """Inverse transform sampling with one number a row and step, so that a row's draws are its own."""

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            chance = scores.double().softmax(-1).cumsum(-1)
            at = torch.from_numpy(uniform[:, input_ids.shape[1] - width]).to(scores.device)[:, None]
            token = torch.searchsorted(chance, at * chance[:, -1:], right=True).clamp_(max=scores.shape[1] - 1)
            return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)

    top_p = [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    return LogitsProcessorList([TemperatureLogitsWarper(float(sampling.temperature)), *top_p, Draw()])
