"""A model folder (a Hugging Face checkpoint) is checked here before anything of it runs.

Nothing in the folder is executed or unpickled: weights are safetensors, told by their headers, and a ``model_type`` is
one of `onerec.render.RENDERERS`, so that no Python file beside it is asked for. What loads a folder afterwards says
``trust_remote_code=False`` itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onerec.errors import InputError, reading
from onerec.files import MODEL_FILES, SID_SPEC
from onerec.render import Renderer, renderer_of
from onerec.run import read_json
from onerec.sid import SidSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Types of weights, with the bytes of a value; others are quantised.
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
# Tensors that older versions of transformers stored and no model needs, and the head where it is tied.
_NOT_NEEDED = ("lm_head.weight", "rotary_emb.inv_freq", "attn.masked_bias", "attn.bias")
_AGAIN, _WHOLE = "write it again; it may be cut short", "give a folder with config.json and *.safetensors"
_EXPAND = "expand its vocabulary again"
# Tensors of a layer with the axes of their shapes: h hidden, i inner, q heads, k key-value heads, d one head.
_LAYER = {
    "input_layernorm.weight": "h",
    "post_attention_layernorm.weight": "h",
    "mlp.gate_proj.weight": "ih",
    "mlp.up_proj.weight": "ih",
    "mlp.down_proj.weight": "hi",
    "self_attn.q_proj.weight": "qh",
    "self_attn.k_proj.weight": "kh",
    "self_attn.v_proj.weight": "kh",
    "self_attn.o_proj.weight": "hq",
}

# What a family has besides, by its model_type, and the width of a head where a configuration of it does not say.
_OWN_TENSORS = {"qwen3": {"self_attn.q_norm.weight": "d", "self_attn.k_norm.weight": "d"}}
_HEAD_DIM = {"qwen3": 128}
_DTYPES = (None, "float32", "float16", "bfloat16", "float64")


def _is_number(value: Any, least: int = 1, kinds: tuple[type, ...] = (int,)) -> bool:
    return type(value) in kinds and least <= value < 1 << 31


def _is_number_or_none(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_rate_or_none(value: Any) -> bool:
    return value is None or _is_number(value, 0, (int, float))


def _are_ids(value: Any) -> bool:
    return value is None or all(_is_number(id, 0) for id in (value if isinstance(value, list) else [value]))


def _see_all(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(kind == "full_attention" for kind in value))


# What a configuration may say: keys, which values fit, and how they are called.
_COUNT = "a whole number of 1 or more"
_RANGES = (
    ("vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads", _is_number, _COUNT),
    ("num_key_value_heads head_dim max_position_embeddings sliding_window", _is_number_or_none, _COUNT),
    ("tie_word_embeddings attention_bias", lambda v: v in (None, False, True), "true or false"),
    ("rms_norm_eps initializer_range attention_dropout rope_theta", _is_rate_or_none, "a number of 0 or more"),
    ("use_sliding_window", lambda v: v in (None, False), "false: every stage lets a token see all before it"),
    ("layer_types", _see_all, "full_attention in every layer: every stage lets a token see all before it"),
    ("quantization_config", lambda v: v is None, "weights that are not quantised"),
    ("dtype torch_dtype", lambda v: v in _DTYPES, "float32, float16 or bfloat16"),
    ("eos_token_id", _are_ids, "an id, a list of ids, or null"),
)


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
    """A whole language model's folder: SIDs with ids or None, rows of the embedding, tokens of the longest sequence."""

    path: Path
    config: dict[str, Any]
    spec: SidSpec | None
    vocab_size: int
    context: int

    @property
    def renderer(self) -> Renderer:
        """How its family writes conversations."""
        return renderer_of(self.path, self.config)


def open_model_folder(path: str | Path) -> ModelFolder:
    """A language model's folder, whole, by its headers alone.

    Every tensor that its ``config.json`` implies has its shape, the tokenizer fits the embedding, and the itemic tokens
    have the ids of ``sid_spec.json``. Raises `InputError` for anything else.
    """
    path = Path(path)
    config = read_config(path)
    _check_weights(path, config)
    tokenizer, rows = read_tokenizer(path), config["vocab_size"]
    if (last := max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)) >= rows:
        what = f"its tokenizer has the id {last}, its embedding {rows} rows"
        raise InputError(path, what, "the tokenizer of this model")
    spec = SidSpec.load(path) if (path / SID_SPEC).is_file() else None
    if spec is not None:
        if spec.first_id is None or not 0 <= spec.first_id <= spec.end_id < rows:
            raise InputError(path, f"its {SID_SPEC} has no ids inside its {rows} embedding rows", _EXPAND)
        check_itemic_tokens(path, spec, tokenizer)
    return ModelFolder(path, config, spec, rows, config.get("max_position_embeddings") or 1 << 30)


