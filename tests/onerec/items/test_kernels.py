"""What the item engine does otherwise on a GPU gives what the plain form gives."""

import contextlib
import copy
import gc
import importlib.util
import weakref

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from onerec.catalog import ItemIndex
from onerec.items import kernels
from onerec.items.model import ItemModel
from onerec.items.search import find_items

LENGTHS = [(7, 3, 5), (2, 8, 8), (6, 1, 4), (8, 2, 2)]


@pytest.fixture(scope="module")
def index(toy_spec):
    codes = np.random.default_rng(0).integers(0, 4, (30, 3)).astype(np.int32)
    return ItemIndex(np.arange(30), codes, toy_spec)


def batches(spec, most=40):
    """Prompts that end in the begin token, a batch for each of `LENGTHS`."""
    rng = np.random.default_rng(1)
    return [[[*rng.integers(0, most, n - 1).tolist(), spec.begin_id] for n in lengths] for lengths in LENGTHS]


class Recorder(TorchDispatchMode):
    """A CUDA graph without a GPU: the operations as they were called, done again on the same memory."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        # Neither may stand in a graph: a value that Python waits for, and one that Python gives.
        assert "_local_scalar_dense" not in str(function) and "lift_fresh" not in str(function)
        out = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, out))
        return out

    def replay(self):
        for function, args, kwargs, out in self.calls:
            new = function(*args, **kwargs)
            pairs = [(out, new)] if isinstance(out, torch.Tensor) else list(zip(out, new, strict=True))
            for held, given in pairs:
                if held.data_ptr() != given.data_ptr():
                    held.copy_(given)


@pytest.fixture
def recorded(monkeypatch):
    """Recordings made, and how often one was replayed."""
    counts = {"made": 0, "replayed": 0}

    def record(function, device):
        assert device == torch.device("cpu")
        with Recorder() as recorder:
            result = function()
        counts["made"] += 1

        def replay():
            counts["replayed"] += 1
            recorder.replay()

        return replay, result

    monkeypatch.setattr(kernels, "record", record)
    return counts


def same(ours, theirs):
    for some, others in zip(ours, theirs, strict=True):
        assert [item.codes for item in some] == [item.codes for item in others]
        np.testing.assert_allclose([i.score for i in some], [i.score for i in others], atol=1e-4)


def test_recorded_steps_find_the_items_of_batches_of_other_lengths(toy_model, toy_spec, index, recorded):
    plain, engine = (ItemModel.of(toy_model, toy_spec) for _ in range(2))
    engine.records, engine.multiple = True, 8
    for prompts in batches(toy_spec):
        same(find_items(engine, prompts, index, 4), find_items(plain, prompts, index, 4))
    # The first batch runs, the second is recorded, which is its first replay; two steps a batch.
    assert recorded == {"made": 2, "replayed": 6}
    same(find_items(engine, prompts[:2], index, 4), find_items(plain, prompts[:2], index, 4))
    assert recorded == {"made": 2, "replayed": 6}, "another shape of batch begins anew"


def test_what_a_prior_wants_is_scored_without_recordings_of_every_number_of_sids(toy_model, toy_spec, index, recorded):
    """Each would hold memory for good, and hardly be replayed."""
    plain, engine = (ItemModel.of(toy_model, toy_spec) for _ in range(2))
    engine.records, engine.multiple = True, 8
    first = batches(toy_spec)[0]
    for n in (1, 5, 9, 5, 9, 1):
        also = [np.arange(n)] * len(first)
        same(find_items(engine, first, index, 4, also=also), find_items(plain, first, index, 4, also=also))
    assert recorded["made"] == len(engine.replays.known) == 2


def test_a_recording_is_of_the_gpu_that_the_step_runs_on(monkeypatch):
    """On a stream of the first GPU nothing of another's work is recorded, and a replay does nothing."""

    class Graph:
        def replay(self):
            pass

    streams = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device=None: f"a stream of {device}")
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(
        torch.cuda, "graph", lambda graph, stream=None, **more: streams.append(stream) or contextlib.nullcontext()
    )
    assert kernels.record(lambda: 7, torch.device("cuda:1"))[1] == 7
    assert streams == ["a stream of cuda:1"]


def test_new_weights_are_not_searched_with_a_recording_of_the_old(toy_model, toy_spec, index, recorded):
    other = copy.deepcopy(toy_model)
    other.model.layers[1].mlp.up_proj.weight.data.mul_(1.5)
    plain, engine = ItemModel.of(other, toy_spec), ItemModel.of(toy_model, toy_spec)
    engine.records, engine.multiple = True, 8
    first, *rest = batches(toy_spec)
    for _ in range(3):
        find_items(engine, first, index, 4)
    engine.load(other.named_parameters())
    for prompts in (first, *rest):
        same(find_items(engine, prompts, index, 4), find_items(plain, prompts, index, 4))


