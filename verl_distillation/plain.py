"""Distillation on a CPU without vLLM: transformers writes the student's answers and scores them with the teachers.

A vLLM server takes a minute of processor time to start, and a run needs three; a small model has answered by then. On
GPUs vLLM writes and scores (`verl_distillation.teacher`).
"""

from __future__ import annotations

import collections
import hashlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from verl.workers.rollout.replica import TokenOutput

from onerec.render import renderer_of
from onerec.verl.server import Replica, Together, WeightServer

# Logits that are held at a time, times the vocabulary.
_LOGITS = 1 << 26
# transformers exchanges torch's initialisers for its own while it loads a model: of two that are loaded in threads at
# once, weights come out as drawn at random.
_LOADS = threading.Lock()


class TextServer(WeightServer):
    """The student: answers prompts with the weights of the last step."""

    def __init__(self, model: str, dtype: str, devices: str, settings: Any = None) -> None:
        super().__init__(model, dtype, devices, settings)
        tokenizer = transformers.AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        self.ends = renderer_of(model).end_ids(Path(model), tokenizer)
        self.model: Any = None
        self._asked: collections.Counter[tuple[int, ...]] = collections.Counter()
        self._together = Together(self._write)

    def use(self) -> None:
        """See `WeightServer.use`."""
        self._asked.clear()
        if self.model is None:
            with torch.device("meta"):
                config = transformers.AutoConfig.from_pretrained(self.path, trust_remote_code=False)
                auto = transformers.AutoModelForCausalLM
                self.model = auto.from_config(config, attn_implementation="sdpa", trust_remote_code=False).eval()
            # Checked to be whole by `renew`; a tied head is no tensor of its own.
            self.model.load_state_dict(self.weights, strict=False, assign=True)
            self.model.tie_weights()
            self.model.model.rotary_emb = type(self.model.model.rotary_emb)(self.model.config, device=self.device)
            self.model.generation_config = transformers.GenerationConfig()

    def drop(self) -> None:
        """See `WeightServer.drop`."""
        self.model = None

    async def generate(
        self, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any
    ) -> TokenOutput:
        """An answer, drawn by a seed that follows from run, step and prompt, and its tokens' log-probabilities."""
        if sampling_params.get("top_p", 1) != 1 or sampling_params.get("top_k", -1) not in (-1, 0):
            raise NotImplementedError("on a CPU without vLLM a token is drawn from all tokens")
        prompt = tuple(prompt_ids)
        self._asked[prompt] += 1
        key = f"{self.settings.seed}/{self.global_steps}/{self._asked[prompt]}/{prompt}".encode()
        seed = int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "little")
        room = min(self.settings.response_length, self.settings.max_model_len - len(prompt))
        ids, logprobs = await self._together.ask((prompt, room, seed, sampling_params["temperature"]))
        return TokenOutput(
            token_ids=ids,
            log_probs=logprobs,
            stop_reason="completed",
            extra_fields={"global_steps": self.global_steps},
        )

    def _write(self, batch: Sequence[tuple[tuple[int, ...], int, int, float]]) -> list[tuple[list[int], list[float]]]:
        if self.model is None:
            raise RuntimeError("the server has no weights yet")
        prompts = [prompt for prompt, _, _, _ in batch]
        width = max(map(len, prompts))
        ids, mask = torch.zeros(2, len(batch), width, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        draw = _Draw([seed for _, _, seed, _ in batch], [temperature for *_, temperature in batch], self.device)
        with torch.inference_mode():
            out = self.model.generate(
                ids.to(self.device),
                attention_mask=mask.to(self.device),
                max_new_tokens=max(room for _, room, _, _ in batch),
                do_sample=False,
                eos_token_id=self.ends,
                pad_token_id=self.ends[0],
                logits_processor=transformers.LogitsProcessorList([draw]),
            )
        rows = zip(batch, out[:, width:].tolist(), torch.stack(draw.logprobs, 1).tolist(), strict=True)
        return [self._cut(new, logprobs, room) for (_, room, _, _), new, logprobs in rows]

    def _cut(self, ids: list[int], logprobs: list[float], room: int) -> tuple[list[int], list[float]]:
        """Both up to and with the first end, ``room`` tokens at most."""
        length = min(room, next((i + 1 for i, id in enumerate(ids) if id in self.ends), len(ids)))
        return ids[:length], logprobs[:length]


class _Draw(transformers.LogitsProcessor):
    """Draws every row's token by the row's own seed, so that an answer does not hang on those beside it.

    Gumbel noise on the logits (over the temperature), of which the greatest is then taken, is a draw of their softmax.
    ``logprobs``: of the drawn tokens at temperature 1, [B] a step.
    """

    def __init__(self, seeds: Sequence[int], temperatures: Sequence[float], device: torch.device) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperatures = torch.tensor(temperatures, device=device)[:, None]
        self.logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=g) for g in self.generators])
        noisy = scores.float() / self.temperatures - noise.log().to(scores.device)
        chosen = noisy.argmax(-1, keepdim=True)
        self.logprobs.append(scores.float().log_softmax(-1).gather(1, chosen)[:, 0])
        return noisy


