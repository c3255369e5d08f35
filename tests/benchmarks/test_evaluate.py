"""A checkpoint through the whole evaluation, and what a checkpoint or data that do not fit get."""

import json
import math
import shutil

import pyarrow as pa
import pytest
import torch

from benchmarks.evaluate import main
from benchmarks.model import BenchModel
from onerec.errors import InputError
from onerec.parquet import write_table
from onerec.records import chat_record, message, text_record, write_records
from onerec.sid import SidSpec
from tests.benchmarks.conftest import TINY_SPEC as SPEC


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint):
    return tiny_checkpoint


def sid(pid):
    return SPEC.text([pid % 4, pid // 4 % 4, 0])


def test_row(i, history, answer, key="answer_pid"):
    prompt = [message("user", "看过" + "".join(map(sid, history)) + "推荐")]
    metadata = {"uid": i, "answer": "".join(map(sid, answer)), key: answer, "history_pid": history}
    return {"uuid": str(i), "source": "s", "messages": json.dumps(prompt), "metadata": json.dumps(metadata)}


test_row.__test__ = False


@pytest.fixture
def data(tmp_path):
    """Video and label prediction tests, a catalogue of 16 items, training sequences, held-out general text."""
    folder = tmp_path / "benchmark_data"
    rows = [test_row(i, [i, i + 1, i + 2], [i + 3]) for i in range(6)]
    write_table(folder / "video" / "video_test.parquet", pa.Table.from_pylist(rows))
    labels = [
        {**row, "metadata": json.dumps({"uid": i // 2, "label": i % 2, "answer": "是"})} for i, row in enumerate(rows)
    ]
    write_table(folder / "label_pred" / "label_pred_test.parquet", pa.Table.from_pylist(labels))
    codes = pa.array([[p % 4, p // 4 % 4, 0] for p in range(16)], pa.list_(pa.int32()))
    write_table(folder / "video_ad_pid2sid.parquet", pa.table({"pid": list(range(16)), "codes": codes}))
    write_table(
        folder / "train_sequences.parquet",
        pa.table({"uid": [1], "task": ["video"], "history_pid": [[1]], "target_pid": [[2]]}),
    )
    SPEC.save(folder)
    write_records(folder / "general" / "text.parquet", [text_record("u", "s", {}, ["abc 中文"])])
    turns = [message("user", "1+1?"), message("assistant", "2")]
    write_records(folder / "general" / "qa.parquet", [chat_record("u", "s", {"answer": "2", "kind": "sum"}, turns)])
    return folder


def run(checkpoint, data, *more):
    argv = [
        "--model_path",
        str(checkpoint),
        "--result_name",
        "x",
        "--data_dir",
        str(data),
        "--output_dir",
        str(data.parent / "r"),
    ]
    main([*argv, "--num_beams", "16", "--max_answer_tokens", "3", "--max_thinking_tokens", "4", *more])
    folder = data.parent / "r" / "results_x"
    return json.loads((folder / "metrics.json").read_text())["tasks"], folder


def test_every_task_is_measured_and_only_existing_items_come_out(checkpoint, data):
    tasks, folder = run(checkpoint, data)
    assert set(tasks) == {"video", "label_pred", "general"}
    # As many beams as items: the whole catalogue is ranked, so every answer is found.
    assert tasks["video"]["recall@32"] == 1 and tasks["video"]["samples"] == 6
    assert 0 <= tasks["label_pred"]["auc"] <= 1 and tasks["general"]["bits_per_byte"] > 0
    lines = [json.loads(line) for line in (folder / "predictions_video.jsonl").read_text().splitlines()]
    assert all(sorted(line["items"]) == list(range(16)) for line in lines)
    assert json.loads((folder / "manifest.json").read_text())["inputs"] == {"video": 6, "label_pred": 6}


def test_the_same_checkpoint_gives_the_same_metrics_at_any_batch_size(checkpoint, data):
    assert run(checkpoint, data)[0] == run(checkpoint, data, "--token_budget", "64")[0]


def test_bits_per_byte_of_texts_beyond_the_context(checkpoint, data, tmp_path):
    """A model to which all of its 384 tokens are equal needs log2 384 bits for each, in a text of any length."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "uniform"
    shutil.copytree(checkpoint, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.nn.init.zeros_(model.lm_head.weight)
    model.save_pretrained(folder)
    texts = ["字" * 500, "short", "x" * 511, "y" * 512]
    records = [text_record(str(i), "s", {}, [text]) for i, text in enumerate(texts)]
    write_records(data / "general" / "text.parquet", records)
    tasks, _ = run(folder, data, "--tasks", "general")
    assert tasks["general"]["bits_per_byte"] == pytest.approx(math.log2(384), abs=1e-4)


def test_seen_items_are_left_out_on_request(checkpoint, data):
    _, folder = run(checkpoint, data, "--tasks", "video", "--exclude_seen")
    lines = [json.loads(line) for line in (folder / "predictions_video.jsonl").read_text().splitlines()]
    assert [sorted(line["items"]) for line in lines] == [sorted(set(range(16)) - {i, i + 1, i + 2}) for i in range(6)]


def test_thinking_ends_before_the_items(checkpoint, data):
    tasks, _ = run(checkpoint, data, "--enable_thinking", "true", "--tasks", "video")
    assert tasks["video"]["recall@32"] == 1


def test_answer_probabilities_equal_a_direct_computation(checkpoint):
    model = BenchModel(checkpoint, device="cpu")
    prompts = [model.tokenizer(text)["input_ids"] for text in ("问", "另一个问题")]
    scored = model.answer_logprobs(prompts, ("是", "a"), "test")
    for prompt, row in zip(prompts, scored, strict=True):
        for answer, value in zip(("是", "a"), row, strict=True):
            ids = model.tokenizer(answer)["input_ids"]
            with torch.inference_mode():
                logprobs = model.backend.model(torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
            expected = sum(logprobs[len(prompt) - 1 + i, token].item() for i, token in enumerate(ids))
            assert value == pytest.approx(expected, abs=1e-4)


def test_a_prompt_longer_than_the_context_loses_its_oldest_items(checkpoint, data, capsys):
    rows = [test_row(0, [*range(16)] * 10, [3])]
    write_table(data / "video" / "video_test.parquet", pa.Table.from_pylist(rows))
    tasks, _ = run(checkpoint, data, "--tasks", "video")
    assert tasks["video"]["samples"] == 1 and "prompts cut to the context: 1" in capsys.readouterr().out


def refused(checkpoint, data, match, *more):
    with pytest.raises(InputError, match=match):
        run(checkpoint, data, *more)
    assert not (data.parent / "r" / "results_x" / "metrics.json").exists()


def test_a_checkpoint_without_sids_is_measured_on_general_ability_only(checkpoint, data, tmp_path):
    plain = tmp_path / "plain"
    shutil.copytree(checkpoint, plain)
    (plain / "sid_spec.json").unlink()
    refused(plain, data, "its vocabulary holds no SIDs")
    assert set(run(plain, data, "--tasks", "general")[0]) == {"general"}


def test_other_codebooks_than_the_checkpoints_are_refused(checkpoint, data):
    SidSpec((8, 4, 4)).save(data)
    refused(checkpoint, data, r"has codebooks \(4, 4, 4\)")


def test_a_catalogue_code_outside_its_codebook_is_refused(checkpoint, data):
    codes = pa.array([[0, 9, 0]], pa.list_(pa.int32()))
    write_table(data / "video_ad_pid2sid.parquet", pa.table({"pid": [1], "codes": codes}))
    refused(checkpoint, data, "code 9 in layer 1")


def test_an_empty_task_and_an_unknown_one_are_refused(checkpoint, data):
    refused(checkpoint, data, "clicks is not a task", "--tasks", "clicks")
    refused(checkpoint, data, "has no test file of ad", "--tasks", "ad")
    path = data / "video" / "video_test.parquet"
    write_table(path, pa.Table.from_pylist([test_row(0, [1], [2])]).slice(0, 0))
    refused(checkpoint, data, "is an empty table", "--tasks", "video")


def test_no_checkpoint_is_one_line(data, tmp_path):
    refused(tmp_path / "none", data, "is not a checkpoint folder")