def test_an_engine_with_recordings_goes_with_its_last_reference(toy_model, toy_spec, index, recorded):
    """Not when the garbage collector comes by: training wants the GPU's memory."""
    engine = ItemModel.of(toy_model, toy_spec)
    engine.records, engine.multiple = True, 8
    for prompts in batches(toy_spec):
        find_items(engine, prompts, index, 4)
    assert recorded["made"]
    gc.collect()
    gc.disable()
    try:
        there = weakref.ref(engine)
        del engine
        assert there() is None
    finally:
        gc.enable()


def test_packed_attention_gives_the_items_of_padded_attention(toy_model, toy_spec, index, monkeypatch):
    plain = ItemModel.of(toy_model, toy_spec)
    expected = [find_items(plain, prompts, index, 5) for prompts in batches(toy_spec)]
    asked = []

    def attention(query, key, value, bounds, longest):
        assert bounds.dtype == torch.int32 and longest == bounds.diff().max()
        asked.append(bounds.diff().tolist())
        rows = zip(*(part.split(asked[-1]) for part in (query, key, value)), strict=True)
        heads = ([part.transpose(0, 1) for part in row] for row in rows)
        outs = [functional.scaled_dot_product_attention(*row, is_causal=True, enable_gqa=True) for row in heads]
        return torch.cat([out.transpose(0, 1) for out in outs])

    monkeypatch.setattr(kernels, "packed_attention", lambda like: attention)
    for prompts, items in zip(batches(toy_spec), expected, strict=True):
        same(find_items(plain, prompts, index, 5), items)
    assert asked == [sorted(lengths, reverse=True) for lengths in LENGTHS]  # once, the last layer needs none


def test_the_kernel_of_packed_attention_is_one_that_is_here():
    """torch's own takes what it is given (shapes alone: it runs on a GPU); a CPU takes none."""
    assert kernels.packed_attention(torch.zeros(1)) is None
    if importlib.util.find_spec("flash_attn") is not None:
        pytest.skip("flash-attn is installed, which runs on a GPU alone")
    kernel = kernels._packed_kernel()
    query, key = torch.empty(9, 4, 16, device="meta"), torch.empty(9, 2, 16, device="meta")
    bounds = torch.empty(3, dtype=torch.int32, device="meta")
    assert kernel(query, key, key, bounds, 5).shape == (9, 4, 16)


def test_the_fused_passes_trace_into_one_graph_of_any_number_of_rows():
    generator = torch.Generator().manual_seed(0)

    def values(*shape):
        return torch.randn(*shape, generator=generator)

    weight, cos, sin = values(16), values(1, 16), values(1, 16)
    for passes, inputs in (
        (kernels.normed, lambda n: (values(n, 16), weight, 1e-6)),
        (kernels.normed_and_rotated, lambda n: (values(n, 4, 16), weight, 1e-6, cos, sin)),
        (kernels.gated, lambda n: (values(n, 16), values(n, 16))),
        (kernels._sums, lambda n: (values(n, 16), values(n, 1))),
    ):
        compiled = torch.compile(passes.__wrapped__, dynamic=True, fullgraph=True, backend="eager")
        for n in (5, 9):
            given = inputs(n)
            torch.testing.assert_close(compiled(*given), passes(*given))


@pytest.mark.gpu
def test_on_a_gpu_every_fast_form_gives_what_the_plain_one_gives(toy_model, toy_spec, index, monkeypatch):
    """bfloat16, in which sums of another order differ in the last bits: hidden states and scores within those."""
    model = copy.deepcopy(toy_model).to("cuda", torch.bfloat16)
    fast = ItemModel.of(model, toy_spec)
    assert kernels.packed_attention(torch.zeros(1, device="cuda", dtype=torch.bfloat16)) is not None
    width = len(index.sids)
    hidden = [fast.prefill(prompts).clone() for prompts in batches(toy_spec)]
    found = [find_items(fast, prompts, index, width) for prompts in batches(toy_spec)]
    assert len(fast.replays.known) == 2
    monkeypatch.setattr(kernels, "packed_attention", lambda like: None)
    monkeypatch.setattr(kernels, "_has_triton", lambda: False)
    plain = ItemModel.of(model, toy_spec)
    plain.records = False
    for prompts, states, items in zip(batches(toy_spec), hidden, found, strict=True):
        torch.testing.assert_close(states, plain.prefill(prompts), atol=0.05, rtol=0.05)
        for some, others in zip(items, find_items(plain, prompts, index, width), strict=True):
            scores = {item.codes: item.score for item in others}
            assert [item.codes for item in some if item.codes not in scores] == []
            np.testing.assert_allclose([i.score for i in some], [scores[i.codes] for i in some], atol=0.3)
