"""Check a checkpoint the way its users will meet it: load it, look at its tokens, generate from an itemic prompt.

    python check_hf_model.py --hf_model_dir output/stg2/hf

A folder that cannot be used is said in one line (exit status 2). Prints what it generates with and without thinking,
then ``ok`` or every problem found (exit status 1).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from onerec.cli import cli
from onerec.flags import COUNT, ArgumentParser
from onerec.model_folder import ModelFolder, open_model_folder
from onerec.render import Renderer
from onerec.run import get_logger

log = get_logger("check_hf_model")
PROMPTS = Path(__file__).with_name("check_prompts.json")


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run every check; 0 where nothing is wrong."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--hf_model_dir", required=True, help="Hugging Face checkpoint to check")
    parser.add_argument("--max_new_tokens", type=COUNT, default=32, help="tokens to generate from each prompt")
    text = "the prompts that the model was trained with: zh, else English is asked"
    parser.add_argument("--prompts", default="zh", help=text)
    args = parser.parse_args(argv)
    folder = Path(args.hf_model_dir)
    opened = open_model_folder(folder)
    from pretrain.model import load_lm, load_tokenizer

    tokenizer = load_tokenizer(folder)
    model = load_lm(folder, dtype="auto").eval()
    log.info(
        f"{folder}: {model.num_parameters():,} parameters, {len(tokenizer):,} tokens, {model.config.vocab_size:,} rows"
    )
    problems = static_problems(model, tokenizer, opened.renderer)
    texts = json.loads(PROMPTS.read_text(encoding="utf-8"))
    asked = texts.get(args.prompts, texts["en"])
    for thinking in (False, True):
        problems += generate(model, tokenizer, opened, asked, thinking, args.max_new_tokens)
    for problem in problems:
        log.info(f"problem: {problem}")
    log.info("ok" if not problems else f"{len(problems)} problem(s)")
    return 1 if problems else 0


def static_problems(model: Any, tokenizer: Any, renderer: Renderer) -> list[str]:
    """What is wrong before anything is generated."""
    problems = []
    if not tokenizer.chat_template:
        problems.append("there is no chat template")
    stops = model.generation_config.eos_token_id
    stops = stops if isinstance(stops, list) else [stops]
    if tokenizer.convert_tokens_to_ids(renderer.turn_end) not in stops:
        problems.append(f"generation does not stop at {renderer.turn_end}")
    return problems


def generate(
    model: Any, tokenizer: Any, opened: ModelFolder, asked: dict[str, str], thinking: bool, max_new_tokens: int
) -> list[str]:
    """Generate from one prompt of ``asked`` and say what is wrong with the answer's form."""
    import torch

    spec = opened.spec
    prompt = asked["itemic" if spec else "text"]
    if spec:
        codes = range(min(3, *spec.codebook_sizes))
        prompt = prompt.replace("{sids}", "".join(spec.format([code] * spec.n_layers) for code in codes))
    text = opened.renderer.prompt_text([{"role": "user", "content": prompt}], thinking)
    mode = "thinking" if thinking else "no thinking"
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    if tokenizer.decode(ids[0]) != text:
        return [f"{mode}: the prompt does not survive the tokenizer"]
    with torch.inference_mode():
        logits = model(ids).logits[0, -1]
        if not torch.isfinite(logits).all():
            return [f"{mode}: the logits are no numbers"]
        out = model.generate(ids, max_new_tokens=max_new_tokens, do_sample=False)
    new = out[0, ids.shape[1] :]
    log.info(f"{mode}: {text!r} -> {tokenizer.decode(new)!r}")
    nameless = sorted({int(i) for i in new if i >= len(tokenizer)})
    return [f"{mode}: generates the id {nameless[0]}, which no token has"] if nameless else []


if __name__ == "__main__":
    cli(main)()