def open_encoder(path: str | Path) -> None:
    """As `open_model_folder` for a text encoder of any architecture: transformers' loader compares the shapes."""
    _open_config(Path(path))
    _weights(Path(path))


def read_config(path: str | Path) -> dict[str, Any]:
    """``config.json`` of a language model's folder; raises `InputError` where no model can have it."""
    file = Path(path) / "config.json"
    config = _open_config(Path(path))
    renderer_of(path, config)
    for keys, fits, right in _RANGES:
        for key in keys.split():
            if not fits(config.get(key)):
                raise InputError(file, f"{key} is {config.get(key)!r}"[:200], right)
    heads, width = config["num_attention_heads"], config["hidden_size"]
    shared = config.get("num_key_value_heads") or heads
    if heads % shared:
        raise InputError(file, f"num_key_value_heads is {shared}", f"a divisor of num_attention_heads {heads}")
    null = config["model_type"] in _HEAD_DIM and config.get("head_dim", 0) is None
    if null or head_dim(config) % 2 or (not config.get("head_dim") and width % heads):
        right = f"an even number; without it {heads} heads divide hidden_size {width}"
        raise InputError(file, f"head_dim is {config.get('head_dim')}", right)
    generation = Path(path) / "generation_config.json"
    if generation.is_file() and not _are_ids(ends := read_object(generation).get("eos_token_id")):
        raise InputError(generation, f"eos_token_id is {ends!r}"[:200], "an id, a list of ids, or null")
    return config


def head_dim(config: dict[str, Any]) -> int:
    """Width of an attention head; 0 where a configuration does not say."""
    heads = config.get("num_attention_heads") or 0
    own = config.get("hidden_size", 0) // heads if heads else 0
    return config.get("head_dim") or _HEAD_DIM.get(config.get("model_type"), own)


