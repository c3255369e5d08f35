"""Checkpoints that are cut, lack a part or hold a foreign pickle: one line, nothing run, no silent fresh start."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from onerec.errors import InputError
from pretrain import convert_checkpoint_to_hf
from pretrain.sharding import read_trained
from pretrain.train import main

STATES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "loss_state.json")


class Evil:
    """A pickle of it makes the file ``canary`` where it is loaded as a pickle."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return open, (str(self.canary), "w")


def argv(world: Path, output: Path, *extra: str) -> list[str]:
    flags = {
        "--model_dir": world / "base_itemic",
        "--dataset_config": world / "config.json",
        "--output_dir": output,
        "--num_training_steps": 2,
        "--save_checkpoint_per_step": 1,
        "--logging_per_step": 1,
    }
    return [str(item) for pair in flags.items() for item in pair] + list(extra)


@pytest.fixture(scope="module")
def stopped(world, tmp_path_factory) -> Path:
    """What a run leaves that ended after its first step of two."""
    output = tmp_path_factory.mktemp("damaged") / "out"
    main(argv(world, output))
    for name in ("step2", "hf"):
        shutil.rmtree(output / name)
    return output


def missing(name):
    return lambda folder: (folder / name).unlink()


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:40])


def evil(name, save=pickle.dump):
    def damage(folder: Path) -> None:
        with open(folder / name, "wb") as file:
            save({"state": Evil(folder.parents[2] / "CANARY"), "python": 1}, file)

    return damage


def content(name, value):
    return lambda folder: (folder / name).write_text(json.dumps(value))


def state(name, change):
    """A damage: a state that torch reads, changed by ``change``."""

    def damage(folder: Path) -> None:
        value = torch.load(folder / name, weights_only=True)
        change(value)
        torch.save(value, folder / name)

    return damage


def other_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(3)
    save_file(tensors, folder / "model.safetensors")


