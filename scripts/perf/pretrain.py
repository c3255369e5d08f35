"""Speed and memory of the trainer's parts, each beside the plain way to do the same, in one run.

    python scripts/perf/pretrain.py loss      # chunked loss beside logits held at once, 4,096 tokens x 176,384
    python scripts/perf/pretrain.py steps     # trainer beside a bare loop, stage 1 beside a full step, loader alone
    python scripts/perf/pretrain.py save      # a checkpoint written beside the training, and before it goes on
    python scripts/perf/pretrain.py packing   # rows to packed tokens beside a per-sample loop

Sides take turns; seconds are medians of --repeats (--clock cpu where the processor is shared), memory is the largest
resident size of a process of its own. A GPU is used where there is one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measure import COUNT, ArgumentParser, add_clock, add_numbers, in_turns, itself, medians, spent

from onerec.cli import cli
from onerec.flags import COUNT_OR_0

ITEMS = 20_000  # of the catalogue
WORDS = ["用户", "喜欢", "户外", "美食", "视频", "推荐", "the", "sum", "of", "is", "and", "capital"]

# The loss.


def loss_once(args: argparse.Namespace, kind: str) -> Callable[[], None]:
    """Forward and backward of the loss alone: ``chunked``, ``plain``, or ``none`` (the tensors that both need)."""
    import torch
    import torch.nn.functional as F

    from pretrain.loss import linear_cross_entropy

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(0)
    hidden = torch.randn(args.tokens, args.hidden, device=device, dtype=dtype, requires_grad=True)
    head = torch.nn.Parameter(0.02 * torch.randn(args.vocabulary, args.hidden, device=device, dtype=dtype))
    labels = torch.randint(args.vocabulary, (args.tokens,), device=device)

    def chunked() -> None:
        linear_cross_entropy(hidden, labels, head, chunk=args.chunk)[0].backward()

    def plain() -> None:
        F.cross_entropy((hidden @ head.T).float(), labels, reduction="sum").backward()

    def clean(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            hidden.grad = head.grad = None
            work()

        return run

    return {"chunked": clean(chunked), "plain": clean(plain), "none": lambda: None}[kind]


def bench_loss(args: argparse.Namespace) -> None:
    """Time in one process, memory in one process a side."""
    kinds = ("chunked", "plain")
    seconds = medians(in_turns({kind: loss_once(args, kind) for kind in kinds}, args.repeats, args.clock))
    given = {name: getattr(args, name) for name in ("tokens", "hidden", "vocabulary", "chunk")}
    flags = [f"--{name}={value}" for name, value in given.items() if value is not None]
    peak = {}
    for kind in ("none", *kinds):
        found, resident = itself("memory", "--kind", kind, *flags)
        peak[kind] = found["gib"] or resident
    own = {kind: peak[kind] - peak["none"] for kind in kinds}
    chunk = args.chunk or "as train.py has"
    print(f"{args.tokens:,} tokens x {args.vocabulary:,}, hidden {args.hidden}, {chunk} positions a chunk")
    shown = "; ".join(f"{kind} {seconds[kind]:.2f} s, {own[kind]:.2f} GiB" for kind in kinds)
    print(f"{shown} (without the tensors that both need)")
    memory, time = (side["chunked"] / side["plain"] for side in (own, seconds))
    print(f"memory {memory:.3f} of the plain loss's, time {time:.2f} of its")


def memory_once(args: argparse.Namespace) -> None:
    """Run one side; on a GPU its own counter tells the peak."""
    import torch

    loss_once(args, args.kind)()
    gib = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    args.out.write_text(json.dumps({"gib": gib}))


# Rows to packed tokens, and training steps.


def make_world(folder: Path, rows: int, codes: int, model_flags: list[str], wordings: int = 0) -> None:
    """Chat records with SIDs, a tiny model whose vocabulary holds them, and a dataset config.

    ``wordings``: different texts around the SIDs, as prompts from a list have; 0: a new text in every record.
    """
    from onerec.records import chat_record, message, record_uuid, write_records
    from onerec.sid import SidSpec
    from pretrain import expand_vocab, make_tiny_qwen3

    rng = np.random.default_rng(0)
    spec = SidSpec((codes,) * 3)
    spec.save(folder)
    items = [spec.text(row) for row in rng.integers(codes, size=(ITEMS, 3)).tolist()]

    def text() -> str:
        return "".join(rng.choice(WORDS, int(rng.integers(5, 40))).tolist())

    texts = [text() for _ in range(wordings)]
    records = []
    for i in range(rows):
        # Popular items come more often.
        sids = [items[int(ITEMS * x * x)] for x in rng.random(int(rng.integers(10, 60)))]
        words = texts[int(rng.integers(wordings))] if wordings else text()
        question = message("user", f"{words}{''.join(sids[:-5])}")
        turns = [message("system", "你负责推荐。"), question, message("assistant", "".join(sids[-5:]))]
        records.append(chat_record(record_uuid("perf", i), "perf", {}, turns))
    write_records(folder / "data" / "part-0.parquet", records)
    base, model = str(folder / "base"), str(folder / "model")
    make_tiny_qwen3.main(["--corpus", str(folder / "data"), "--output_dir", base, *model_flags])
    expand_vocab.main(["--hf_model_dir", base, "--output_model_dir", model, "--sid_spec", str(folder)])
    (folder / "config.json").write_text(json.dumps({"sources": ["data"], "max_length": 2048}))


def dataset_of(folder: Path) -> Any:
    """The packed dataset of a world, as train.py makes it."""
    from onerec.model_folder import open_model_folder
    from onerec.run import Manifest
    from pretrain.dataset import PackedDataset, load_samples
    from pretrain.dataset_config import load_config

    config = load_config(folder / "config.json")
    spec = open_model_folder(folder / "model").spec
    samples = load_samples(config, folder / "config.json", folder / "model", spec, Manifest("perf", {}), 0.01)
    return PackedDataset(samples, config, 0)


def per_sample_loop(folder: Path) -> int:
    """Tokens of the same rows as one would first write it: template, tokenize and find the mask sample by sample."""
    import pyarrow.parquet as pq
    from transformers import AutoTokenizer

    from onerec.render.qwen3 import IM_END, IM_START

    tokenizer = AutoTokenizer.from_pretrained(folder / "model", trust_remote_code=False)
    start, end = (tokenizer.convert_tokens_to_ids(t) for t in (IM_START, IM_END))
    head = tokenizer("assistant\n", add_special_tokens=False)["input_ids"]
    packed, row, total = [], [], 0
    for text in pq.read_table(folder / "data" / "part-0.parquet")["messages"].to_pylist():
        turns = [(m["role"], "".join(part["text"] for part in m["content"])) for m in json.loads(text)]
        messages = [{"role": role, "content": content} for role, content in turns]
        rendered = tokenizer.apply_chat_template(messages, tokenize=False)
        ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        learn, inside = [], False
        for place, token in enumerate(ids):
            if token == start and ids[place + 1 : place + 1 + len(head)] == head:
                inside = True
            learn.append(inside)
            if token == end:
                inside = False
        if len(row) + len(ids) > 2048:
            packed.append(row)
            row = []
        row += list(zip(ids, learn, strict=True))
        total += len(ids)
    packed.append(row)
    return total


def bench_packing(args: argparse.Namespace, folder: Path) -> None:
    """Tokens a second from Parquet rows to packed rows."""
    small = ["--hidden_size", "64", "--num_hidden_layers", "2"]
    make_world(folder, args.rows, 64, small, args.wordings)
    counts = {}

    def ours() -> None:
        dataset = dataset_of(folder)
        counts["ours"] = sum(len(dataset[i]["input_ids"]) for i in range(len(dataset)))

    def plain() -> None:
        counts["plain"] = per_sample_loop(folder)

    seconds = medians(in_turns({"ours": ours, "plain": plain}, args.repeats, args.clock))
    rates = {name: counts[name] / seconds[name] for name in seconds}
    kind = f"{args.wordings} wordings" if args.wordings else "a new text in each"
    print(f"{args.rows:,} conversations, {kind}, {counts['ours']:,} tokens packed ({counts['plain']:,} in the loop)")
    times = rates["ours"] / rates["plain"]
    print(f"tokenized and packed: {rates['ours']:,.0f} tokens/s; per-sample {rates['plain']:,.0f}; {times:.1f} times")


def trainer_of(folder: Path, dataset: Any, frozen: bool, output: Path) -> Any:
    """The trainer of train.py, all steps of ``dataset``; its own summaries and checkpoints are left out."""
    from onerec.model_folder import open_model_folder
    from pretrain.options import check_args, parser
    from pretrain.sharding import Whole
    from pretrain.train import make_trainer

    given = {"model_dir": folder / "model", "output_dir": output, "dataset_config": folder / "config.json"}
    given |= {"logging_per_step": 10, "save_checkpoint_per_step": 1_000_000}
    flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    args = parser(None).parse_args([*flags, *(["--freeze_llm"] if frozen else [])])
    check_args(args)
    spec = open_model_folder(folder / "model").spec
    trainer = make_trainer(args, dataset, None, spec, spec.id_range if frozen else None, None, None, Whole())
    trainer._save_checkpoint = lambda *_: None
    return trainer


def trained(trainer: Any) -> Callable[[], None]:
    """A run of the trainer."""

    def run() -> None:
        trainer._started = trainer._clock = None
        trainer.train()

    return run


def bare_loop(trainer: Any) -> Callable[[], None]:
    """The same model, optimizer and rows in the shortest loop that PyTorch allows."""
    import torch

    from pretrain.dataset import collate
    from pretrain.masters import MasterAdamW
    from pretrain.trainer import weight_decay_groups

    device, dataset = trainer.args.device, trainer.train_dataset
    model = trainer.accelerator.unwrap_model(trainer.model)
    groups, how = weight_decay_groups(model, 0.1), {"lr": 1e-4, "fused": True}
    optimizer = MasterAdamW(groups, model.masters, **how) if model.masters else torch.optim.AdamW(groups, **how)
    learnt = [p for p in model.parameters() if p.requires_grad]

    def run() -> None:
        model.train()
        for i in range(len(dataset)):
            row = collate([dataset[i]])
            inputs = {name: value.to(device) if torch.is_tensor(value) else value for name, value in row.items()}
            inputs.pop("source")
            outputs = model(**inputs)
            (outputs["loss_sum"] / max(1, len(outputs["losses"]))).backward()
            if model.masters:
                optimizer.clip(1.0)
            else:
                torch.nn.utils.clip_grad_norm_(learnt, 1.0)
            optimizer.step()
            model.zero_grad(set_to_none=True)

    return run


def bench_steps(args: argparse.Namespace, folder: Path) -> None:
    """Full steps by the trainer and bare, stage-1 steps, and the loader alone."""
    make_world(folder, args.rows, args.codes, args.model.split())
    dataset = dataset_of(folder)
    del dataset.rows[args.steps :]
    full, frozen = (trainer_of(folder, dataset, kind, folder / f"out{int(kind)}") for kind in (False, True))
    sides = {"trainer": trained(full), "bare": bare_loop(full), "stage1": trained(frozen), "bare1": bare_loop(frozen)}
    sides["loader"] = lambda: [dataset[i] for i in range(len(dataset))]
    found = medians(in_turns(sides, args.repeats, args.clock))
    seconds = {name: value / len(dataset) for name, value in found.items()}
    tokens = sum(len(dataset[i]["input_ids"]) for i in range(len(dataset))) / len(dataset)

    def states(trainer: Any) -> int:
        return sum(value.numel() for state in trainer.optimizer.optimizer.state.values() for value in state.values())

    lm = full.accelerator.unwrap_model(full.model).lm
    print(
        f"{lm.num_parameters():,} parameters, vocabulary {lm.config.vocab_size:,}, {len(dataset)} rows of {tokens:,.0f}"
    )
    ratio = seconds["trainer"] / seconds["bare"]
    print(f"full step: trainer {seconds['trainer']:.4f} s, bare loop {seconds['bare']:.4f} s, ratio {ratio:.3f}")
    ratio, bare = seconds["stage1"] / seconds["trainer"], seconds["bare1"] / seconds["bare"]
    print(f"stage-1 step: {seconds['stage1']:.4f} s, {ratio:.2f} of the full step (bare: {bare:.2f})")
    small, large = states(frozen), states(full)
    print(f"optimizer state: {small:,} numbers in stage 1, {large:,} in full, ratio {small / large:.3f}")
    times = seconds["trainer"] / seconds["loader"]
    print(f"loader: {tokens / seconds['loader']:,.0f} tokens/s, {times:.0f} times the trainer's")


def bench_save(args: argparse.Namespace, folder: Path) -> None:
    """Seconds that training stands still for a checkpoint, and all that one costs it over the next steps."""
    make_world(folder, args.rows, args.codes, args.model.split())
    dataset = dataset_of(folder)
    del dataset.rows[args.steps :]
    trainer = trainer_of(folder, dataset, False, folder / "out")
    steps = trained(trainer)
    stands: dict[str, list[float]] = {"at once": [], "beside": []}

    def saved(how: str) -> Callable[[], None]:
        def save() -> None:
            type(trainer)._save_checkpoint(trainer, None, None)
            if how == "at once":
                trainer.saver.wait()

        def run() -> None:
            stands[how].append(spent(save))
            steps()

        return run

    sides = {"none": steps, "at once": saved("at once"), "beside": saved("beside")}
    total = medians(in_turns(sides, args.repeats))
    still = {how: statistics.median(seconds[1:]) for how, seconds in stands.items()}
    written = sum(path.stat().st_size for path in (folder / "out").glob("step*/**/*") if path.is_file())
    print(f"a checkpoint of {written / 1e6:,.0f} MB, {args.steps} steps of {total['none'] / args.steps:.3f} s")
    for how in stands:
        print(f"{how}: stands still {still[how]:.3f} s, costs {total[how] - total['none']:.3f} s over these steps")
    print(f"beside: {still['beside'] / still['at once']:.3f} of at once")


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("what", choices=["loss", "steps", "save", "packing", "memory"])
    add_numbers(
        parser,
        repeats=(3, "rounds"),
        tokens=(4096, "loss: learnt positions"),
        vocabulary=(176_384, "loss: rows of the head"),
        hidden=(256, "loss: width of the hidden states"),
        rows=(2000, "steps, save, packing: conversations"),
        steps=(20, "steps, save: of a round"),
        codes=(256, "steps, save: codes a layer"),
    )
    parser.add_argument("--chunk", type=COUNT, help="loss: positions whose logits exist at a time (train.py's)")
    wordings = "packing: texts around the SIDs; 0: a new one in every record"
    parser.add_argument("--wordings", type=COUNT_OR_0, default=50, help=wordings)
    model = "--hidden_size 512 --intermediate_size 1536 --num_hidden_layers 4"
    parser.add_argument("--model", default=model, help="steps, save: flags of make_tiny_qwen3.py")
    parser.add_argument("--kind", choices=("chunked", "plain", "none"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    add_clock(parser)
    parser.add_argument("--work_dir", type=Path, help="folder for the files; a temporary one by default")
    args = parser.parse_args()
    if args.what in ("loss", "memory"):
        (bench_loss if args.what == "loss" else memory_once)(args)
        return
    with tempfile.TemporaryDirectory(dir=args.work_dir) as folder:
        {"steps": bench_steps, "save": bench_save, "packing": bench_packing}[args.what](args, Path(folder))


if __name__ == "__main__":
    cli(main)()
