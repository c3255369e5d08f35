"""Download the OpenOneRec data sets from the Hugging Face hub, or any other; a stopped download goes on where it was.

    python download.py --output_dir raw_data                      # OpenOneRec-RecIF, -General-Pretrain, -General-SFT
    python download.py --datasets recif --include "*.parquet"     # one of them, some of its files

HF_ENDPOINT names a mirror, HF_TOKEN a token. Finished files are not fetched again; without network, the error says so.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from onerec.cli import cli
from onerec.errors import InputError
from onerec.flags import PROCESSES, ArgumentParser
from onerec.run import Manifest

# Name to (hub data set, folder below --output_dir): the folders are those that the other scripts read.
DATASETS = {
    "recif": ("OpenOneRec/OpenOneRec-RecIF", "onerec_data"),
    "pretrain": ("OpenOneRec/OpenOneRec-General-Pretrain", "general_text/pretrain"),
    "sft": ("OpenOneRec/OpenOneRec-General-SFT", "general_text/sft"),
}


def fetch(name: str, folder: Path, args: argparse.Namespace) -> int:
    """Download one data set into ``folder``; the number of its files that are there. Raises `InputError` offline."""
    from httpx import HTTPError  # what huggingface_hub speaks with; a connection cut in the middle comes as this
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        snapshot_download(
            name,
            repo_type="dataset",
            revision=args.revision,
            local_dir=folder,
            allow_patterns=args.include or None,
            max_workers=args.workers,
        )
    except GatedRepoError:
        raise InputError(name, "asks for consent", f"accept its terms at {endpoint} and set HF_TOKEN") from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise InputError(
            name, f"is not at {endpoint}", "the name and revision of a data set; HF_TOKEN where it is private"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.filename:
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        right = (
            f"a network that reaches {endpoint} (HF_ENDPOINT names a mirror, HF_HUB_OFFLINE=0); what is there is kept"
        )
        raise InputError(name, f"cannot be downloaded ({reason})", right) from None
    return sum(1 for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts)


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--datasets",
        nargs="+",
        default=list(DATASETS),
        help=f"{', '.join(DATASETS)}, or a hub name (into a folder of its name)",
    )
    parser.add_argument("--output_dir", type=Path, default=Path("raw_data"), help="where the folders go")
    parser.add_argument("--revision", default="main", help="branch, tag or commit")
    parser.add_argument("--include", nargs="*", default=[], help="patterns of the files wanted")
    parser.add_argument("--workers", type=PROCESSES, default=8, help="files at a time")
    args = parser.parse_args(argv)
    manifest = Manifest("download", args)
    for name in args.datasets:
        if name not in DATASETS and "/" not in name:
            raise InputError("--datasets", f"{name} is not known", f"{', '.join(DATASETS)}, or owner/name of the hub")
        repository, folder = DATASETS.get(name, (name, name.partition("/")[2]))
        files = fetch(repository, args.output_dir / folder, args)
        manifest.output(args.output_dir / folder, files)
        print(f"{repository}: {files:,} files in {args.output_dir / folder}")
    manifest.write(args.output_dir, "download.manifest.json")


if __name__ == "__main__":
    cli(main)()
