"""A model folder (a Hugging Face checkpoint) is opened here before anything of it runs: configuration, tokenizer, SIDs, weights.

Nothing in the folder is executed or unpickled: weights are safetensors, told by their headers, and a ``model_type`` is one of
`BACKBONES`, so that no Python file beside it is asked for. What loads a folder afterwards says ``trust_remote_code=False`` itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onerec.errors import InputError
from onerec.files import MODEL_FILES, SID_SPEC
from onerec.run import read_json
from onerec.sid import SidSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The language models that are trained and measured here: decoders of one layout, whose biases and norms differ.
BACKBONES = ("qwen3", "qwen2", "llama", "mistral")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16,
         "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4, "C64": 64}  # fmt: skip
_FLOATS = ("F64", "F32", "F16", "BF16")
_COUNTS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_MAY_BE_NULL = ("num_key_value_heads", "head_dim", "max_position_embeddings")
_SWITCHES = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
_AGAIN = "write it again; it may be cut short"
# Tensors that older versions of transformers stored and no model needs.
_NOT_NEEDED = ("rotary_emb.inv_freq", "attn.masked_bias", "attn.bias")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """What a header says of a tensor: type as safetensors names it, shape, and the bytes of ``path`` that hold it."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """A language model's folder that `open_model_folder` found whole. ``spec``: its SIDs with their ids, None where it has none."""

    path: Path
    config: dict[str, Any]
    spec: SidSpec | None

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return self.config["vocab_size"]

    @property
    def context(self) -> int:
        """Tokens of the longest sequence."""
        return self.config.get("max_position_embeddings") or 1 << 30


def open_model_folder(path: str | Path) -> ModelFolder:
    """A language model's folder, whole: every tensor that its ``config.json`` implies stands there with its shape, the tokenizer
    fits the embedding, and the itemic tokens have the ids of ``sid_spec.json``.

    Headers alone are read. Raises `InputError` for anything else.
    """
    path = Path(path)
    config = read_config(path)
    _check_weights(path, config)
    tokenizer = read_tokenizer(path)
    last = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if last >= config["vocab_size"]:
        raise InputError(path, f"its tokenizer has the id {last}, its embedding {config['vocab_size']} rows", "the tokenizer of this model")  # fmt: skip
    spec = SidSpec.load(path) if (path / SID_SPEC).is_file() else None
    if spec is not None:
        if spec.first_id is None or not 0 <= spec.first_id <= spec.end_id < config["vocab_size"]:
            raise InputError(path, f"its {SID_SPEC} has no ids inside its {config['vocab_size']} embedding rows", "expand its vocabulary again")  # fmt: skip
        check_itemic_tokens(path, spec, tokenizer)
    return ModelFolder(path, config, spec)


def open_encoder(path: str | Path) -> None:
    """As `open_model_folder` for a text encoder, whose architecture may be any that transformers knows: its loader compares the shapes."""
    path = Path(path)
    _open_config(path)
    _weights(path)


