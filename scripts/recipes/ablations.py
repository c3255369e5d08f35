"""Run a recipe with one thing changed at a time and put what comes out into tables; ablations.sh calls this.

    python scripts/recipes/ablations.py --recipe amazon_beauty --folder data/beauty_sids --output_dir runs/ablations

A variant of ablations.json is a whole run of the recipe's chain (one seed), or another evaluation of a run's model (the
unchanged run's where it names no other), which is made first. Finished runs are not repeated; --jobs makes several at a
time, each on OMP_NUM_THREADS threads. The tables, ablations.md and ablations.json in --output_dir, are written anew
after every variant. A variant that failed is named with its log, and the others go on.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this clone before what is installed
from benchmarks.results import load_predictions
from benchmarks.seeds import measure
from onerec.cli import cli
from onerec.errors import InputError
from onerec.flags import PROCESSES, SEED, ArgumentParser
from onerec.run import get_logger, read_json, write_json, write_text

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RECIPES = ("amazon_beauty", "movielens100k")  # each with a profile of its name
BASE = "base"
RL = "RL"  # among the settings of a variant: 1 for a chain with distillation and GRPO
# What a run's first three stages make, and the models with the number of the stage that makes them.
DATA = ("raw_data", "toy_raw_data", "tokenizer", "output", "validation")
MODELS = [
    ("04", "tiny"),
    ("04", "base"),
    ("05", "base_itemic"),
    ("06", "stage1"),
    ("07", "stage2"),
    ("08", "sft"),
]
ONCE = ["evaluate.ALSO_EXCLUDE_SEEN=0", "evaluate.PRIOR=0"]  # the tables are of one protocol, and of the model alone
METRICS = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")
log = get_logger("ablations")


def slug_of(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "_", name.lower()).strip("_")


@dataclasses.dataclass(frozen=True)
class Variant:
    """What is changed: settings of the chain, or flags of the evaluation."""

    name: str
    settings: dict[str, str] = dataclasses.field(default_factory=dict)
    flags: tuple[str, ...] = ()
    after: str | None = None  # the last stage that the base's run has made for it
    of: str = BASE  # with flags: the variant whose model is evaluated

    @property
    def slug(self) -> str:
        return slug_of(self.name)


def read_tables(path: Path) -> dict[str, list[Variant]]:
    """Table to its variants; raises `InputError` where the file is not of that shape."""
    wanted = '{"tables": [{"name", "variants": [{"name", "set": {…}, "after"} or {"name", "evaluate": […], "of"}]}]}'
    tables: dict[str, list[Variant]] = {}
    try:
        for table in read_json(path)["tables"]:
            tables[table["name"]] = [
                Variant(
                    v["name"], dict(v.get("set", {})), tuple(v.get("evaluate", ())), v.get("after"), v.get("of", BASE)
                )
                for v in table["variants"]
            ]
    except (KeyError, TypeError) as error:
        raise InputError(path, f"is no list of ablations ({error!r})", wanted) from None
    slugs = [BASE, *(variant.slug for variants in tables.values() for variant in variants)]
    if doubles := [slug for slug in slugs if slugs.count(slug) > 1]:
        raise InputError(path, f"has two variants whose folder would be {doubles[0]}", "names of their own")
    chains = {BASE, *(v.name for variants in tables.values() for v in variants if v.settings)}
    if foreign := [v.of for variants in tables.values() for v in variants if v.of not in chains]:
        raise InputError(path, f"evaluates {foreign[0]}", f"a variant with settings: {', '.join(sorted(chains))}")
    return tables


def in_order(variants: Sequence[Variant], tables: dict[str, list[Variant]]) -> list[Variant]:
    """``variants``, each once, an evaluation behind the run that it asks for."""
    chains = {variant.name: variant for group in tables.values() for variant in group}
    ordered: dict[str, Variant] = {}
    for variant in variants:
        if variant.of != BASE:
            ordered.setdefault(variant.of, chains[variant.of])
        ordered.setdefault(variant.name, variant)
    return list(ordered.values())


def profile_settings(profile: str, more: Sequence[str] = ()) -> dict[str, str]:
    """Every setting of a profile, ``<stage>.<NAME>`` to its value; ``more``: those that --set changes."""
    command = [sys.executable, "scripts/settings.py", "list", profile]
    env = os.environ | {"ONEREC_CODE": str(ROOT), "ONEREC_SETTINGS": "\n".join(more)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        raise InputError(*re.split("[:;] ", done.stderr.removeprefix("error: ").strip(), maxsplit=2))
    return dict(word.split("=", 1) for word in shlex.split(done.stdout))


def resolved(settings: dict[str, str], profile: dict[str, str]) -> dict[str, str]:
    """``settings`` with every ``=NAME`` or ``=NAME+NAME`` replaced by what the profile says."""
    found = {}
    for name, value in settings.items():
        if value.startswith("="):
            terms = value[1:].split("+")
            if missing := [term for term in terms if term not in profile]:
                raise InputError("ablations.json", f"{name} names {missing[0]}", "a setting of the profile")
            value = profile[terms[0]] if len(terms) == 1 else str(sum(int(profile[term]) for term in terms))
        found[name] = value
    return found


class Runner:
    """Where the runs are, and how one is made."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.settings = profile_settings(args.recipe, args.set)
        self.measured: dict[str, dict[str, Any]] = {}  # by slug; reading a run's predictions takes seconds

    def run_dir(self, slug: str) -> Path:
        """The run of a variant with settings."""
        return self.args.output_dir.resolve() / slug / f"seed{self.args.seed}"

    def chain(self, variant: Variant) -> tuple[list[str], dict[str, str]]:
        """Command and environment of a chain: only the last model is evaluated, and the cheapest baseline."""
        changed = resolved(variant.settings, self.settings)
        sets = ["evaluate.EVAL_STAGES=sft", "evaluate.BASELINES=popularity", *ONCE, *self.args.set]
        sets += [f"{name}={value}" for name, value in changed.items() if name != RL]
        command = ["bash", f"scripts/recipes/{self.args.recipe}.sh", str(self.args.folder.resolve())]
        own = {"SEEDS": str(self.args.seed), "RUNS": str(self.run_dir(variant.slug).parent)}
        return command + [word for line in sets for word in ("--set", line)], os.environ | own | {
            RL: changed.get(RL, "0")
        }

    def result(self, variant: Variant) -> dict[str, Any] | None:
        """What a variant reached on test and validation; None where it has not been run."""
        if variant.slug in self.measured:
            return self.measured[variant.slug]
        run = self.run_dir(slug_of(variant.of) if variant.flags else variant.slug)
        results = run / "benchmarks" / "results" / "v1.0"
        last = "rl" if variant.settings.get(RL) == "1" else "sft"
        folder = results / (f"results_{variant.slug}" if variant.flags else f"results_{last}")
        if not (folder / "metrics.json").is_file() or not (lines := load_predictions(folder, "video")):
            return None
        values, users = measure(lines), len(lines)
        choice = run / "models" / "sft" / "choice.json"
        chosen = read_json(choice) if choice.is_file() and not variant.flags and last == "sft" else None
        best = next((p["ndcg@10"] for p in chosen["curve"] if p["step"] == chosen["best"]), None) if chosen else None
        row = {"name": variant.name, "users": users, "validation_ndcg@10": best} | values
        return self.measured.setdefault(variant.slug, row)

    def begin(self, variant: Variant) -> None:
        """Copy what the base's run has made up to the stage ``variant.after``, unless the variant has begun.

        Raises `InputError` where the base's run has no such stage.
        """
        base, run = self.run_dir(BASE), self.run_dir(variant.slug)
        if (run / ".done").exists():
            return
        done = sorted(path.name for path in (base / ".done").glob("*") if path.name != "settings")
        if variant.after not in done:
            what = f"{variant.name} goes on after {variant.after}"
            raise InputError(self.args.list, what, f"a stage of {base}: {', '.join(done)}")
        models = [f"models/{name}" for stage, name in MODELS if stage <= variant.after[:2]]
        for name in [*DATA, *models]:
            if (base / name).exists():
                shutil.copytree(base / name, run / name, dirs_exist_ok=True)
        # Last, for a variant without it has not begun.
        (run / ".done").mkdir(parents=True)
        for name in done[: done.index(variant.after) + 1]:
            shutil.copy(base / ".done" / name, run / ".done" / name)

    def make(self, variant: Variant) -> bool:
        """Run a variant to its end; False where it failed, with its log named."""
        path = self.args.output_dir / f"{variant.slug}.log"
        if variant.flags:
            command = ["bash", "scripts/11_evaluate.sh", "sft", *variant.flags, "--result_name", variant.slug]
            own = {"PROFILE": self.args.recipe, "RUN_DIR": str(self.run_dir(slug_of(variant.of)))}
            env = os.environ | own | {"ONEREC_SETTINGS": "\n".join([*ONCE, *self.args.set])}
        else:
            command, env = self.chain(variant)
            if variant.after:
                self.begin(variant)
        path.parent.mkdir(parents=True, exist_ok=True)
        changed = " ".join([*(f"{name}={value}" for name, value in variant.settings.items()), *variant.flags])
        log.info(f"{variant.name}: {changed} (log: {path})")
        with path.open("wb") as file:
            done = subprocess.run(command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT)
        if done.returncode in (75, 129, 130, 143) or done.returncode < 0:
            raise KeyboardInterrupt
        return done.returncode == 0


