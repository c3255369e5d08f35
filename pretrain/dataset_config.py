"""The JSON dataset config: which shards, how they are read, tokenized and packed.

Paths in a config are relative to the config file; environment variables (``${NAME}``) are replaced.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from onerec.cli import words_of
from onerec.errors import InputError
from onerec.files import FILE_LIST
from onerec.flags import COUNT, COUNT_OR_0
from onerec.parquet import list_parquet
from onerec.records import read_file_list
from onerec.render import RENDERERS
from onerec.run import read_json

CONFIGS = "pretrain/examples/dataset_config/*.json"
_POSITIVE = ("max_length", "max_sample_length", "num_epochs", "local_shuffle_buffer_size")
# Keys of OpenOneRec's configs that have few values here.
_FIXED = {
    "name": ("loader", ("chat_completion_parquet",)),
    "model_class": ("model class", tuple(renderer.model_class for renderer in RENDERERS.values())),
}
_EXPECTED = {
    "sources": "a path or a list of paths",
    "itemic_id_range": "[first, last]",
    "source_weights": "an object of sources and numbers from 0 on",
}


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """Keys of the JSON config, in the original's names (OpenOneRec, ``pretrain/README.md``).

    ``sources``: a ``file_list.json``, a folder, a Parquet file or a pattern; a list of them, or one string with commas.
    ``base_model_dir``: whose tokenizer is used; empty means the model that is trained.
    ``max_length``: tokens of a packed row. ``max_sample_length``: longer samples are left out and counted, or cut and
    counted (``cut_long_samples``). ``cut_to_pad``: fill a row to the last token with the beginning of a sample.
    ``full_attention``: let the samples of a row see each other (positions run on).
    ``num_workers``: processes that tokenize. ``local_shuffle_buffer_size``: samples held to draw the next one from.
    ``itemic_id_range``: must be the checkpoint's, empty takes it from there; separates itemic from text loss.
    ``source_weights``: how often the samples of a record's ``source`` come in an epoch (2.5: twice each, half of them a
    third time; 1 where it is not named).
    """

    sources: tuple[str, ...]
    name: str = _FIXED["name"][1][0]
    base_model_dir: str | None = None
    model_class: str = _FIXED["model_class"][1][0]
    max_length: int = 32768
    max_sample_length: int | None = None
    num_epochs: int = 1
    num_workers: int = 0
    itemic_id_range: tuple[int, int] | None = None
    only_assistant_loss: bool = True
    add_think_pattern: bool = False
    cut_long_samples: bool = False
    cut_to_pad: bool = False
    full_attention: bool = False
    local_shuffle_buffer_size: int = 81920
    shuffle_seed: int | None = None
    source_weights: tuple[tuple[str, float], ...] = ()

    @property
    def sample_limit(self) -> int:
        """Longest sample that is taken, in tokens."""
        return min(self.max_length, self.max_sample_length or self.max_length)


def load_config(path: str | Path, **overrides: Any) -> DatasetConfig:
    """Read and check a dataset config; ``overrides`` (None is none) replace its keys.

    Raises `InputError` for a missing file, an unknown key, a wrong type or a value out of range.
    """
    path = Path(path)
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(path, "is not a JSON object", "give a dataset config")
    fields = {field.name: field for field in dataclasses.fields(DatasetConfig)}
    if unknown := [key for key in value if key not in fields]:
        if word := words_of(CONFIGS).get(unknown[0]):
            raise word.refusal(str(path))
        raise InputError(path, f"has the unknown key {unknown[0]}", f"known are {', '.join(fields)}")
    if "sources" not in value and not overrides.get("sources"):
        raise InputError(path, "has no key sources", "name a file_list.json, a folder or a pattern")
    given = {key: _checked(path, fields[key], item) for key, item in value.items()} | {
        key: item for key, item in overrides.items() if item is not None
    }
    config = DatasetConfig(**{key: item for key, item in given.items() if item is not None})
    for key, (what, known) in _FIXED.items():
        if getattr(config, key) not in known:
            raise InputError(path, f"names the {what} {getattr(config, key)}", f"known is {', '.join(known)}")
    return config


def _checked(path: Path, field: dataclasses.Field, value: Any) -> Any:
    """``value`` in the type of ``field``, or `InputError`; None where it is empty."""
    name = field.name
    if name == "sources":
        items = [item.strip() for item in value.split(",")] if isinstance(value, str) else value
        if isinstance(items, list) and items and all(isinstance(item, str) and item for item in items):
            return tuple(resolve(path, item) for item in items)
    elif value is None or value == "":
        return None
    elif name == "itemic_id_range":
        if isinstance(value, list) and len(value) == 2 and all(type(number) is int for number in value):
            return tuple(value)
    elif name == "source_weights":
        if isinstance(value, dict) and all(type(w) in (int, float) and 0 <= w < 1e6 for w in value.values()):
            return tuple(sorted((source, float(weight)) for source, weight in value.items()))
    elif field.type == "bool":
        if value in (0, 1):  # the original's configs write 1 for true
            return bool(value)
    elif field.type.startswith("int"):
        return (COUNT if name in _POSITIVE else COUNT_OR_0).of(value, path, name)
    elif isinstance(value, str):
        return resolve(path, value) if name == "base_model_dir" else value
    expected = _EXPECTED.get(name) or ("true or false" if field.type == "bool" else "a string")
    raise InputError(path, f"{name} is {value!r}", f"{name} is {expected}")


def resolve(config_path: Path, text: str) -> str:
    """A path of a config, relative to the config's folder, environment variables replaced."""
    return str(Path(config_path).parent / os.path.expandvars(os.path.expanduser(text)))


def list_shards(sources: tuple[str, ...]) -> list[Path]:
    """The Parquet shards that ``sources`` name, in their order; each must exist."""
    shards: list[Path] = []
    for source in map(Path, sources):
        listed = source.suffix == ".json" or (source / FILE_LIST).is_file()
        shards += read_file_list(source) if listed else list_parquet(source)
    return shards
