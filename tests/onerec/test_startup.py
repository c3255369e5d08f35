"""How transformers is imported."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import gc, sys
from onerec.startup import load_transformers
assert load_transformers() is load_transformers() is sys.modules["transformers"]
assert "sklearn" not in sys.modules and "scipy.stats" not in sys.modules and gc.isenabled()
import sklearn.metrics
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM
"""


def test_transformers_comes_without_scikit_learn_which_can_be_imported_later():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