def read_config(path: str | Path) -> dict[str, Any]:
    """``config.json`` of a language model's folder; raises `InputError` where it is none, or its numbers cannot be a model's."""
    path = Path(path)
    config, file = _open_config(path), path / "config.json"

    def refuse(key: str, right: str) -> InputError:
        return InputError(file, f"{key} is {config.get(key)!r}"[:200], right)

    if config.get("model_type") not in BACKBONES:
        raise refuse("model_type", f"a backbone that is known: {', '.join(BACKBONES)}")
    for key in _COUNTS:
        if not _is_count(config.get(key)):
            raise refuse(key, "a whole number of 1 or more")
    for key in _MAY_BE_NULL:
        if config.get(key) is not None and not _is_count(config[key]):
            raise refuse(key, "a whole number of 1 or more, or null")
    for key in _SWITCHES:
        if not isinstance(config.get(key, False), bool):
            raise refuse(key, "true or false")
    for key in ("rms_norm_eps", "initializer_range", "attention_dropout"):
        value = config.get(key, 0.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise refuse(key, "a number of 0 or more")
    for key in ("dtype", "torch_dtype"):
        if config.get(key) not in (None, "float32", "float16", "bfloat16", "float64"):
            raise refuse(key, "float32, float16 or bfloat16")
    heads = config["num_attention_heads"]
    if heads % (config.get("num_key_value_heads") or heads):
        raise refuse("num_key_value_heads", f"a divisor of num_attention_heads {heads}")
    null = config["model_type"].startswith("qwen") and config.get("head_dim", 0) is None
    if null or _head_dim(config) % 2 or (not config.get("head_dim") and config["hidden_size"] % heads):
        raise refuse("head_dim", f"an even number; without it {heads} heads divide hidden_size {config['hidden_size']}")  # fmt: skip
    for name in ("config.json", "generation_config.json"):
        ends = read_object(path / name).get("eos_token_id") if (path / name).is_file() else None
        if not all(_is_count(end + 1 if type(end) is int else end) for end in (ends if isinstance(ends, list) else [ends or 0])):  # fmt: skip
            raise InputError(path / name, f"eos_token_id is {ends!r}"[:200], "an id, a list of ids, or null")
    return config


def read_tokenizer(path: str | Path) -> Tokenizer:
    """``tokenizer.json`` of a folder; raises `InputError` where there is none or it does not parse."""
    from tokenizers import Tokenizer

    file = Path(path) / "tokenizer.json"
    if not file.is_file():
        raise InputError(path, "has no tokenizer.json", "give a checkpoint with a fast tokenizer")
    read_object(file)
    with loading(
        file, "give a checkpoint with a fast tokenizer"
    ):  # the tokenizers package raises plain Exception
        return Tokenizer.from_file(str(file))


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object; raises `InputError` for a file that holds anything else."""
    with open(file, "rb") as start:
        _refuse_pointer(file, start.read(8))
    try:
        value = read_json(file)
    except RecursionError:
        value = None
    if not isinstance(value, dict):
        raise InputError(file, "is not a JSON object", "the file as transformers writes it")
    return value


def check_itemic_tokens(path: str | Path, spec: SidSpec, tokenizer: Tokenizer) -> None:
    """Raise `InputError` where the tokenizer splits an itemic token or gives it another id than ``sid_spec.json``."""
    first, last = spec.id_range
    if tokenizer.encode("".join(spec.tokens), add_special_tokens=False).ids == list(range(first, last + 1)):
        return
    for wanted, token in enumerate(spec.tokens, first):
        if (found := tokenizer.token_to_id(token)) != wanted:
            raise InputError(path, f"its tokenizer has {token} at {found}, its {SID_SPEC} at {wanted}", "expand its vocabulary again")  # fmt: skip
    raise InputError(path, "its tokenizer splits itemic tokens", "expand its vocabulary again")


def tensor_headers(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, from its header: eight bytes with the header's length, JSON, then the values.

    Raises `InputError` for a file that is none, or does not hold what its header says.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(8)
        start = 8 + int.from_bytes(head, "little")
        header = file.read(start - 8) if len(head) == 8 and start <= size else b""
    _refuse_pointer(path, head)
    if not size:
        raise InputError(path, "is empty", "write or download it again")
    try:
        entries: dict[str, Any] = json.loads(header)
        entries.pop("__metadata__", None)
        tensors = {
            name: Tensor(path, str(entry["dtype"]), tuple(map(int, entry["shape"])), *(start + int(at) for at in entry["data_offsets"]))
            for name, entry in entries.items()
        }  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(path, "is not a whole safetensors file", _AGAIN) from None
    if any(not start <= tensor.begin <= tensor.end <= size for tensor in tensors.values()):
        raise InputError(path, "is shorter than its header says", _AGAIN)
    for name, tensor in tensors.items():
        bits = _BITS.get(tensor.dtype, 0) * math.prod(tensor.shape)
        if tensor.dtype not in _BITS or min(tensor.shape, default=0) < 0 or -(-bits // 8) != tensor.end - tensor.begin:  # fmt: skip
            raise InputError(path, f"its tensor {name} has bytes that are not those of its shape", _AGAIN)
    return tensors


def check_finite(path: str | Path, weights: Iterable[tuple[str, Any]]) -> None:
    """Raise `InputError` where one of the named tensors (torch's) holds a value that is no number."""
    for name, tensor in weights:
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise InputError(path, f"its weight {name} holds values that are no numbers", "the model before its training went wrong")  # fmt: skip


@contextlib.contextmanager
def loading(path: object, right: str = "give a checkpoint that transformers can load") -> Iterator[None]:
    """Around a library that reads somebody's file: whatever it raises becomes `InputError` of ``path``, but for full memory."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # each library has types of its own, down to a plain Exception
        if type(error).__name__ == "OutOfMemoryError":
            raise
        what = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        if type(error).__name__ == "UnpicklingError":  # torch's own words ask to switch the check off
            what = "a pickle of something else than tensors"
        raise InputError(path, f"cannot be loaded ({what})", right) from error


def _open_config(path: Path) -> dict[str, Any]:
    """``config.json`` of any model's folder, whose other JSON files are objects as well."""
    if not path.is_dir():
        raise InputError(
            path, "is not a checkpoint folder (no such folder)", "give a Hugging Face checkpoint"
        )
    if (path / "adapter_config.json").exists():
        raise InputError(path, "is an adapter (adapter_config.json), not a whole model", "merge it into its base model first")  # fmt: skip
    if not (path / "config.json").is_file():
        raise InputError(path, "is not a checkpoint folder (no config.json)", "give a folder with config.json and *.safetensors")  # fmt: skip
    for name in MODEL_FILES:
        if name.endswith(".json") and name != "tokenizer.json" and (path / name).is_file():
            read_object(path / name)
    return read_object(path / "config.json")


def _refuse_pointer(file: Path, head: bytes) -> None:
    if head == b"version ":
        raise InputError(file, "is a Git LFS pointer, not the file itself", "git lfs pull")


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value < 1 << 31


def _head_dim(config: dict[str, Any]) -> int:
    # Where a configuration does not say, transformers takes 128 for Qwen3 alone.
    default = (
        128 if config["model_type"] == "qwen3" else config["hidden_size"] // config["num_attention_heads"]
    )
    return config.get("head_dim") or default


def _weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a folder by name: of ``model.safetensors``, or of the shards that the index names."""
    single, index = path / WEIGHTS, path / INDEX
    if not single.is_file() and not index.is_file():
        pickled = next((file.name for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in sorted(path.glob(kind))), None)  # fmt: skip
        if pickled:
            raise InputError(path / pickled, "holds weights as a pickle, which can run code", "*.safetensors: tensors alone")  # fmt: skip
        raise InputError(path, "is not a checkpoint folder (no model.safetensors)", "give a folder with config.json and *.safetensors")  # fmt: skip
    if not index.is_file():
        return tensor_headers(single)
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):  # fmt: skip
        raise InputError(index, "has no weight_map of tensors to files", "the index that was written with the shards")  # fmt: skip
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(index, f"names the file {name!r}", "*.safetensors beside it")
        if not (path / name).is_file():
            raise InputError(path / name, f"no such file, and {INDEX} names it", "download it again")
        tensors |= tensor_headers(path / name)
    if single.is_file() and WEIGHTS not in places.values():
        raise InputError(path, f"holds {WEIGHTS} and an index of other files", "remove those that are not the model's")  # fmt: skip
    for name, file in places.items():
        if name not in tensors or tensors[name].path.name != file:
            raise InputError(path / file, f"does not hold {name}, which {INDEX} looks for there", "the index that was written with the shards")  # fmt: skip
    return tensors


def _check_weights(path: Path, config: dict[str, Any]) -> None:
    """Raise `InputError` where the tensors are not those of the configuration."""
    held = _weights(path)
    needed = set()
    for name, shape in needed_tensors(config):
        tensor = held.get(name)
        if tensor is None:
            raise InputError(path, f"its weights do not hold {name}", "the weights of its config.json")
        if tensor.shape != shape:
            raise InputError(tensor.path, f"{name} is {list(tensor.shape)}", f"{list(shape)}, as config.json says")  # fmt: skip
        if tensor.dtype not in _FLOATS:
            raise InputError(tensor.path, f"{name} is of type {tensor.dtype}", f"one of {', '.join(_FLOATS)}: weights that are not quantised")  # fmt: skip
        needed.add(name)
    for name in sorted(held.keys() - needed - {"lm_head.weight"}):
        if not name.endswith(_NOT_NEEDED):
            raise InputError(held[name].path, f"holds {name}, which config.json does not know", "the configuration of these weights")  # fmt: skip


def needed_tensors(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every tensor of a language model, by its checked configuration; a tied head is none of its own."""
    kind, width, inner = config["model_type"], config["hidden_size"], config["intermediate_size"]
    heads, size = config["num_attention_heads"], _head_dim(config)
    keys = config.get("num_key_value_heads") or heads
    biased = (
        "qkv" if kind == "qwen2" else "qkvo" if kind != "mistral" and config.get("attention_bias") else ""
    )
    yield "model.embed_tokens.weight", (config["vocab_size"], width)
    if not config.get("tie_word_embeddings"):
        yield "lm_head.weight", (config["vocab_size"], width)
    yield "model.norm.weight", (width,)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{at}{name}.weight", (width,)
        for name, rows, columns in (
            ("q", heads * size, width), ("k", keys * size, width), ("v", keys * size, width), ("o", width, heads * size),
        ):  # fmt: skip
            yield f"{at}self_attn.{name}_proj.weight", (rows, columns)
            if name in biased:
                yield f"{at}self_attn.{name}_proj.bias", (rows,)
        for name in ("q_norm", "k_norm") if kind == "qwen3" else ():
            yield f"{at}self_attn.{name}.weight", (size,)
        for name, rows, columns in (("gate", inner, width), ("up", inner, width), ("down", width, inner)):
            yield f"{at}mlp.{name}_proj.weight", (rows, columns)
            if kind == "llama" and config.get("mlp_bias"):
                yield f"{at}mlp.{name}_proj.bias", (rows,)
