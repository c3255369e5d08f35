"""How the processes share weights, gradients and optimizer state: not at all, by DeepSpeed's ZeRO, or PyTorch's FSDP2.

Each way is a small object that the trainer asks: `Whole` (every process holds everything), `Zero` (``--deepspeed``) and
`Fsdp` (``--fsdp``). A sharded checkpoint holds what is trained, each process its part.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import pickle
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onerec.errors import InputError, reason
from onerec.run import read_json

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

    from pretrain.model import PackedLM

FSDP_FOLDER = "fsdp"
_ZERO_STATES = "*_model_states.pt"
_TENSORS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # read by torch.load, whatever its caller asks for
# What the metadata of a checkpoint of tensors are made of. `BytesStorageMetadata` is left out: it stands for objects,
# which are pickles.
_DTYPES = "float64 float32 float16 bfloat16 int64 int32 uint8 bool"
_PARTS = "ChunkStorageMetadata Metadata MetadataIndex StorageMeta TensorProperties TensorStorageMetadata"
_OF_TENSORS = {
    "torch.Size",
    "torch.serialization._get_layout",
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    "pathlib.PosixPath",
    *(f"torch.{name}" for name in _DTYPES.split()),
    *(f"torch.distributed.checkpoint.metadata.{name}" for name in (*_PARTS.split(), "_MEM_FORMAT_ENCODING")),
}
# What train.py says itself, and by which flags; a config that says it too could only contradict.
_SAID_BY_FLAGS = {
    "optimizer": "--learning_rate, --weight_decay, --beta1, --beta2",
    "scheduler": "--lr_scheduler_type",
    "fp16": "--precision",
}
_AUTO = {
    "bf16": ("enabled", "--precision"),
    "gradient_clipping": (None, "--clip_range"),
    "gradient_accumulation_steps": (None, "--gradient_accumulation_steps"),
    "train_micro_batch_size_per_gpu": (None, "--max_length"),
    "train_batch_size": (None, "--gradient_accumulation_steps"),
}


class Whole:
    """Every process holds all of it (one process, or DistributedDataParallel)."""

    name: str | None = None

    def training_arguments(self, half: bool) -> dict[str, Any]:
        """Of transformers' arguments, those of this way; ``half``: whether layers compute in bfloat16."""
        return {}

    def wrap(self, model: PackedLM, device: torch.device) -> None:
        """Prepare a model that stands on its device; before the optimizer is made."""
        if model.half:
            model.halve()

    def load(self, trainer: Trainer, folder: Path) -> None:
        """Go on from FSDP2's shards in a model that is whole."""
        load_fsdp(trainer, folder)
        for parameter, master in trainer.model.masters.items():
            parameter.data.copy_(master)

    def release(self) -> None:
        """Training is over: models made from here on are whole."""


class Zero(Whole):
    """DeepSpeed ZeRO 1, 2 or 3 by its own JSON config; raises `InputError` where that contradicts train.py's flags."""

    def __init__(self, path: str | Path) -> None:
        self.config = _object(path)
        for key, flag in _SAID_BY_FLAGS.items():
            if key in self.config:
                raise InputError(path, f"has the section {key}", f"leave it out; train.py takes {flag}")
        for key, (inner, flag) in _AUTO.items():
            value = self.config.get(key, "auto")
            if isinstance(value, dict):
                value = value.get(inner, "auto")
            if value != "auto":
                raise InputError(path, f"sets {key} to {value!r}", f'write "auto"; train.py takes {flag}')
            self.config[key] = "auto" if inner is None else {inner: "auto"}
        zero = self.config.get("zero_optimization")
        stage = zero.get("stage") if isinstance(zero, dict) else None
        if stage not in (1, 2, 3):
            raise InputError(path, f"zero_optimization.stage is {stage!r}", "it is 1, 2 or 3")
        if importlib.util.find_spec("deepspeed") is None:
            raise InputError("--deepspeed", "deepspeed is not installed", "pip install deepspeed, or --fsdp")
        self.stage = stage
        self.name = f"zero{stage}"

    def training_arguments(self, half: bool) -> dict[str, Any]:
        if "RANK" not in os.environ:  # a lone process, as for ZeRO-Offload on one GPU
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        import torch

        if not torch.cuda.is_available():
            import deepspeed.ops

            # It would be compiled at the start, for minutes: reductions in shared memory. gloo reduces without it.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        return {"deepspeed": self.config, "bf16": half}

    def wrap(self, model: PackedLM, device: torch.device) -> None:
        if self.stage < 3:
            return
        import deepspeed

        # The loss takes the head's weight and stage 1 the embedding's, past the modules that own them.
        for weight in {id(weight): weight for weight in (model.embedding, model.head)}.values():
            deepspeed.zero.register_external_parameter(model, weight)

    def release(self) -> None:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()  # under ZeRO-3 transformers would shard them as they are made

    def save(self, trainer: Trainer, folder: Path) -> Callable[[], None]:
        """Write at once, as DeepSpeed does; nothing is left to be written."""
        parent, frozen = str(folder.parent), self._frozen(trainer)
        trainer.model_wrapped.save_checkpoint(parent, tag=folder.name, exclude_frozen_parameters=frozen)
        return lambda: None

    def load(self, trainer: Trainer, folder: Path) -> None:
        wanted = {"load_module_strict": not self._frozen(trainer), "load_lr_scheduler_states": False}
        with _shards(folder):
            path, _ = trainer.model_wrapped.load_checkpoint(str(folder.parent), tag=folder.name, **wanted)
            if path is None:  # DeepSpeed says so in its log alone
                raise ValueError("DeepSpeed finds no states of this run")

    @staticmethod
    def _frozen(trainer: Trainer) -> bool:
        return trainer.accelerator.unwrap_model(trainer.model).rows is not None


