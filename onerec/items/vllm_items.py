"""`ItemSearch` inside vLLM: one forward pass a level for all beams of all prompts, behind each prompt's keys and values.

`ItemWorker` is a vLLM worker extension (``worker_extension_cls``), called through ``collective_rpc``. It prefills every
prompt once into a pool of cache blocks of its own; a beam shares its prompt's full blocks through its block table and owns
only the last one or two, copied from its parent's (paged attention's copy on write: vLLM, arXiv 2309.06180, section 4.4).
A level thus costs one token a beam, no request, and nothing of the engine's scheduler. Works on whatever attention backend
the engine has; models with one kind of attention layer only. Imported where vLLM is.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from vllm.forward_context import set_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata

from onerec.catalog import ItemIndex
from onerec.items.search import ItemSearch, Query
from onerec.sid import SidSpec

# Prompt and beam tokens of the cache pool at a time; more prompts are searched one such part after the other.
_POOL_TOKENS = 1 << 16
# Prompt tokens of one prefill.
_PREFILL_TOKENS = 1 << 14


@functools.lru_cache(maxsize=16)
def load_index(path: str, model: str) -> ItemIndex:
    """The catalogue of a pid2sid.parquet for a checkpoint, read once a process."""
    return ItemIndex.load(path, SidSpec.load(model))


class ItemWorker:
    """Worker extension: `find_items`. Its names begin with ``onerec``, as they join those of vLLM's worker."""

    def onerec_find_items(
        self,
        prompts: list[list[int]],
        catalogues: list[str | None],
        widths: list[int],
        seeds: list[int | None],
        temperature: float,
        model: str,
    ) -> list[list[tuple[list[int], list[float]]]]:
        """Items of every prompt (which ends in the SID's begin token), as (token ids, log-probabilities), best first.

        catalogues: pid2sid.parquet of each prompt, None for any tokens. seeds: None for beam search, else items are drawn.
        model: the checkpoint's folder, for its SidSpec.
        """
        spec = SidSpec.load(model)
        searches = [
            ItemSearch(spec, None if path is None else load_index(path, model), width,
                       None if seed is None else np.random.default_rng(seed), temperature)
            for path, width, seed in zip(catalogues, widths, seeds, strict=True)
        ]  # fmt: skip
        pool = _Pool(self)  # type: ignore[arg-type]
        for part in pool.parts([len(prompt) for prompt in prompts], widths, spec.n_layers):
            pool.run([prompts[i] for i in part], [searches[i] for i in part])
        return [[(list(item.token_ids), list(item.logprobs)) for item in s.found()] for s in searches]


