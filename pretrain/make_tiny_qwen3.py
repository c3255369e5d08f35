"""Make a tiny Qwen3 on the spot: a byte-level BPE trained on a corpus, Qwen3's special tokens, a small random model.

    python make_tiny_qwen3.py --corpus ../data/raw_data/general_text/pretrain ../data/raw_data/general_text/sft \\
        ../data/raw_data/onerec_data/pid2caption.parquet ../data/onerec_data/prompts --output_dir models/tiny

It stands for the base LLM where the real one is too large: same architecture, chat template and added tokens, so that
every later command is the same. The same corpus and seed give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from onerec.cli import cli
from onerec.errors import InputError, reading
from onerec.flags import NOT_NEGATIVE, SEED, WIDTH, ArgumentParser, integer
from onerec.folders import atomic_path, made_by
from onerec.parquet import Kind, iter_batches, list_parquet, open_parquet
from onerec.records import parse_messages, parse_segments
from onerec.render.qwen3 import END_OF_TEXT, IM_END, chat_template
from onerec.run import Manifest, get_logger, read_json, seed_everything
from onerec.startup import load_transformers

log = get_logger("make_tiny_qwen3")

SPECIAL_TOKENS = Path(__file__).with_name("qwen3_special_tokens.json")
# As Qwen's: digits one by one, words with the space before them, punctuation and line breaks apart. Chinese
# characters are split from Latin letters, so that a merge never spans the two scripts.
PATTERN = r" ?\p{Han}+| ?[\p{L}\p{M}&&[^\p{Han}]]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Flags that are Qwen3Config's own words.
SIZES = "hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim intermediate_size"
SIZES = (*SIZES.split(), "initializer_range")
CONTEXT = 4096  # longest text that the model reads
TEXT_COLUMNS = ("dense_caption", "caption", "text")
RECORD_COLUMNS = {
    "segments": parse_segments,
    "messages": lambda value: "\n".join(m["content"] for m in parse_messages(value)),
}


def main(argv: Sequence[str] | None = None) -> int | None:
    """Train the tokenizer, draw the weights, write both."""
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    text = f"Parquet (columns segments, messages, {', '.join(TEXT_COLUMNS)}), JSON or text files, folders of them"
    add("--corpus", nargs="+", required=True, help=text)
    add("--output_dir", required=True, help="folder of the checkpoint")
    add("--vocab_size", type=integer(256, 2**20), default=2048, help="byte-level BPE tokens; 26 added ones come on top")
    add("--hidden_size", type=WIDTH, default=128, help="width of the model")
    add("--num_hidden_layers", type=integer(1, 1024), default=4, help="layers")
    add("--num_attention_heads", type=WIDTH, default=4, help="query heads")
    add("--num_key_value_heads", type=WIDTH, default=2, help="key and value heads")
    add("--head_dim", type=WIDTH, default=32, help="width of a head, even")
    add("--intermediate_size", type=WIDTH, default=384, help="width of the MLP")
    add("--untied", action="store_true", help="an output head of its own, as Qwen3 from 8B on")
    add("--initializer_range", type=NOT_NEGATIVE, default=0.02, help="deviation of the random weights")
    add("--seed", type=SEED, default=0, help="seed of the random weights")
    args = parser.parse_args(argv)
    if args.num_attention_heads % args.num_key_value_heads:
        right = f"it divides the {args.num_attention_heads} query heads"
        raise InputError("--num_key_value_heads", f"is {args.num_key_value_heads}", right)
    manifest = Manifest("make_tiny_qwen3", args)
    with atomic_path(args.output_dir, made_by(args.output_dir, manifest.stage)) as folder:
        tokenizer = train_bpe(corpus_texts(args.corpus, manifest), args.vocab_size)
        vocabulary = save_tokenizer(tokenizer, folder)
        parameters = save_model(args, vocabulary, folder)
        manifest.output(args.output_dir)
        manifest.extra |= {"vocabulary": vocabulary, "parameters": parameters}
        manifest.write(folder, whole_folder=True)
    log.info(f"wrote {args.output_dir}: {vocabulary:,} tokens, {parameters:,} parameters")
    return None


def corpus_texts(sources: Sequence[str], manifest: Manifest) -> Iterator[str]:
    """Every text of the corpus, in a fixed order."""
    for source in sources:
        path = Path(source)
        if path.suffix == ".txt" and path.is_file():
            manifest.input(path)
            with reading(path, "is not text of UTF-8"):
                lines = path.read_text(encoding="utf-8").splitlines()
            yield from lines
        elif path.suffix == ".json" or (path.is_dir() and not any(path.glob("*.parquet"))):
            files = [path] if path.is_file() else sorted(path.rglob("*.json"))
            if not files:
                raise InputError(path, "holds neither Parquet nor JSON files", "give texts to train the tokenizer on")
            for file in files:
                manifest.input(file)
                yield from _strings(read_json(file))
        else:
            for file in list_parquet(source):
                yield from _parquet_texts(file, manifest)


def _parquet_texts(file: Path, manifest: Manifest) -> Iterator[str]:
    names = [n for n in open_parquet(file).schema_arrow.names if n in RECORD_COLUMNS or n in TEXT_COLUMNS]
    if not names:
        wanted = ", ".join((*RECORD_COLUMNS, *TEXT_COLUMNS))
        raise InputError(file, "has no column of text", f"one of {wanted} is read")
    rows = 0
    kinds = {name: Kind.JSON if name in RECORD_COLUMNS else Kind.TEXT for name in names}
    for batch in iter_batches(file, kinds):
        rows += batch.num_rows
        for row in batch.to_pylist():
            for name in names:
                if row[name] is not None:
                    with reading(file, f"has a row whose {name} cannot be read"):
                        text = RECORD_COLUMNS.get(name, str)(row[name])
                    yield text
    manifest.input(file, rows)


def _strings(value: Any) -> Iterator[str]:
    """Every string of a JSON value, keys left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def train_bpe(texts: Iterable[str], vocab_size: int) -> Any:
    """A `tokenizers.Tokenizer`: byte-level BPE of ``vocab_size`` tokens, then Qwen3's added tokens in their order."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors, trainers
    from tokenizers import pre_tokenizers as splits

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = splits.Split(Regex(PATTERN), behavior="isolated")
    tokenizer.pre_tokenizer = splits.Sequence([words, splits.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = sorted(splits.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    added = json.loads(SPECIAL_TOKENS.read_text(encoding="utf-8"))
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in added["special"]])
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in added["plain"]])
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: Path) -> int:
    """Write the tokenizer with its chat template; returns its number of tokens."""
    fast = load_transformers().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = chat_template()
    fast.save_pretrained(folder)
    return len(fast)


def save_model(args: argparse.Namespace, vocabulary: int, folder: Path) -> int:
    """Write a random Qwen3 of the size that ``args`` names; returns its number of parameters."""
    from tokenizers import Tokenizer
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    from pretrain.model import quiet

    quiet()
    id_of = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id
    seed_everything(args.seed)
    config = Qwen3Config(
        vocab_size=-(-vocabulary // 128) * 128,  # like the real one, more rows than tokens
        **{name: getattr(args, name) for name in SIZES},
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=not args.untied,
        bos_token_id=id_of(END_OF_TEXT),
        eos_token_id=id_of(IM_END),
        pad_token_id=id_of(END_OF_TEXT),
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=[id_of(IM_END), id_of(END_OF_TEXT)],
        pad_token_id=config.pad_token_id,
    )
    model.save_pretrained(folder)
    return model.num_parameters()


if __name__ == "__main__":
    cli(main)()
