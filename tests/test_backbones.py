"""A family of models without a renderer is refused by every command that opens a model; one with it is taken by all."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onerec.cli import cli
from onerec.files import RL_TEST, RL_TRAIN
from onerec.model_folder import needed_tensors, open_model_folder
from onerec.records import chat_record, message, record_uuid, write_records
from onerec.render import CHAT_MARK, RENDERERS, Renderer
from onerec.render.base import Piece, message_text, thought_and_answer
from onerec.sid import SidSpec
from tests.arguments import as_flags
from tests.benchmarks.conftest import tiny_data  # noqa: F401 (a fixture)
from tests.model_folders import tiny_model

ROOT = Path(__file__).resolve().parents[1]
SPEC = SidSpec((4, 4, 4), first_id=6)
CHAT = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "<think>\n一加一\n</think>\n\n二"}]


def write_run(folder: Path, model: Path) -> None:
    """What the commands ask for beside a model: records, RL data, a run's checkpoint."""
    turns = [message("user", "a"), message("assistant", "b")]
    write_records(folder / "data/part-0.parquet", [chat_record(record_uuid("a"), "a", {}, turns)])
    (folder / "config.json").write_text('{"sources": ["data"], "max_length": 64}')
    for name in ("prompts.parquet", RL_TRAIN, RL_TEST):
        pq.write_table(pa.table({"prompt": [[{"role": "user", "content": "a"}]] * 8}), folder / name)
    (folder / "run/step1/global_step1").mkdir(parents=True)
    (folder / "run/step1/global_step1/model.safetensors").write_bytes(b"")
    (folder / "run/hf").symlink_to(model)


# Script and flags: {f} is the folder of `write_run`, {data} benchmark data, {bad} the llama, {good} a Qwen3 with SIDs.
EVALUATE = "--model_path {bad} --result_name x --data_dir {data} --output_dir {f}/out --tasks video"
DISTILL = (
    "--dataset_parquet {f}/prompts.parquet --output_dir {f}/out --train_batch_size 4 --n_gpus 1 --max_prompt_length 30 "
    "--response_length 20 --base_model"
)
ITEMS = "--catalogue {data}/video_ad_pid2sid.parquet"
COMMANDS = [
    ("data/describe.py", "{f}/data --tokenizer {bad} --output_dir {f}/out"),
    ("pretrain/expand_vocab.py", "--hf_model_dir {bad} --output_model_dir {f}/out"),
    ("pretrain/train.py", "--model_dir {bad} --dataset_config {f}/config.json --output_dir {f}/out"),
    ("pretrain/check_hf_model.py", "--hf_model_dir {bad}"),
    ("pretrain/convert_checkpoint_to_hf.py", "--base_model_dir {bad} --checkpoint_dir {f}/run --output_dir {f}/out"),
    ("pretrain/plan.py", "--model_dir {bad} --tokens 1e9"),
    ("benchmarks/evaluate.py", EVALUATE),
    ("benchmarks/evaluate.py", EVALUATE + " --backend vllm"),
    ("benchmarks/choose_checkpoint.py", "--run_dir {f}/run --data_dir {data}"),
    ("verl_distillation/distill.py", DISTILL + " {bad} --teacher_model {good}"),
    ("verl_distillation/distill.py", DISTILL + " {good} --teacher_model {bad}"),
    ("verl_rl/train_grpo.py", ITEMS + " --base_model {bad} --data_dir {f} --output_dir {f}/out"),
]


@pytest.mark.parametrize(("script", "flags"), COMMANDS)
def test_a_family_without_a_renderer_is_refused_everywhere(script, flags, tmp_path, tiny_data, monkeypatch, capfd):  # noqa: F811
    words = [*"abcd", "<|im_start|>", "<|im_end|>", *SPEC.tokens]
    bad, good = tmp_path / "llama", tiny_model(tmp_path / "qwen", words, SPEC, rows=32)
    tiny_model(bad, words, SPEC, rows=32, model_type="llama")
    write_run(tmp_path, tmp_path / "llama")
    where = {"f": tmp_path, "bad": bad, "good": good, "data": tiny_data}
    # As a script is run, in this process.
    monkeypatch.setattr(sys, "argv", [str(ROOT / script), *flags.format(**where).split()])
    monkeypatch.setattr(sys, "path", list(sys.path))
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    with pytest.raises(SystemExit) as stop:
        cli(module.main)()
    shown = tmp_path / "run/hf" if "choose" in script else bad
    assert stop.value.code == 2
    assert capfd.readouterr().err.splitlines()[-1:] == [f"error: {shown}: is a llama; a family with a renderer: qwen3"]
    assert not (tmp_path / "out/hf").exists()