def markdown(name: str, rows: Sequence[dict[str, Any]]) -> str:
    """A table: what was changed, and what it reached."""
    head = [name, "validation ndcg@10", *METRICS, "users"]
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for row in rows:
        best = row["validation_ndcg@10"]
        cells = ["–" if best is None else f"{best:.4f}", *(f"{row[metric]:.4f}" for metric in METRICS)]
        lines.append(" | ".join([row["name"], *cells, f"{row['users']:,}"]))
    return "".join(f"| {line} |\n" for line in lines)


def write_tables(runner: Runner, tables: dict[str, list[Variant]]) -> str:
    """Write what has been measured so far; returns the Markdown."""
    base, texts, values = runner.result(Variant(BASE)), [], {}
    for name, variants in tables.items():
        rows = [row for row in map(runner.result, variants) if row is not None]
        if rows and base is not None:
            rows = [base, *rows]
        if rows:
            values[name] = rows
            texts.append(markdown(name, rows))
    text = "\n".join(texts)
    write_text(runner.args.output_dir / "ablations.md", text)
    result = {"recipe": runner.args.recipe, "seed": runner.args.seed, "tables": values}
    write_json(runner.args.output_dir / "ablations.json", result)
    return text


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--recipe", choices=RECIPES, required=True, help="which chain")
    add("--folder", type=Path, required=True, help="its data folder")
    add("--output_dir", type=Path, required=True, help="folder of the runs and the tables")
    add("--list", type=Path, default=HERE / "ablations.json", help="JSON file of the variants")
    add("--tables", nargs="+", help="only these tables (default: all)")
    add("--set", nargs="+", action="extend", default=[], metavar="SETTING", help="of every run, as sft.DROPOUT=0.2")
    add("--seed", type=SEED, default=0, help="seed of every run")
    add("--jobs", type=PROCESSES, default=1, help="runs at a time; the base's comes first, on its own")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    tables = read_tables(args.list)
    for name in args.tables or []:
        if name not in tables:
            raise InputError(args.list, f"has no table {name}", f"it has {', '.join(tables)}")
    chosen = {name: tables[name] for name in args.tables or tables}
    args.output_dir.mkdir(parents=True, exist_ok=True)
    runner, failed = Runner(args), []
    todo, runs = in_order([variant for variants in chosen.values() for variant in variants], tables), {}

    def measured(variant: Variant) -> bool:
        if variant.of in runs:  # begun before, so no run waits for one that is queued behind it
            runs[variant.of].result()
        return runner.result(variant) is not None or runner.make(variant)

    if not measured(Variant(BASE)):
        failed, todo = [Variant(BASE)], []
    write_tables(runner, tables)
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        for variant in todo:
            runs[variant.name] = pool.submit(measured, variant)
        variants = {run: variant for variant, run in zip(todo, runs.values(), strict=True)}
        try:
            for run in concurrent.futures.as_completed(variants):
                if not run.result():
                    failed.append(variants[run])
                write_tables(runner, tables)
        except BaseException:  # the others in the queue are not begun
            pool.shutdown(cancel_futures=True)
            raise
    print(write_tables(runner, tables))
    for variant in failed:
        path = args.output_dir / f"{variant.slug}.log"
        print(f"error: {path}: {variant.name} failed; mend it and run the same command again", file=sys.stderr)
    return 2 if failed else 0


if __name__ == "__main__":
    cli(main)()