@dataclasses.dataclass
class Fsdp(Whole):
    """PyTorch's FSDP2 (``fully_shard``), a layer at a time.

    ``reshard_after_forward``: true frees a layer's weights between forward and backward (as ZeRO-3), false keeps them
    (as ZeRO-2). ``reduce_dtype``: float32 or bfloat16, in which gradients are added over the processes under bf16.
    ``cpu_offload``: weights, gradients and optimizer state in the CPU's memory.
    """

    reshard_after_forward: bool = True
    reduce_dtype: str = "float32"
    cpu_offload: bool = False

    name = "fsdp2"

    @classmethod
    def read(cls, path: str | Path, world: int) -> Fsdp:
        """From a JSON config; raises `InputError` for an unknown key, a wrong value, or a run of one process."""
        value = _object(path)
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for key, item in value.items():
            if key not in fields:
                raise InputError(path, f"has the unknown key {key}", f"known are {', '.join(fields)}")
            if fields[key].type == "bool" and not isinstance(item, bool):
                raise InputError(path, f"{key} is {item!r}", "it is true or false")
        config = cls(**value)
        if config.reduce_dtype not in ("float32", "bfloat16"):
            raise InputError(path, f"reduce_dtype is {config.reduce_dtype!r}", "it is float32 or bfloat16")
        if world < 2:
            raise InputError("--fsdp", "there is one process", "start several (torchrun, NPROC), or leave it out")
        return config

    def wrap(self, model: PackedLM, device: torch.device) -> None:
        import torch
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

        mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=getattr(torch, self.reduce_dtype))
        options = {
            "mesh": init_device_mesh(device.type, (torch.distributed.get_world_size(),)),
            "reshard_after_forward": self.reshard_after_forward,
            "mp_policy": mixed if model.half else MixedPrecisionPolicy(),
            "offload_policy": CPUOffloadPolicy() if self.cpu_offload else OffloadPolicy(),
        }
        for layer in model.lm.model.layers:
            fully_shard(layer, **options)
        fully_shard(model, **options)
        model._is_accelerate_prepared = True  # accelerate would put DistributedDataParallel around it
        # Of the CPUs: checkpoints are written by a thread, whose messages must not mix with the training's.
        self.writers = torch.distributed.new_group(backend="gloo")

    def save(self, trainer: Trainer, folder: Path) -> Callable[[], None]:
        """Copy this process's part; returns what writes it, together with the other processes."""
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.api import CheckpointException  # derives from BaseException

        from pretrain.saving import named_state

        state = trainer.saver.copy(named_state(trainer))

        def write() -> None:
            try:
                dcp.save(state, checkpoint_id=folder / FSDP_FOLDER, process_group=self.writers)
            except CheckpointException as error:
                raise next(iter(error.failures.values()))[0] from None

        return write

    def load(self, trainer: Trainer, folder: Path) -> None:
        load_fsdp(trainer, folder)


