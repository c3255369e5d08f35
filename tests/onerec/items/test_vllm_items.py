"""Items found inside vLLM are those of `onerec.items.decode`, for prompts of any length and catalogues side by side."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys, pathlib, numpy as np, torch, pyarrow as pa, pyarrow.parquet as pq
from transformers import Qwen3Config, Qwen3ForCausalLM
from onerec.catalog import ItemIndex
from onerec.items.decode import decode_items
from onerec.sid import SidSpec

def main(folder):
    spec = SidSpec((6, 5, 4), first_id=30)
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                         num_key_value_heads=1, head_dim=32, max_position_embeddings=256, initializer_range=0.3)
    model = Qwen3ForCausalLM(config).eval()
    model.save_pretrained(folder / "model"); spec.save(folder / "model")
    rng = np.random.default_rng(0)
    codes = np.array([[a, b, c] for a in range(6) for b in range(5) for c in range(4)])
    paths = []
    for name, n in (("many", 100), ("few", 5)):
        chosen = codes[rng.permutation(len(codes))[:n]]
        paths.append(str(folder / f"{name}.parquet"))
        pq.write_table(pa.table({"pid": np.arange(n), "codes": pa.array(chosen.tolist(), pa.list_(pa.int32()))}), paths[-1])
    from vllm import LLM
    llm = LLM(model=str(folder / "model"), dtype="float32", enforce_eager=True, max_model_len=128, max_num_seqs=8,
              skip_tokenizer_init=True, worker_extension_cls="onerec.items.vllm_items.ItemWorker", block_size=16)
    # Around the ends of a block of 16, begin token included.
    prompts = [rng.integers(0, 30, n).tolist() for n in (3, 14, 15, 16, 31, 47, 60)]
    sides = [0, 1, 0, 0, 1, 0, 0]
    begun = [[*p, spec.begin_id] for p in prompts]
    find = lambda seeds, catalogues: llm.collective_rpc("onerec_find_items", args=(
        begun, catalogues, [8] * len(begun), seeds, 1.0, str(folder / "model")))[0]
    found = find([None] * len(begun), [paths[s] for s in sides])
    for prompt, side, items in zip(prompts, sides, found):
        expected = decode_items(model, [prompt], ItemIndex.load(paths[side], spec), spec, 8)[0]
        assert [ids for ids, _ in items] == [spec.token_ids(h.codes).tolist() for h in expected]
        assert np.allclose([sum(l) for _, l in items], [h.logprob for h in expected], atol=1e-4)
        assert len(items) == (5 if side else 8)
    drawn = find(list(range(len(begun))), [paths[s] for s in sides])
    assert drawn == find(list(range(len(begun))), [paths[s] for s in sides]) and all(len(i) == 8 for i in drawn)
    free = find([None] * len(begun), [None] * len(begun))
    logits = model(torch.tensor([begun[0]])).logits[0, -1]
    assert free[0][0][0][0] in logits.topk(8).indices.tolist() and len(free[0]) == 8
    # The engine's own cache is untouched.
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt
    out = llm.generate([TokensPrompt(prompt_token_ids=p) for p in prompts], SamplingParams(max_tokens=3, temperature=0), use_tqdm=False)
    for prompt, one in zip(prompts, out):
        ids = list(prompt)
        for token in one.outputs[0].token_ids:
            assert token == int(model(torch.tensor([ids])).logits[0, -1].argmax()); ids.append(token)
    print("same items")

if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed on this machine")
def test_items_of_vllm_are_those_of_the_plain_search(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1",
        "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR",
    }  # fmt: skip
    result = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.stdout.strip().endswith("same items"), result.stdout[-1500:] + result.stderr[-3000:]