class Toy(Renderer):
    """A family that writes ``[user]…[end]`` and ``[model][think]…[/think]…[end]``, and knows no switch."""

    model_type, model_class = "llama", "LlamaForCausalLM"
    marks = ("[user]", "[model]", "[end]", "[stop]")
    turn_end, text_end = "[end]", "[stop]"
    user_begin, answer_begin = "[user]", "[model]"
    think_marks = ("[think]", "[/think]")

    def render(self, messages, add_think_pattern=True):
        pieces = []
        for item in messages:
            if item["role"] == "assistant":
                thought, answer = thought_and_answer(item)
                pieces.append(Piece("[model]", False))
                pieces.append(Piece(self.think_block(thought) + answer + "[end]", True))
            else:
                pieces.append(Piece(f"[user]{message_text(item['content'])}[end]", False))
        return pieces


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A folder with the model ``base`` of the family `Toy`, which is entered in the table and nowhere else."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    monkeypatch.setitem(RENDERERS, "llama", Toy())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="[stop]")
    tokenizer.add_tokens([*Toy.marks, *Toy.think_marks])
    tokenizer.chat_template = "any"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path


def test_a_new_family_renders_masks_and_stops_by_its_entry_in_the_table(toy):
    from transformers import AutoTokenizer

    from pretrain import check_hf_model, expand_vocab, train
    from pretrain.dataset_config import DatasetConfig
    from pretrain.tokenization import tokenize_shards

    flags = ["--hf_model_dir", str(toy / "base"), "--output_model_dir", str(toy / "m")]
    assert not expand_vocab.main([*flags, "--itemic_layer_n", "2", "--vocab_size_per_layer", "4"])
    model, tokenizer = open_model_folder(toy / "m"), AutoTokenizer.from_pretrained(toy / "m", trust_remote_code=False)
    assert model.renderer is RENDERERS["llama"]
    # Expansion lets generation stop by the family's marks.
    stops = json.loads((toy / "m/generation_config.json").read_text())["eos_token_id"]
    assert stops == sorted(tokenizer.convert_tokens_to_ids(["[end]", "[stop]"]))

    # Training renders, masks and ends texts as the family does; the thinking of a record gets its marks.
    records = [chat_record(record_uuid(i), "a", {}, [message(m["role"], m["content"]) for m in CHAT]) for i in range(8)]
    write_records(toy / "data/part-0.parquet", records)
    config = DatasetConfig(sources=(), max_length=99, add_think_pattern=True)
    samples = tokenize_shards([toy / "data/part-0.parquet"], config, toy / "m", model.spec)
    answer = "[think]\n一加一\n[/think]\n\n二[end]"
    assert tokenizer.decode(samples.ids[: samples.starts[1]]) == "[user]1+1[end][model]" + answer
    assert tokenizer.decode(samples.ids[samples.learn]) == answer * 8
    (toy / "config.json").write_text('{"sources": ["data"], "max_length": 99}')
    flags = as_flags(model_dir=toy / "m", dataset_config=toy / "config.json", output_dir=toy / "o")
    assert not train.main([*flags, "--num_training_steps", "1"])
    assert not check_hf_model.main(["--hf_model_dir", str(toy / "o/hf"), "--max_new_tokens", "4"])


def test_a_new_family_is_evaluated_and_rewarded_by_its_entry_in_the_table(toy):
    from benchmarks.model import BenchModel
    from verl_rl import assemble, rewards

    model = BenchModel(toy / "base")
    [prompt] = model.prompt_ids([CHAT[:1]], False, 8)
    assert model.tokenizer.decode(prompt) == "[user]1+1[end][model][think]\n\n[/think]\n\n"
    # A prompt that is too long keeps what opens the user's turn.
    [cut] = model.prompt_ids([[{"role": "user", "content": "x" * 500}]], True, 8)
    assert model.tokenizer.decode(cut).startswith("[user]xxx") and len(cut) == 248
    [thought] = model.think([prompt], 3, "think")
    assert model.tokenizer.decode(thought).endswith("[/think]\n\n")
    assert model.ends == sorted(model.tokenizer.convert_tokens_to_ids(["[end]", "[stop]"]))
    assert model.renderer.split_thinking("[think]\nhm\n[/think]\n\nx") == ("hm", "x")

    spec = SidSpec((4, 3), first_id=300)
    marks = assemble.Marks.of(toy / "base", model.tokenizer, spec)
    assert model.tokenizer.decode([marks.close, *marks.ends]) == "[/think][stop][end]"
    text = f"[think]\nhm\n[/think]\n\n{spec.format((1, 2))}[end]{spec.format((0, 0))}"
    weights = {"full_hit": 1.0, "think_format": 1.0}
    (row,) = rewards.score_group([model.renderer.as_record(text)], spec.format((1, 2)), spec, weights, thinking=True)
    assert row["score"] == 2


def test_no_record_may_hold_a_mark_of_a_known_family():
    assert all(CHAT_MARK.search(f"a{mark}b") for renderer in RENDERERS.values() for mark in renderer.marks)
    assert not CHAT_MARK.search("<|x|>")


def test_a_family_without_tensors_of_its_own_has_those_of_llama(toy):
    from safetensors import safe_open

    config = json.loads((toy / "base/config.json").read_text())
    with safe_open(toy / "base/model.safetensors", "np") as file:
        assert {name for name, _ in needed_tensors(config)} == set(file.keys())
