"""Fixtures that more than one stage's tests use: a tiny Qwen3 with itemic tokens, made on the spot."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Ray gives a cluster of its own a token, and keeps it when a later test joins another cluster.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import pytest

from onerec.sid import SidSpec
from tests.clusters import ray_cluster  # noqa: F401  a fixture

# Tests send signals to what they start. What is ignored here (nohup, a shell's background) would be ignored there too.
for _number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)

# The files that take minutes, in the order in which workers begin them: none is left for the end, where the others
# would wait for it.
LONGEST = [
    "verl_rl/test_run.py",
    "test_recipes.py",
    "pretrain/test_sharding.py",
    "test_quickstart.py",
]
# Runs of verl with Ray and vLLM servers take half of the machine's memory each: one worker does them in turn.
VERL_RUNS = ["verl_rl/test_run.py", "verl_distillation/test_run.py"]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Which tests go to one worker: a file's, for they share what its fixtures make; but the recipes' share nothing."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            if file.endswith(tuple(VERL_RUNS)):
                return "verl"
            return nodeid if file.endswith("test_recipes.py") else file

    return Scheduler(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the tests of `LONGEST` forward, the others in their order; skip those of a GPU where there is none."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
    of_a_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if of_a_gpu:
        import torch

        if not torch.cuda.is_available():
            for item in of_a_gpu:
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session")
def toy_spec() -> SidSpec:
    """Three layers of 4 codes behind a vocabulary of 40 ordinary tokens."""
    return SidSpec((4, 4, 4), first_id=40)


@pytest.fixture(scope="session")
def toy_model(toy_spec):
    """A random Qwen3 of two layers, in evaluation mode, whose vocabulary holds the SIDs of `toy_spec`."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        initializer_range=0.3,
    )
    return Qwen3ForCausalLM(config).eval()


@pytest.fixture(scope="session")
def shared_data():
    """Path of a real data file beside the repository; the test is skipped where it is not there."""

    def find(name: str) -> Path:
        path = Path(__file__).resolve().parents[2] / "shared" / "data" / name
        if not path.exists():
            pytest.skip(f"the real data file {name} is not here")
        return path

    return find