def _object(path: str | Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(path, "is not a JSON object", "see examples/zero2.json and examples/fsdp2.json")
    return value


def choose(deepspeed: str | None, fsdp: str | None, world: int) -> Whole:
    """What the flags ask for in a run of ``world`` processes; `InputError` where that cannot be."""
    if deepspeed and fsdp:
        raise InputError("--fsdp", "is given beside --deepspeed", "choose one")
    if deepspeed:
        return Zero(deepspeed)
    return Fsdp.read(fsdp, world) if fsdp else Whole()


def read_trained(folder: Path) -> dict[str, torch.Tensor] | None:
    """Trained parameters of a sharded checkpoint in float32, by `PackedLM`'s names; None where it is not sharded.

    Raises `InputError` where a part is missing or damaged.
    """
    if (folder / FSDP_FOLDER).is_dir():
        read = _read_fsdp
    elif any(folder.glob(_ZERO_STATES)):
        read = _read_zero
        if importlib.util.find_spec("deepspeed") is None:
            raise InputError(folder, "holds ZeRO shards, and deepspeed is not installed", "pip install deepspeed")
    else:
        return None
    with _shards(folder):
        return read(folder)


@contextlib.contextmanager
def _shards(folder: Path) -> Iterator[None]:
    """Shards are read within: tensors, and what DeepSpeed puts beside them, are all that ``torch.load`` unpickles.

    Whatever is raised at a shard that is missing, damaged or holds anything else becomes `InputError`.
    """
    import torch
    from torch.distributed.checkpoint.api import CheckpointException  # derives from BaseException

    beside = []
    if importlib.util.find_spec("deepspeed") is not None:
        from deepspeed.runtime.fp16.loss_scaler import LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address

        beside = [LossScaler, ZeroStageEnum, fragment_address]
    before = os.environ.get(_TENSORS_ONLY, "0")
    os.environ[_TENSORS_ONLY] = "1"
    try:
        with torch.serialization.safe_globals(beside), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (Exception, CheckpointException) as error:  # torch, pickle and zipfile have a type each
        what = f"has a shard that is missing or damaged ({reason(error)})"
        raise InputError(folder, what, "take an older step") from None
    finally:
        os.environ[_TENSORS_ONLY] = before


class _Metadata(pickle.Unpickler):
    """Reads a checkpoint's ``.metadata``; a pickle calls what it names, so only tensors' classes are let through."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _OF_TENSORS:
            raise pickle.UnpicklingError(f"its metadata name {module}.{name}")
        return super().find_class(module, name)


def _checked(folder: Path) -> Path:
    """The FSDP shards of a checkpoint, whose metadata (a pickle) torch may read."""
    for path in (folder / FSDP_FOLDER).glob("*.metadata"):
        with open(path, "rb") as file:
            _Metadata(file).load()
    return folder / FSDP_FOLDER


def load_fsdp(trainer: Trainer, folder: Path) -> None:
    """Fill a trainer's parameters and optimizer from FSDP2's shards, of any number of processes.

    Raises `InputError` where a shard is missing or damaged, or holds the optimizer of another step.
    """
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp

    from pretrain.saving import named_state

    state = named_state(trainer)
    with _shards(folder):
        dcp.load(state, checkpoint_id=_checked(folder), no_dist=not dist.is_initialized())
        steps = {int(kept["step"]) for kept in state["optimizer"].values()}
        if steps != {int(folder.name.removeprefix("global_step"))}:
            raise ValueError(f"their optimizer is of step {max(steps)}")


def _read_fsdp(folder: Path) -> dict[str, torch.Tensor]:
    import torch
    import torch.distributed.checkpoint as dcp

    reader = dcp.FileSystemReader(_checked(folder))
    held = reader.read_metadata().state_dict_metadata
    state = {
        name.removeprefix("model."): torch.empty(tensor.size, dtype=tensor.properties.dtype)
        for name, tensor in held.items()
        if name.startswith("model.")
    }
    dcp.load({"model": state}, storage_reader=reader, no_dist=True)
    return state


def _read_zero(folder: Path) -> dict[str, torch.Tensor]:
    import io

    # DeepSpeed's own merger; it prints what it does.
    with contextlib.redirect_stdout(io.StringIO()):
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        return get_fp32_state_dict_from_zero_checkpoint(
            str(folder.parent), tag=folder.name, exclude_frozen_parameters=True
        )
