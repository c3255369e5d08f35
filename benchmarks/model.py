"""A checkpoint under test, and what the benchmark asks of it: rank items, weigh two answers, answer, score text."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from onerec.catalog import ItemIndex
from onerec.chat import EMPTY_THINK, IM_END, THINK_CLOSE, prompt_text
from onerec.decode import Hypothesis, batches_by_length, decode_items
from onerec.errors import InputError
from onerec.files import SID_SPEC
from onerec.run import progress
from onerec.sid import BEGIN, END, SidSpec

_SID = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END))


class BenchModel:
    """A Hugging Face causal language model with its tokenizer and, where it has SIDs, its `SidSpec`."""

    def __init__(self, path: Path, device: str = "auto", token_budget: int = 16384) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if not (path / "config.json").exists():
            raise InputError(
                path, "is not a checkpoint folder", "give a folder with config.json and *.safetensors"
            )
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = (
            AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")
            .to(device)
            .eval()
        )
        self.spec = SidSpec.load(path) if (path / SID_SPEC).exists() else None
        self.path, self.device, self.token_budget = path, device, token_budget
        self.context = int(getattr(self.model.config, "max_position_embeddings", 1 << 30))
        self.truncated = 0

    def check_spec(self, data: SidSpec, data_dir: Path) -> SidSpec:
        """The checkpoint's SIDs, when they are those of the data; raises `InputError` otherwise."""
        if self.spec is None:
            raise InputError(
                self.path,
                f"has no {SID_SPEC}: its vocabulary holds no SIDs",
                "expand its vocabulary, or --tasks general",
            )
        if not self.spec.same_codebooks(data):
            raise InputError(
                self.path,
                f"has codebooks {self.spec.codebook_sizes}",
                f"those of {data_dir}: {data.codebook_sizes}",
            )
        rows = self.model.get_input_embeddings().weight.shape[0]
        if (
            self.tokenizer.convert_tokens_to_ids(self.spec.tokens[0]) != self.spec.first_id
            or self.spec.end_id >= rows
        ):
            raise InputError(
                self.path, f"its tokenizer and its {SID_SPEC} disagree", "expand its vocabulary again"
            )
        return self.spec

    def prompt_ids(
        self, conversations: Sequence[Sequence[dict[str, str]]], thinking: bool, room: int
    ) -> list[list[int]]:
        """Token ids of the prompts, each leaving ``room`` tokens of context; too long ones lose their oldest items."""
        texts = [prompt_text(messages, thinking) for messages in conversations]
        coded = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        limit = self.context - room
        for i, ids in enumerate(coded):
            if len(ids) > limit:
                coded[i] = self._truncate(texts[i], len(ids) - limit, limit)
                self.truncated += 1
        return coded

    def _truncate(self, text: str, excess: int, limit: int) -> list[int]:
        tokens_per_item = 2 + (self.spec.n_layers if self.spec else 0)
        text = _SID.sub("", text, count=-(-excess // tokens_per_item))
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids[-limit:]

    def rank_items(
        self,
        prompts: Sequence[list[int]],
        index: ItemIndex,
        num_beams: int,
        label: str,
        exclude: Sequence[Collection[tuple[int, ...]]] | None = None,
    ) -> list[list[Hypothesis]]:
        """The best ``num_beams`` SIDs of the catalogue for every prompt, without those of its ``exclude``."""
        results: list[list[Hypothesis]] = [[] for _ in prompts]
        assert self.spec is not None
        lengths = [len(prompt) + num_beams * (self.spec.n_layers - 1) for prompt in prompts]
        batches = list(batches_by_length(lengths, self.token_budget))
        for batch in progress(batches, label, len(prompts), "sample", size=len):
            chosen = [prompts[i] for i in batch]
            banned = None if exclude is None else [exclude[i] for i in batch]
            decoded = decode_items(self.model, chosen, index, self.spec, num_beams, 1 << 60, banned)
            for i, hypotheses in zip(batch, decoded, strict=True):
                results[i] = hypotheses
        return results

    def think(self, prompts: Sequence[list[int]], max_tokens: int, label: str) -> list[list[int]]:
        """Prompts with the model's own thinking behind them, closed where it did not close itself, ready for items."""
        close = self.tokenizer.convert_tokens_to_ids(THINK_CLOSE)
        tail = self.tokenizer("\n\n", add_special_tokens=False)["input_ids"]
        empty = self.tokenizer(EMPTY_THINK, add_special_tokens=False)["input_ids"]
        thoughts = self.generate(prompts, max_tokens, [close], label)
        finished = []
        for prompt, thought in zip(prompts, thoughts, strict=True):
            closed = thought if thought and thought[-1] == close else [*thought, close]
            finished.append([*prompt, *(closed + tail if thought else empty)])
        return finished

    def generate(
        self, prompts: Sequence[list[int]], max_tokens: int, stop: Sequence[int], label: str
    ) -> list[list[int]]:
        """Greedy continuations of the prompts, up to and with a ``stop`` token."""
        import torch

        pad = self.tokenizer.pad_token_id
        ends = {*stop, self.tokenizer.convert_tokens_to_ids(IM_END)}
        results: list[list[int]] = [[] for _ in prompts]
        batches = list(batches_by_length([len(prompt) + max_tokens for prompt in prompts], self.token_budget))
        for batch in progress(batches, label, len(prompts), "sample", size=len):
            width = max(len(prompts[i]) for i in batch)
            ids = torch.full((len(batch), width), pad)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(batch):
                ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
                mask[row, width - len(prompts[i]) :] = 1
            with torch.inference_mode():
                out = self.model.generate(
                    ids.to(self.device), attention_mask=mask.to(self.device), max_new_tokens=max_tokens,
                    do_sample=False, eos_token_id=sorted(ends), pad_token_id=pad,
                )  # fmt: skip
            for row, i in enumerate(batch):
                new = out[row, width:].tolist()
                end = next((j for j, token in enumerate(new) if token in ends), len(new) - 1)
                results[i] = new[: end + 1]
        return results

    def answer_logprobs(
        self, prompts: Sequence[list[int]], answers: Sequence[str], label: str
    ) -> list[list[float]]:
        """Log-probability of each of ``answers`` after every prompt, [n_prompts][n_answers]."""
        coded = [self.tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
        if all(len(ids) == 1 for ids in coded):
            rows = self._logprobs(prompts, [[ids[0] for ids in coded]] * len(prompts), label)
            return [row[0] for row in rows]
        results = [[] for _ in prompts]
        for ids in coded:
            whole = [[*prompt, *ids] for prompt in prompts]
            for result, total in zip(
                results, self.text_logprobs(whole, label, [len(ids)] * len(whole)), strict=True
            ):
                result.append(total)
        return results

    def text_logprobs(
        self, texts: Sequence[list[int]], label: str, last: Sequence[int] | None = None
    ) -> list[float]:
        """Sum of the log-probabilities of the ``last`` tokens of each text (all but the first by default)."""
        counts = last or [len(ids) - 1 for ids in texts]
        targets = [[[token] for token in ids[len(ids) - n :]] for ids, n in zip(texts, counts, strict=True)]
        rows = self._logprobs([ids[:-1] for ids in texts], targets, label, several=True)
        return [sum(value[0] for value in row) for row in rows]

    def _logprobs(
        self, inputs: Sequence[list[int]], targets: Sequence[Any], label: str, several: bool = False
    ) -> list[list[list[float]]]:
        """Log-probabilities after the last positions of each input: [n][positions][targets of the position]."""
        import torch

        wanted = [list(t) if several else [t] for t in targets]
        results: list[list[list[float]]] = [[] for _ in inputs]
        head = self.model.get_output_embeddings().weight
        batches = list(batches_by_length([len(ids) for ids in inputs], self.token_budget))
        for batch in progress(batches, label, len(inputs), "sample", size=len):
            width = max(len(inputs[i]) for i in batch)
            ids = torch.zeros(len(batch), width, dtype=torch.int64)
            for row, i in enumerate(batch):
                ids[row, : len(inputs[i])] = torch.tensor(inputs[i])
            with torch.inference_mode():
                # Right padding under the causal mask: no real position sees it, so no mask is needed.
                hidden = self.model.model(input_ids=ids.to(self.device), use_cache=False).last_hidden_state
                for row, i in enumerate(batch):
                    end, n = len(inputs[i]), len(wanted[i])
                    logprobs = (hidden[row, end - n : end] @ head.T).float().log_softmax(-1).cpu()
                    index = torch.tensor(wanted[i])
                    results[i] = logprobs.gather(1, index).tolist()
        return results
