"""The item server of a rollout, without Ray: what it answers, how its weights come, and what it says of wrong ones."""

from __future__ import annotations

import asyncio

import pytest
import torch

from onerec.catalog import ItemIndex
from onerec.errors import InputError
from onerec.items.item import Draws
from onerec.items.model import ItemModel
from onerec.items.search import find_items
from onerec.sid import SidSpec


@pytest.fixture(scope="module")
def parts(world):
    """(checkpoint folder, its weights, catalogue, prompts that end in the begin token)."""
    from safetensors.torch import load_file

    spec = SidSpec.load(world / "model")
    prompts = [[*range(5, 5 + n), spec.begin_id] for n in (3, 9, 4)]
    return world / "model", load_file(world / "model" / "model.safetensors"), world / "pid2sid.parquet", prompts


def server_of(folder, weights):
    from verl_rl.item_server import ItemServer

    server = ItemServer(str(folder), "float32", "")
    server.take(list(weights.items())[:2])
    server.take(list(weights.items())[2:])
    server.renew(7)
    return server


def ask(server, prompts, wanted):
    async def all_at_once():
        from verl_rl.item_server import ITEMS

        asked = zip(prompts, wanted, strict=True)
        return await asyncio.gather(*(server.generate("x", prompt, {ITEMS: one}) for prompt, one in asked))

    return [out.extra_fields for out in asyncio.run(all_at_once())]


def test_what_comes_together_is_answered_as_if_alone(parts):
    from verl_rl.item_server import Wanted

    folder, weights, catalogue, prompts = parts
    server = server_of(folder, weights)
    best, drawn = Wanted(str(catalogue), 4, None, 1.0), Wanted(str(catalogue), 5, 3, 0.7)
    answers = ask(server, [*prompts, prompts[0]], [best, drawn, best, Wanted(None, 2, None, 1.0)])
    engine, index = ItemModel.open(folder, server.spec, "cpu", torch.float32), ItemIndex.load(catalogue, server.spec)
    expected = [
        *find_items(engine, prompts[:1], index, 4),
        *find_items(engine, prompts[1:2], index, 5, draws=Draws([3], 0.7)),
        *find_items(engine, prompts[2:], index, 4),
        *find_items(engine, prompts[:1], None, 2),
    ]
    assert [[item.token_ids for item in answer["items"]] for answer in answers] == [
        [item.token_ids for item in items] for items in expected
    ]
    assert {answer["global_steps"] for answer in answers} == {7}


def test_new_weights_count_at_once_and_a_missing_one_is_named(parts):
    from verl_rl.item_server import Wanted

    folder, weights, catalogue, prompts = parts
    server, wanted = server_of(folder, weights), [Wanted(str(catalogue), 4, None, 1.0)]
    before = ask(server, prompts[:1], wanted)[0]["items"]
    server.take([(name, tensor * 1.1) for name, tensor in weights.items()])
    server.renew(8)
    after = ask(server, prompts[:1], wanted)[0]
    assert after["items"] != before and after["global_steps"] == 8
    name = "model.layers.0.mlp.up_proj.weight"
    short = {key: tensor for key, tensor in weights.items() if key != name}
    with pytest.raises(InputError, match=f"the weights of step 7 do not hold {name}"):
        server_of(folder, short)
    server.take(list(short.items()))  # the tensor of the step before is still there
    with pytest.raises(InputError, match=f"the weights of step 9 do not hold {name}"):
        server.renew(9)


def test_a_server_without_weights_says_so_to_every_one(parts):
    from verl_rl.item_server import ItemServer, Wanted

    folder, _, catalogue, prompts = parts
    with pytest.raises(RuntimeError, match="no weights yet"):
        ask(ItemServer(str(folder), "float32", ""), prompts, [Wanted(str(catalogue), 4, None, 1.0)] * 3)


def test_a_servers_process_sees_its_gpu_from_its_start(monkeypatch):
    """Not when verl is imported in it: that asks torch for GPUs, and later words about them do not count."""
    import types

    from verl.plugin.platform import platform_manager
    from verl.plugin.platform.platform_cuda import PlatformCUDA

    import onerec.verl.server as servers

    class Actor:
        def __call__(self, server):
            return self

        def options(self, **options):
            self.environment = options["runtime_env"]["env_vars"]
            return self

        def remote(self, *arguments):
            return self.environment, arguments[2]

    async def place(function):
        return "ab" * 28, "3"

    worker = types.SimpleNamespace(__ray_call__=types.SimpleNamespace(remote=place))
    settings, model = types.SimpleNamespace(dtype="bfloat16"), types.SimpleNamespace(path="a model")
    replica = types.SimpleNamespace(workers=[worker], config=settings, model_config=model)
    replica.replica_rank, replica.world_size, replica.max_concurrency = 0, 1, 1
    monkeypatch.setattr(servers.ray, "remote", Actor())
    # The process that starts them, the trainer's, sees no GPU itself.
    for platform, expected in ((PlatformCUDA(), "3"), (types.SimpleNamespace(device_name="cpu"), "")):
        platform.ray_noset_envvars = lambda: ["NOSET"]
        platform.ray_resource_name = lambda: "GPU"
        monkeypatch.setattr(platform_manager, "_current_platform", platform)
        ((environment, device),) = asyncio.run(servers.launch_servers(replica, object))
        assert device == expected
        assert environment == {"NOSET": "1"} | ({"CUDA_VISIBLE_DEVICES": "3"} if expected else {})


def test_every_sender_has_done_with_a_tensor_before_the_next_is_made():
    from verl_rl.item_server import send_to_all

    alive, seen = [], ([], [])

    def stream():
        for number in range(4):
            alive.append(number)
            yield f"w{number}", torch.full((1,), float(number))
            assert all(len(names) == number + 1 for names in seen)

    def sender(names):
        async def send(weights):
            async for name, _ in weights:
                await asyncio.sleep(0)
                names.append(name)

        return send

    asyncio.run(send_to_all(stream(), *map(sender, seen)))
    assert seen == (["w0", "w1", "w2", "w3"],) * 2 and alive == [0, 1, 2, 3]


def test_the_trainers_watch_knows_a_dead_engine_from_the_item_engine(parts):
    import types

    from onerec.verl.trainer import check_engine

    folder, weights, _, _ = parts
    check_engine(server_of(folder, weights))
    check_engine(types.SimpleNamespace(engine=None))
    dead = types.SimpleNamespace(errored=True, dead_error=RuntimeError("the engine is dead"))
    with pytest.raises(RuntimeError, match="is dead"):
        check_engine(types.SimpleNamespace(engine=dead))
