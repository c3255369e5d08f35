"""verl's vLLM server of a teacher: what it says about a sequence stays in tensors.

vLLM makes a Python object of each of the k log-probabilities of every token, and verl lists of them once more, in the
one process in front of the engine; with thousands of sequences a step that is what a step waits for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import ray
import vllm.v1.engine.output_processor as output_processor
from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica
from vllm import SamplingParams, TokensPrompt
from vllm.v1.engine.logprobs import LogprobsProcessor


class TensorLogprobs(LogprobsProcessor):
    """vLLM's processor of a request's log-probabilities, which keeps those of the prompt as the engine sent them."""

    def _update_prompt_logprobs(self, prompt_logprobs_tensors: Any) -> None:
        """Add a chunk's: token ids, log-probabilities [tokens, 1 + k] (the token itself first), and ranks."""
        self.prompt_logprobs.append(prompt_logprobs_tensors[:2])


def rows(chunks: list[Any], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids (int32) and log-probabilities (float32) of a sequence from its chunks, [tokens, max(k, 1)], in verl's form.

    The first token has no row (vLLM begins the chunks with None for it); row ``t`` is of token ``t + 1`` (k = 0: that
    token itself; otherwise the k likeliest), and a row of zeros ends them.
    """
    columns = slice(0, 1) if k == 0 else slice(1, k + 1)
    width = max(k, 1)
    found = []
    for place, dtype in ((0, np.int32), (1, np.float32)):
        parts = [chunk[place][:, columns].numpy().astype(dtype) for chunk in chunks[1:]]
        found.append(np.concatenate([*parts, np.zeros((1, width), dtype)]))
    return found[0], found[1]


class TeacherServer(vLLMHttpServer):
    """A vLLM server that scores sequences; every request is one for the log-probabilities of its prompt."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        output_processor.LogprobsProcessor = TensorLogprobs

    async def generate(
        self, prompt_ids: list[int], sampling_params: dict[str, Any], request_id: str, **kwargs: Any
    ) -> TokenOutput:
        """As verl's own, with arrays (`rows`) instead of lists as ``prompt_ids`` and ``prompt_logprobs``."""
        prompt, params = TokensPrompt(prompt_token_ids=prompt_ids), SamplingParams(**sampling_params)
        async for output in self.engine.generate(prompt=prompt, sampling_params=params, request_id=request_id):
            final = output
        ids, logprobs = rows(final.prompt_logprobs, sampling_params["prompt_logprobs"])
        return TokenOutput(
            token_ids=list(final.outputs[0].token_ids) if final.outputs else [],
            stop_reason="completed",
            extra_fields={"global_steps": self.global_steps, "prompt_ids": ids, "prompt_logprobs": logprobs},
        )


class Replica(vLLMReplica):
    """verl's replica of vLLM servers, of `TeacherServer` where it serves a teacher."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.is_teacher_model:
            self.server_class = ray.remote(TeacherServer)