def read_tokenizer(path: str | Path) -> Tokenizer:
    """``tokenizer.json`` of a folder; raises `InputError` where there is none or it does not parse."""
    from tokenizers import Tokenizer

    file, right = Path(path) / "tokenizer.json", "give a checkpoint with a fast tokenizer"
    if not file.is_file():
        raise InputError(path, "has no tokenizer.json", right)
    read_object(file)
    with loading(file, right):
        return Tokenizer.from_file(str(file))


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object; raises `InputError` for a file that holds anything else."""
    _refuse_pointer(file)
    value = read_json(file)
    if not isinstance(value, dict):
        raise InputError(file, "is not a JSON object", "the file as transformers writes it")
    return value


def check_itemic_tokens(path: str | Path, spec: SidSpec, tokenizer: Tokenizer) -> None:
    """Raise `InputError` where the tokenizer splits an itemic token or gives it another id than ``sid_spec.json``."""
    first, last = spec.id_range
    if tokenizer.encode("".join(spec.tokens), add_special_tokens=False).ids == list(range(first, last + 1)):
        return
    ids = ((id, token, tokenizer.token_to_id(token)) for id, token in enumerate(spec.tokens, first))
    wrong = ((id, token, found) for id, token, found in ids if id != found)
    id, token, found = next(wrong, (first, spec.tokens[0], "several ids"))
    raise InputError(path, f"its tokenizer has {token} at {found}, its {SID_SPEC} at {id}", _EXPAND)


def tensor_headers(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, from its header.

    The file: eight bytes with the header's length, the header as JSON, the values. Raises `InputError` for a file that
    is none, or does not hold what its header says.
    """
    size = path.stat().st_size
    _refuse_pointer(path)
    if not size:
        raise InputError(path, "is empty", "write or download it again")
    with open(path, "rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = file.read(start - 8) if start <= min(size, 100 << 20) else b""
    try:
        entries: dict[str, Any] = json.loads(header)
        entries.pop("__metadata__", None)
        tensors = {}
        for name, entry in entries.items():
            begin, end = (start + int(at) for at in entry["data_offsets"])
            tensors[name] = Tensor(path, str(entry["dtype"]), tuple(map(int, entry["shape"])), begin, end)
    except (ValueError, OverflowError, LookupError, TypeError, AttributeError, RecursionError):
        raise InputError(path, "is not a whole safetensors file", _AGAIN) from None
    if any(not start <= tensor.begin <= tensor.end <= size for tensor in tensors.values()):
        raise InputError(path, "is shorter than its header says", _AGAIN)
    for name, tensor in tensors.items():
        width = _FLOATS.get(tensor.dtype)
        if width and math.prod(tensor.shape) * width != tensor.end - tensor.begin:
            raise InputError(path, f"its tensor {name} has bytes that are not those of its shape", _AGAIN)
    return tensors


def check_finite(path: str | Path, weights: Iterable[tuple[str, Any]]) -> None:
    """Raise `InputError` where one of the named tensors (torch's) holds a value that is no number."""
    for name, tensor in weights:
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            what = f"its weight {name} holds values that are no numbers"
            raise InputError(path, what, "the model before its training went wrong")


def loading(
    path: object, right: str = "give a checkpoint that transformers can load"
) -> contextlib.AbstractContextManager[None]:
    """Around a library that loads ``path``: whatever it raises becomes `InputError`, as by `reading`."""
    return reading(path, "cannot be loaded", right)


def _open_config(path: Path) -> dict[str, Any]:
    """``config.json`` of any model's folder, whose other JSON files are objects as well."""
    if (path / "adapter_config.json").exists():
        what = "is an adapter (adapter_config.json), not a whole model"
        raise InputError(path, what, "merge it into its base model first")
    if not (path / "config.json").is_file():
        missing = "config.json" if path.is_dir() else "such folder"
        raise InputError(path, f"is not a checkpoint folder (no {missing})", _WHOLE)
    for name in MODEL_FILES:
        if name.endswith(".json") and name != "tokenizer.json" and (path / name).is_file():
            read_object(path / name)
    return read_object(path / "config.json")


def _refuse_pointer(file: Path) -> None:
    if file.is_file():
        with open(file, "rb") as opened:
            head = opened.read(8)
        if head == b"version ":
            raise InputError(file, "is a Git LFS pointer, not the file itself", "git lfs pull")


def _weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a folder by name: of ``model.safetensors``, or of the shards that the index names."""
    single, index = path / WEIGHTS, path / INDEX
    if not single.is_file() and not index.is_file():
        for file in (file for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in path.glob(kind)):
            what = "holds weights as a pickle, which can run code"
            raise InputError(file, what, "*.safetensors: tensors alone")
        raise InputError(path, f"is not a checkpoint folder (no {WEIGHTS})", _WHOLE)
    if not index.is_file():
        return tensor_headers(single)
    places, right = read_object(index).get("weight_map"), "the index that was written with the shards"
    if not isinstance(places, dict) or not places:
        raise InputError(index, "has no weight_map of tensors to files", right)
    tensors: dict[str, Tensor] = {}
    for name in sorted({*map(str, places.values()), *([WEIGHTS] if single.is_file() else [])}):
        if Path(name).name != name or not name.endswith(".safetensors") or name not in places.values():
            raise InputError(index, f"goes with the file {name!r}", "*.safetensors beside it, and no others")
        if not (path / name).is_file():
            raise InputError(path / name, f"no such file, and {INDEX} names it", "download it again")
        tensors |= tensor_headers(path / name)
    for name, file in places.items():
        if name not in tensors or tensors[name].path.name != file:
            raise InputError(path / file, f"does not hold {name}, which {INDEX} looks for there", right)
    return tensors


def _check_weights(path: Path, config: dict[str, Any]) -> None:
    """Raise `InputError` where the tensors are not those of the configuration."""
    held = _weights(path)
    rest = set(held)
    for name, shape in needed_tensors(config):
        tensor = held.get(name)
        if tensor is None:
            raise InputError(path, f"its weights do not hold {name}", "the weights of its config.json")
        if tensor.shape != shape:
            right = f"{list(shape)}, as config.json says"
            raise InputError(tensor.path, f"{name} is {list(tensor.shape)}", right)
        if tensor.dtype not in _FLOATS:
            right = f"one of {', '.join(_FLOATS)}: weights that are not quantised"
            raise InputError(tensor.path, f"{name} is of type {tensor.dtype}", right)
        rest.remove(name)
    for name in sorted(name for name in rest if not name.endswith(_NOT_NEEDED)):
        what = f"holds {name}, which config.json does not know"
        raise InputError(held[name].path, what, "the configuration of these weights")


def needed_tensors(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every tensor of a language model, by its checked configuration; a tied head is not listed."""
    width, heads, size = config["hidden_size"], config["num_attention_heads"], head_dim(config)
    keys = config.get("num_key_value_heads") or heads
    sizes = {"h": width, "i": config["intermediate_size"], "q": heads * size, "k": keys * size, "d": size}
    layer = _LAYER | _OWN_TENSORS.get(config["model_type"], {})
    if config.get("attention_bias"):
        attention = {name: axes for name, axes in _LAYER.items() if name.startswith("self_attn.")}
        layer |= {f"{name.removesuffix('weight')}bias": axes[0] for name, axes in attention.items()}
    yield "model.embed_tokens.weight", (config["vocab_size"], width)
    yield "model.norm.weight", (width,)
    if not config.get("tie_word_embeddings"):
        yield "lm_head.weight", (config["vocab_size"], width)
    for number in range(config["num_hidden_layers"]):
        for name, axes in layer.items():
            yield f"model.layers.{number}.{name}", tuple(sizes[axis] for axis in axes)
