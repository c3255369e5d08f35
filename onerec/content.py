"""What a thing was made of, told by its content: the same bytes are the same thing, whatever their path or time.

Everything is read. Samples would be faster, but the rows that training changes may lie anywhere in a file of many
gigabytes, and a run that goes on with another model's results would not be noticed. SHA-256 runs at 1.5 GB/s a core of
an EPYC, in as many threads as there are cores for this process: as fast as most disks read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from onerec.errors import InputError
from onerec.files import MODEL_FILES
from onerec.model_folder import tensor_headers
from onerec.run import progress, read_json, write_json

_BLOCK = 4 << 20
_MADE_FROM = "made_from.json"


@dataclasses.dataclass(frozen=True)
class _Part:
    """A stretch of a file that is digested as one: the file itself, or a tensor in it."""

    name: str
    path: Path
    begin: int
    end: int

    def blocks(self) -> Iterator[tuple[Path, int, int]]:
        for offset in range(self.begin, self.end, _BLOCK):
            yield self.path, offset, min(_BLOCK, self.end - offset)


def files_digests(paths: Sequence[str | os.PathLike[str]], label: str = "compare files") -> list[str]:
    """32 hexadecimal digits for the content of each file; its name does not count.

    Takes all cores: of the processes of a run, one a node is to ask. Raises `InputError` for a file that is not there.
    ``label`` names the progress line of what takes long.
    """
    return _digests([_whole(Path(path), "") for path in paths], label)


def files_digest(paths: Sequence[str | os.PathLike[str]]) -> str:
    """One digest for the contents of ``paths``, in their order."""
    return _joined(files_digests(paths))


def model_digest(model_dir: str | os.PathLike[str]) -> str:
    """What tells one Hugging Face checkpoint from another: its configuration, tokenizer, SIDs and every tensor.

    A tensor counts by name, type, shape and values, so that a model cut into other shards is the same model. What else
    lies in the folder (a manifest with its seconds, a model card, a training's state) does not count.
    """
    folder = Path(model_dir)
    parts = [_whole(folder / name, name) for name in MODEL_FILES if (folder / name).is_file()]
    parts += [_whole(path, path.name) for path in folder.glob("*.bin")]
    for path in folder.glob("*.safetensors"):
        for name, tensor in tensor_headers(path).items():
            named = f"{name} {tensor.dtype} {list(tensor.shape)}"
            parts.append(_Part(named, path, tensor.begin, tensor.end))
    # The processes of a node that train share its cores, and each asks this for itself.
    sharers = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    named = zip((part.name for part in parts), _digests(parts, "compare models", sharers), strict=True)
    return _joined(f"{name} {digest}" for name, digest in sorted(named))


def check_made_from(folder: str | os.PathLike[str], sources: dict[str, str], right: str, anew: bool = False) -> None:
    """Note in ``folder`` what its results are made from (a name and a digest each), for the next run there.

    Raises `InputError`, which ends in ``right``, where the folder's results are made from something else, unless they
    are made ``anew``. A folder without such a note is taken as new.
    """
    path = Path(folder) / _MADE_FROM
    before = read_json(path) if path.is_file() and not anew else sources
    changed = sorted(name for name in before.keys() | sources.keys() if before.get(name) != sources.get(name))
    if changed:
        raise InputError(folder, f"holds results that were made from another {changed[0]}", right)
    if anew or not path.is_file():
        write_json(path, sources)


def _whole(path: Path, name: str) -> _Part:
    try:
        return _Part(name, path, 0, path.stat().st_size)
    except FileNotFoundError:
        raise InputError(path, "no such file", "check the path") from None


def _digests(parts: Sequence[_Part], label: str, sharers: int = 1) -> list[str]:
    """A digest of each part: of its length and of its blocks' digests."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ThreadPoolExecutor(min(16, max(1, cores // sharers)))
    blocks = sum(-(-(part.end - part.begin) // _BLOCK) for part in parts)
    try:
        done = pool.map(_block_digest, (block for part in parts for block in part.blocks()))
        done = progress(done, label, blocks * (_BLOCK >> 20), "MiB", lambda _: _BLOCK >> 20)
        found = []
        for part in parts:
            digest = hashlib.sha256(f"{part.end - part.begin};".encode())
            for _ in part.blocks():
                digest.update(next(done))
            found.append(digest.hexdigest()[:32])
        return found
    finally:
        pool.shutdown(cancel_futures=True)


def _block_digest(block: tuple[Path, int, int]) -> bytes:
    path, offset, length = block
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        return hashlib.sha256(file.read(length)).digest()


def _joined(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:32]