DAMAGES = {
    **{f"no {name}": (missing(name), name) for name in (*STATES, "run.json")},
    **{f"{name} cut": (cut(name), f"{name}|random states") for name in (*STATES, "run.json")},
    **{f"pickle in {name}": (evil(name), "than tensors|random states") for name in STATES[1:4]},
    **{f"torch's pickle in {name}": (evil(name, torch.save), "than tensors|random states") for name in STATES[1:4]},
    "a state of another step": (content("trainer_state.json", {"global_step": 7}), "not those of this step"),
    "a state that is a list": (content("trainer_state.json", [1]), "trainer_state.json: is not a JSON object"),
    "a state of other words": (content("trainer_state.json", {"global_step": 1, "no_such": 1}), "trainer_state.json"),
    "a run that is a list": (content("run.json", []), "run.json: is not a JSON object"),
    "a run of text": (content("run.json", {"world_size": "1"}), "not those of this step"),
    "sums of another length": (content("loss_state.json", {"tokens_seen": 1, "sums": [1.0]}), "loss_state.json"),
    "sums of text": (content("loss_state.json", {"tokens_seen": "x", "sums": []}), "loss_state.json"),
    "an optimizer of another model": (
        lambda f: torch.save({"state": {}, "param_groups": []}, f / "optimizer.pt"),
        "optimizer.pt",
    ),
    "a fresh optimizer": (state("optimizer.pt", lambda v: v["state"].clear()), "it is of step 0"),
    "an optimizer of another step": (
        state("optimizer.pt", lambda v: [s["step"].fill_(3) for s in v["state"].values()]),
        "it is of step 3",
    ),
    "an optimizer of other shapes": (
        state("optimizer.pt", lambda v: v["state"][0].update(exp_avg=torch.zeros(3))),
        "it is of other parameters",
    ),
    "a fresh schedule": (state("scheduler.pt", lambda v: v.update(last_epoch=0)), "it is of step 0"),
    "a schedule of text": (state("scheduler.pt", lambda v: v.update(last_epoch="1")), "scheduler.pt"),
    "weights of another model": (other_weights, "cannot be loaded"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_does_not_go_on(world, stopped, tmp_path, name):
    damage, words = DAMAGES[name]
    shutil.copytree(stopped, tmp_path / "out")
    damage(tmp_path / "out/step1/global_step1")
    with pytest.raises(InputError, match=words) as error:
        main(argv(world, tmp_path / "out", "--resume_from", "auto", "--resume_training_state"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "CANARY").exists() and not (tmp_path / "out/hf").exists()


def test_weights_alone_are_taken_from_a_checkpoint_without_states(world, stopped, tmp_path):
    """As the error of one that lacks a state says."""
    shutil.copytree(stopped, tmp_path / "old")
    for name in STATES[1:]:
        (tmp_path / "old/step1/global_step1" / name).unlink()
    assert main(argv(world, tmp_path / "new", "--resume_from", str(tmp_path / "old"))) == 0
    assert (tmp_path / "new/hf/model.safetensors").is_file()


def fsdp(folder: Path) -> Path:
    """A checkpoint as FSDP writes it, of one process."""
    import torch.distributed.checkpoint as dcp

    state = {"model": {"lm.a": torch.arange(6.0).reshape(2, 3), "lm.b": torch.ones(4, dtype=torch.bfloat16)}}
    dcp.save(state, checkpoint_id=folder / "fsdp", no_dist=True)
    return folder


def test_an_fsdp_checkpoint_of_tensors_is_read(tmp_path):
    held = read_trained(fsdp(tmp_path))
    assert held["lm.a"].tolist() == [[0, 1, 2], [3, 4, 5]] and held["lm.b"].dtype == torch.bfloat16


def of_bytes(folder: Path) -> None:
    """Metadata of DCP's own classes that ask for an object, which torch would unpickle whole."""
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    with open(folder / "fsdp/.metadata", "rb") as file:
        metadata = pickle.load(file)
    metadata.state_dict_metadata["model.lm.a"] = BytesStorageMetadata()
    (folder / "fsdp/.metadata").write_bytes(pickle.dumps(metadata))


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / "fsdp/.metadata").write_bytes(pickle.dumps(Evil(f / "CANARY"))),
        lambda f: (
            (f / "fsdp/.metadata").unlink(),
            (f / "fsdp/__0.metadata").write_bytes(pickle.dumps(Evil(f / "CANARY"))),
        ),
        of_bytes,
        lambda f: (f / "fsdp/.metadata").write_bytes(b""),
        lambda f: (f / "fsdp/.metadata").write_bytes(pickle.dumps({"a": 1})),
        lambda f: (f / "fsdp/.metadata").unlink(),
        lambda f: next(f.glob("fsdp/*.distcp")).write_bytes(b""),
        lambda f: torch.save(Evil(f / "CANARY"), next(f.glob("fsdp/*.distcp"))),
        lambda f: shutil.rmtree(f / "fsdp") or (f / "fsdp").mkdir(),
    ],
)
def test_a_foreign_fsdp_checkpoint_runs_nothing(tmp_path, damage):
    damage(fsdp(tmp_path))
    with pytest.raises(InputError, match="shard that is missing or damaged") as error:
        read_trained(tmp_path)
    assert "\n" not in str(error.value) and not (tmp_path / "CANARY").exists()


@pytest.mark.parametrize("save", [torch.save, lambda value, path: Path(path).write_bytes(pickle.dumps(value))])
@pytest.mark.parametrize("place", ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"])
def test_foreign_zero_states_run_nothing(world, stopped, tmp_path, save, place):
    pytest.importorskip("deepspeed")
    shutil.copytree(stopped / "step1", tmp_path / "step1")
    folder = tmp_path / "step1/global_step1"
    (tmp_path / "step1/latest").write_text("global_step1")
    names = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    whole = {
        **{"buffer_names": [], "module": {}, "param_shapes": [], "shared_params": {}, "ds_version": "0"},
        "optimizer_state_dict": {
            "zero_stage": 1,
            "partition_count": 1,
            "single_partition_of_fp32_groups": [],
        },
    }
    for name in names:
        torch.save(whole, folder / name)
    save(Evil(tmp_path / "CANARY"), folder / place)
    with pytest.raises(InputError, match=r"damaged \((a pickle of something else than tensors|mmap can only)"):
        convert_checkpoint_to_hf.main(["--base_model_dir", str(world / "base_itemic"), "--checkpoint_dir", str(folder)])
    assert not (tmp_path / "CANARY").exists()