class _Pool:
    """Cache blocks beside the engine's, and the model's forward pass over them."""

    def __init__(self, worker: Any) -> None:
        runner = worker.model_runner
        groups = [group for groups in runner.attn_groups for group in groups]
        if len(groups) != 1:
            raise NotImplementedError(f"the model has {len(groups)} kinds of attention layers; item search takes one")
        self.model, self.config, self.device = runner.model, runner.vllm_config, runner.device
        self.builder, self.names = groups[0].get_metadata_builder(), groups[0].layer_names
        self.size = int(self.builder.kv_cache_spec.block_size)
        self.layers = [self.config.compilation_config.static_forward_context[name] for name in self.names]
        self.caches: list[torch.Tensor] = []
        self.axis = 0

    def parts(self, lengths: Sequence[int], widths: Sequence[int], n_layers: int) -> list[list[int]]:
        """Indices of prompts, in order, in parts whose blocks fit the pool."""
        parts: list[list[int]] = []
        room = 0
        for i, (length, width) in enumerate(zip(lengths, widths, strict=True)):
            cost = self.size * (-(-length // self.size) + 2 * width * self._private(n_layers))
            if not parts or room < cost:
                parts.append([])
                room = _POOL_TOKENS
            parts[-1].append(i)
            room -= cost
        return parts

    def _private(self, n_layers: int) -> int:
        """Blocks that a beam owns: its prompt's last, and what its own tokens may spill into."""
        return 1 + -(-n_layers // self.size)

    @torch.inference_mode()
    def run(self, prompts: Sequence[Sequence[int]], searches: Sequence[ItemSearch]) -> None:
        """Run the searches to their end."""
        private = self._private(searches[0].spec.n_layers)
        self.first, blocks = [], 0  # first block of every prompt
        for prompt in prompts:
            self.first.append(blocks)
            blocks += -(-len(prompt) // self.size)
        beams = sum(items.width for items in searches)
        # Two generations of beams: children are copied from their parents' blocks.
        self.spare = (blocks, blocks + beams * private)
        originals = [layer.kv_cache for layer in self.layers]
        self._allocate(originals, blocks + 2 * beams * private)
        try:
            for layer, cache in zip(self.layers, self.caches, strict=True):
                layer.kv_cache = cache
            self._search(prompts, searches, private)
        finally:
            for layer, cache in zip(self.layers, originals, strict=True):
                layer.kv_cache = cache

    def _search(self, prompts: Sequence[Sequence[int]], searches: Sequence[ItemSearch], private: int) -> None:
        hidden = torch.cat([self._prefill(prompts, part) for part in self._prefills(prompts)])
        owners = list(range(len(prompts)))
        asked = [items.queries() for items in searches]
        # Where the private blocks of a prefix begin, by prompt; before the first token, the prompt's own last block.
        place: list[dict[tuple[int, ...], int]] = [
            {(): self.first[i] + len(prompt) // self.size} for i, prompt in enumerate(prompts)
        ]
        generation = 0
        while True:
            self._feed(searches, asked, hidden)
            asked = [items.queries() for items in searches]
            owners = [i for i, queries in enumerate(asked) for _ in queries]
            if not owners:
                return
            flat = [query for queries in asked for query in queries]
            base, fresh, copies = self.spare[generation % 2], [{} for _ in prompts], ([], [])
            for n, (i, query) in enumerate(zip(owners, flat, strict=True)):
                fresh[i][query.prefix] = base + n * private
                # What of the parent's private blocks is filled: the tail of the prompt and the parent's own tokens.
                filled = len(prompts[i]) % self.size + len(query.prefix) - 1
                for block in range(-(-filled // self.size)):
                    copies[0].append(place[i][query.prefix[:-1]] + block)
                    copies[1].append(base + n * private + block)
            self._copy(*copies)
            place = fresh
            hidden = self._step(prompts, owners, flat, place)
            generation += 1

    def _feed(self, searches: Sequence[ItemSearch], asked: Sequence[Sequence[Query]], hidden: torch.Tensor) -> None:
        logits = self.model.compute_logits(hidden).float()
        logprobs = logits - torch.logsumexp(logits, dim=-1, keepdim=True)
        row = 0
        for items, queries in zip(searches, asked, strict=True):
            if not queries:
                continue
            answers = []
            part = logprobs[row : row + len(queries)]
            row += len(queries)
            if queries[0].candidates is None:
                values, ids = part.topk(queries[0].top, dim=-1)
                answers = list(zip(ids.cpu().numpy(), values.cpu().double().numpy(), strict=True))
            else:
                # The children of all beams lie in one layer's range of ids.
                low = min(int(query.candidates[0]) for query in queries)
                high = max(int(query.candidates[-1]) for query in queries)
                table = part[:, low : high + 1].cpu().double().numpy()
                answers = [(query.candidates, table[n, query.candidates - low]) for n, query in enumerate(queries)]
            items.feed(answers)

    def _prefills(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        parts: list[list[int]] = []
        room = 0
        for i, prompt in enumerate(prompts):
            if not parts or room < len(prompt):
                parts.append([])
                room = _PREFILL_TOKENS
            parts[-1].append(i)
            room -= len(prompt)
        return parts

    def _prefill(self, prompts: Sequence[Sequence[int]], part: Sequence[int]) -> torch.Tensor:
        """Hidden states behind the last token of each prompt of ``part``, its keys and values kept."""
        lengths = [len(prompts[i]) for i in part]
        tables = [np.arange(self.first[i], self.first[i] - (-len(prompts[i]) // self.size)) for i in part]
        ids = np.concatenate([np.asarray(prompts[i]) for i in part])
        positions = np.concatenate([np.arange(n) for n in lengths])
        slots = np.concatenate([self.first[i] * self.size + np.arange(len(prompts[i])) for i in part])
        hidden = self._forward(ids, positions, slots, tables, lengths, lengths)
        return hidden[torch.as_tensor(np.cumsum(lengths) - 1, device=hidden.device)]

    def _step(
        self,
        prompts: Sequence[Sequence[int]],
        owners: Sequence[int],
        queries: Sequence[Query],
        place: Sequence[dict[tuple[int, ...], int]],
    ) -> torch.Tensor:
        """Hidden states behind the last token of every beam, [beams, hidden]."""
        depth = len(queries[0].prefix)
        lengths = [len(prompts[i]) + depth for i in owners]
        ids = np.array([query.prefix[-1] for query in queries])
        tables, slots = [], []
        for i, query, length in zip(owners, queries, lengths, strict=True):
            shared = len(prompts[i]) // self.size
            own = place[i][query.prefix]
            tables.append(
                np.concatenate(
                    [np.arange(self.first[i], self.first[i] + shared), np.arange(own, own - (-length // self.size) - shared)]
                )
            )  # fmt: skip
            slots.append((own - shared) * self.size + length - 1)
        positions = np.array(lengths) - 1
        return self._forward(ids, positions, np.array(slots), tables, lengths, [1] * len(owners))

    def _forward(
        self,
        ids: np.ndarray,
        positions: np.ndarray,
        slots: np.ndarray,
        tables: Sequence[np.ndarray],
        lengths: Sequence[int],
        query_lengths: Sequence[int],
    ) -> torch.Tensor:
        """The model over a ragged batch: [tokens, hidden].

        ids, positions, slots (where keys and values go): [tokens]; tables: blocks of every sequence; lengths: of every
        sequence with its new tokens; query_lengths: its new tokens.
        """
        block_table = np.zeros((len(tables), max(map(len, tables))), dtype=np.int32)
        for row, table in enumerate(tables):
            block_table[row, : len(table)] = table
        starts = torch.as_tensor(np.concatenate([[0], np.cumsum(query_lengths)]), dtype=torch.int32)
        sizes = torch.as_tensor(np.asarray(lengths), dtype=torch.int32)
        slot_mapping = torch.as_tensor(slots, dtype=torch.int64).to(self.device)
        metadata = CommonAttentionMetadata(
            query_start_loc=starts.to(self.device),
            query_start_loc_cpu=starts,
            seq_lens=sizes.to(self.device),
            seq_lens_cpu_upper_bound=sizes,
            num_reqs=len(tables),
            num_actual_tokens=len(ids),
            max_query_len=max(query_lengths),
            max_seq_len=max(lengths),
            block_table_tensor=torch.as_tensor(block_table).to(self.device),
            slot_mapping=slot_mapping,
            causal=True,
        )
        built = self.builder.build(common_prefix_len=0, common_attn_metadata=metadata)
        with set_forward_context(
            dict.fromkeys(self.names, built),
            self.config,
            num_tokens=len(ids),
            slot_mapping=dict.fromkeys(self.names, slot_mapping),
        ):
            return self.model(
                input_ids=torch.as_tensor(ids, dtype=torch.int64).to(self.device),
                positions=torch.as_tensor(positions, dtype=torch.int64).to(self.device),
                intermediate_tensors=None,
                inputs_embeds=None,
            )

    def _allocate(self, originals: Sequence[torch.Tensor], blocks: int) -> None:
        """Caches like the engine's, of ``blocks`` blocks."""
        n = int(self.config.cache_config.num_gpu_blocks)
        self.caches = []
        for original in originals:
            self.axis = list(original.shape).index(n)
            shape = [blocks if axis == self.axis else size for axis, size in enumerate(original.shape)]
            order = sorted(range(original.dim()), key=lambda axis: -original.stride(axis))
            self.caches.append(torch.empty_permuted(shape, order, dtype=original.dtype, device=original.device).zero_())

    def _copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        if not sources:
            return
        source = torch.as_tensor(sources, dtype=torch.int64, device=self.device)
        target = torch.as_tensor(targets, dtype=torch.int64, device=self.device)
        for cache in self.caches:
            cache.index_copy_(self.axis, target, cache.index_select(self.axis, source))
