"""Give a Qwen3 checkpoint the itemic tokens of a catalogue's SIDs.

    python expand_vocab.py --hf_model_dir models/Qwen3-1.7B --output_model_dir models/Qwen3-1.7B_itemic \\
        --itemic_layer_n 3 --vocab_size_per_layer 8192
    python expand_vocab.py --hf_model_dir models/base --output_model_dir models/base_itemic \\
        --sid_spec ../tokenizer/model

The new tokens follow the old ones in the order of `onerec.sid.SidSpec.tokens`; embedding and head get rows up to the
next multiple of 256. Old rows, chat template and generation settings stay as they are; ``sid_spec.json`` in the new
checkpoint says which ids are whose.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from onerec.cli import cli
from onerec.errors import InputError
from onerec.files import SID_SPEC
from onerec.flags import CODES, LAYERS, SEED, ArgumentParser
from onerec.folders import atomic_path, check_output, made_by
from onerec.model_folder import check_finite, check_itemic_tokens, loading, open_model_folder, read_tokenizer
from onerec.run import Manifest, get_logger, seed_everything
from onerec.sid import SidSpec

if TYPE_CHECKING:
    import torch

log = get_logger("expand_vocab")
ALIGN = 256


def main(argv: Sequence[str] | None = None) -> int | None:
    """Expand tokenizer, embedding and head, check every new token, write the checkpoint."""
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--hf_model_dir", required=True, help="Hugging Face checkpoint to expand")
    add("--output_model_dir", required=True, help="folder of the expanded checkpoint")
    add("--sid_spec", help="sid_spec.json of the item tokenizer (or its folder): layers and codebook sizes")
    add("--itemic_layer_n", type=LAYERS, default=3, help="codebook layers, where no --sid_spec is given")
    add("--vocab_size_per_layer", type=CODES, default=8192, help="codes of a layer, where no --sid_spec is given")
    rows = "new rows: about the old rows' mean at their scale, normal, or the code's centroid randomly projected"
    add("--init", choices=("mean", "normal", "codebook"), default="mean", help=rows)
    add("--codebook", type=Path, help="--init codebook: model.pt of the item tokenizer, or its folder")
    add("--seed", type=SEED, default=0, help="seed of the noise")
    args = parser.parse_args(argv)
    source, output = Path(args.hf_model_dir), Path(args.output_model_dir)
    spec = wanted_spec(args)
    renderer = open_model_folder(source).renderer
    if source.resolve() == output.resolve():
        raise InputError(output, "is the folder of the old checkpoint", "write the new one beside it")
    refuse_twice(source, spec)
    codebooks = read_codebooks(args, spec)
    manifest = Manifest("expand_vocab", args)
    ours = made_by(output, manifest.stage)
    check_output(output, ours)
    manifest.input(source)

    from pretrain.model import load_lm, load_tokenizer

    seed_everything(args.seed)
    tokenizer, model = load_tokenizer(source), load_lm(source, dtype="auto")
    spec = SidSpec(spec.codebook_sizes, len(tokenizer), spec.collision)
    if (added := add_tokens(tokenizer, spec)) != len(spec.tokens):
        what = f"took only {added} of {len(spec.tokens)} itemic tokens as new"
        raise InputError(source, what, "give a checkpoint without them")
    expand_rows(model, spec, args.init, codebooks)
    # What is trained from here on answers in turns: a base model's own generation would run past their end.
    model.generation_config.eos_token_id = renderer.end_ids(source, tokenizer)
    (first, last), rows = spec.id_range, model.config.vocab_size
    with atomic_path(output, ours) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        spec.save(folder)
        check_itemic_tokens(folder, spec, read_tokenizer(folder))
        manifest.output(output)
        manifest.extra |= {"first_id": first, "last_id": last, "rows": rows}
        manifest.write(folder, whole_folder=True)
    codes = " + ".join(map(str, spec.codebook_sizes))
    log.info(f"wrote {output}: itemic ids {first} to {last} ({codes} codes, begin and end), {rows:,} rows")
    return None


def wanted_spec(args: argparse.Namespace) -> SidSpec:
    """Layers and codebook sizes that the command line names."""
    if args.sid_spec:
        return SidSpec.load(args.sid_spec)
    return SidSpec((args.vocab_size_per_layer,) * args.itemic_layer_n)


def refuse_twice(source: Path, spec: SidSpec) -> None:
    """Raise `InputError` where a checkpoint already holds itemic tokens."""
    if (source / SID_SPEC).exists() or read_tokenizer(source).token_to_id(spec.tokens[0]) is not None:
        what = "was expanded before: its vocabulary holds itemic tokens"
        raise InputError(source, what, "expand the original checkpoint")


def add_tokens(tokenizer: Any, spec: SidSpec) -> int:
    """Append the itemic tokens; returns how many of them were new."""
    from tokenizers import AddedToken

    return tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in spec.tokens])


def expand_rows(model: Any, spec: SidSpec, init: str, codebooks: Sequence[torch.Tensor] = ()) -> None:
    """Grow embedding and head to a multiple of 256 rows that holds every itemic id, and initialise the new rows.

    Rows before the first itemic id keep their bits. Padding rows behind the last one are the mean of the old rows, so
    that their logits are middling and an id without a token is not generated before training has pushed them down.
    """
    import torch

    first, last = spec.id_range
    rows = -(-max(last + 1, model.config.vocab_size) // ALIGN) * ALIGN
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    tied = head is embedding
    old = [weight.detach()[:first].clone() for weight in ((embedding,) if tied else (embedding, head))]
    model.resize_token_embeddings(rows, mean_resizing=False)
    new = [model.get_input_embeddings().weight, model.get_output_embeddings().weight][: len(old)]
    with torch.no_grad():
        for before, weight in zip(old, new, strict=True):
            weight[:first] = before
            weight[first : last + 1] = new_rows(before, last + 1 - first, init, model.config.initializer_range)
            for (start, end), book in zip(spec.layer_ranges, codebooks, strict=False):
                weight[start : end + 1] = projected_rows(before, book)
            weight[last + 1 :] = before.float().mean(0)


def new_rows(old: torch.Tensor, count: int, init: str, initializer_range: float) -> torch.Tensor:
    """``count`` rows [count, H] in the dtype of ``old``.

    ``normal``: noise around zero. Else the mean of the old rows plus noise of their standard deviation in every
    dimension.
    """
    import torch

    values, noise = old.float(), torch.randn(count, old.shape[1])
    if init == "normal":
        return (noise * initializer_range).to(old.dtype)
    return (values.mean(0) + noise * values.std(0)).to(old.dtype)


def projected_rows(old: torch.Tensor, book: torch.Tensor) -> torch.Tensor:
    """A layer's rows [k, H] from its centroids ``book`` [k, d], so that near codes begin near.

    One random projection keeps the order of distances, about (Johnson and Lindenstrauss); every dimension is then moved
    and scaled to the mean and standard deviation of the ``old`` rows [n, H].
    """
    import torch

    values, centred = old.float(), book.float() - book.float().mean(0)
    projected = centred @ torch.randn(book.shape[1], old.shape[1])
    scale = projected.square().mean().sqrt().clamp(min=1e-12)
    return (values.mean(0) + projected / scale * values.std(0)).to(old.dtype)


def read_codebooks(args: argparse.Namespace, spec: SidSpec) -> list[torch.Tensor]:
    """The tokenizer's codebooks [k, d], layer by layer; none without ``--init codebook``.

    A layer that the tokenizer does not have (the one that resolves collisions) begins like ``mean``. Raises
    `InputError` where the file holds no codebooks, or others than ``spec``'s.
    """
    if (args.init == "codebook") != (args.codebook is not None):
        raise InputError("--codebook", "goes with --init codebook, and that with it", "give both or none")
    if args.codebook is None:
        return []
    import torch

    path = args.codebook / "model.pt" if args.codebook.is_dir() else args.codebook
    if not path.is_file():
        raise InputError(path, "no such file", "the model.pt of train_res_kmeans.py")
    with loading(path, "the model.pt of train_res_kmeans.py"):
        value = torch.load(path, map_location="cpu", weights_only=True)
        state = value.get("state_dict", value)
        books = list(state["centroids"]) if "centroids" in state else []
        for name in ("centroids", "codebooks"):
            while f"{name}.{len(books)}" in state:
                books.append(state[f"{name}.{len(books)}"])
        sizes = tuple(len(book) for book in books)
        if any(book.ndim != 2 or not book.is_floating_point() for book in books):
            raise ValueError("its codebooks are no tables of numbers")
    check_finite(path, [(f"codebook {layer}", book) for layer, book in enumerate(books)])
    if not books or sizes != spec.codebook_sizes[: len(sizes)]:
        raise InputError(path, f"has codebooks {sizes}", f"those of the specification: {spec.codebook_sizes}")
    return books


if __name__ == "__main__":
    cli(main)()
