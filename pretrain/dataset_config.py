"""The JSON dataset config: which shards, how they are read, tokenized and packed. Every key does something.

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
LOADER = "chat_completion_parquet"
MODEL_CLASSES = tuple(renderer.model_class for renderer in RENDERERS.values())


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """Keys of the JSON config, in the original's names (OpenOneRec, ``pretrain/README.md``).

    ``sources``: a ``file_list.json``, a folder, a Parquet file or a pattern; a list of them, or one string with commas.
    ``base_model_dir``: whose tokenizer is used; empty means the model that is trained.
    ``max_length``: tokens of a packed row. ``max_sample_length``: longer samples are left out and counted, or, with
    ``cut_long_samples``, cut to it and counted.
    ``cut_to_pad``: true fills a row to the last token with the beginning of a sample that does not fit whole, false
    starts a new row with it. ``full_attention``: true lets the samples of a row see each other (positions run on).
    ``num_workers``: processes that tokenize. ``local_shuffle_buffer_size``: samples held to draw the next one from.
    ``source_weights``: how often a source's samples come in an epoch, by the records' ``source`` (1 where it is not named; 0 never, 2.5
    twice each and half of them a third time). ``itemic_id_range``: must be the checkpoint's, empty takes it from there; separates itemic from text loss.
    """

    sources: tuple[str, ...]
    name: str = LOADER
    base_model_dir: str | None = None
    model_class: str = MODEL_CLASSES[0]
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


_POSITIVE = ("max_length", "max_sample_length", "num_epochs", "local_shuffle_buffer_size")


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
        words = words_of(CONFIGS)
        if unknown[0] in words:
            raise words[unknown[0]].refusal(str(path))
        raise InputError(path, f"has the unknown key {unknown[0]}", f"known are {', '.join(fields)}")
    if "sources" not in value and not overrides.get("sources"):
        raise InputError(path, "has no key sources", "name a file_list.json, a folder or a pattern")
    given = {key: _checked(path, fields[key], item) for key, item in value.items()}
    given = {key: item for key, item in given.items() if item is not None}
    given |= {key: item for key, item in overrides.items() if item is not None}
    config = DatasetConfig(**given)
    if config.name != LOADER:
        raise InputError(path, f"names the loader {config.name}", f"there is {LOADER}")
    if config.model_class not in MODEL_CLASSES:
        raise InputError(path, f"names the model class {config.model_class}", f"known are {', '.join(MODEL_CLASSES)}")
    return config


def _checked(path: Path, field: dataclasses.Field, value: Any) -> Any:
    """``value`` in the type of ``field``, or `InputError`."""
    wrong = InputError(path, f"{field.name} is {value!r}", f"{field.name} is {_expected(field)}")
    if field.name == "sources":
        items = [item.strip() for item in value.split(",")] if isinstance(value, str) else value
        if not isinstance(items, list) or not items or not all(isinstance(i, str) and i for i in items):
            raise wrong
        return tuple(resolve(path, item) for item in items)
    if value is None or value == "":
        return None
    if field.name == "itemic_id_range":
        if not (isinstance(value, list) and len(value) == 2 and all(type(i) is int for i in value)):
            raise wrong
        return tuple(value)
    if field.name == "source_weights":
        numbers = isinstance(value, dict) and all(type(w) in (int, float) and 0 <= w < 1e6 for w in value.values())
        if not numbers:
            raise wrong
        return tuple(sorted((name, float(weight)) for name, weight in value.items()))
    if field.type == "bool":
        if value not in (0, 1):  # the original's configs write 1 for true
            raise wrong
        return bool(value)
    if field.type.startswith("int"):
        return (COUNT if field.name in _POSITIVE else COUNT_OR_0).of(value, path, field.name)
    if not isinstance(value, str):
        raise wrong
    return resolve(path, value) if field.name == "base_model_dir" else value


def _expected(field: dataclasses.Field) -> str:
    if field.name == "sources":
        return "a path or a list of paths"
    if field.name == "itemic_id_range":
        return "[first, last]"
    if field.name == "source_weights":
        return "an object of sources and numbers from 0 on"
    return "true or false" if field.type == "bool" else "a string"


def resolve(config_path: Path, text: str) -> str:
    """A path of a config, relative to the config's folder, environment variables replaced."""
    return str(Path(config_path).parent / os.path.expandvars(os.path.expanduser(text)))


def list_shards(sources: tuple[str, ...]) -> list[Path]:
    """The Parquet shards that ``sources`` name, in their order; each must exist."""
    shards: list[Path] = []
    for source in sources:
        path = Path(source)
        if path.suffix == ".json" or (path / FILE_LIST).is_file():
            shards += read_file_list(path)
        else:
            shards += list_parquet(path)
    return shards