class TextReplica(Replica):
    """A replica of the rollout ``onerec_text``: one `TextServer`."""

    server = TextServer


class Teacher:
    """A teacher inside the agent loop's own process, in the form of verl's client of a teacher's servers."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._model: Any = None
        self._together = Together(self._score)

    async def generate(
        self, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any
    ) -> TokenOutput:
        """What the teacher says of every token (see `score`), as ``prompt_ids`` and ``prompt_logprobs``."""
        k = sampling_params["prompt_logprobs"]
        ids, logprobs = await self._together.ask((list(prompt_ids), k), k)
        extra = {"prompt_ids": ids.numpy(), "prompt_logprobs": logprobs.numpy()}
        return TokenOutput(token_ids=[], stop_reason="completed", extra_fields=extra)

    def _score(self, batch: Sequence[tuple[list[int], int]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        with _LOADS:
            if self._model is None:
                auto = transformers.AutoModelForCausalLM
                self._model = auto.from_pretrained(self.path, dtype=torch.float32, trust_remote_code=False).eval()
        found: list[Any] = [None] * len(batch)
        for part in self._parts([len(ids) for ids, _ in batch]):
            for i, pair in zip(part, score(self._model, [batch[i][0] for i in part], batch[part[0]][1]), strict=True):
                found[i] = pair
        return found

    def _parts(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Numbers of rows of similar length, as many as the logits have room for."""
        room, part = max(1, _LOGITS // self._model.config.vocab_size), []
        for i in sorted(range(len(lengths)), key=lengths.__getitem__):
            if part and (len(part) + 1) * lengths[i] > room:
                yield part
                part = []
            part.append(i)
        yield part


@torch.inference_mode()
def score(model: Any, sequences: Sequence[list[int]], k: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What a transformers model says of every sequence, in the form of `verl_distillation.teacher.rows`.

    Ids (int32) and log-probabilities (float32), [tokens, max(k, 1)] each; row ``t`` is of token ``t + 1`` (k = 0: of
    that token itself; otherwise the k likeliest), and a row of zeros ends them.
    """
    ids = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
    # Right padding under the causal mask: no real token sees it.
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    if k:
        top, chosen = logits.topk(k)
        logprobs = top - logits.logsumexp(-1, keepdim=True)
    else:
        chosen = ids[:, 1:, None]
        logprobs = logits.log_softmax(-1).gather(-1, chosen)
    pairs = []
    for row, sequence in enumerate(sequences):
        ours = [torch.zeros(len(sequence), max(k, 1), dtype=dtype) for dtype in (torch.int32, torch.float32)]
        for mine, all_rows in zip(ours, (chosen, logprobs), strict=True):
            mine[:-1] = all_rows[row, : len(sequence) - 1]
        pairs.append((ours[0], ours[1]))
    return pairs
