"""RecBole's SASRec, run by crosscheck/sasrec.py in an environment of its own; imports nothing of this project.

python recbole_sasrec.py <file.inter> <seed> <epochs> <patience> <max_items> <metrics.json>
"""

import json
import os
import sys
import tempfile

# RecBole loads its own checkpoints as whole pickles.
os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"

import old_numpy  # noqa: F401
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed


def main() -> None:
    path, seed, epochs, patience, max_items, output = sys.argv[1:]
    folder = tempfile.mkdtemp()
    os.makedirs(os.path.join(folder, "data"))
    os.symlink(path, os.path.join(folder, "data", "data.inter"))
    settings = {
        "data_path": folder, "checkpoint_dir": folder, "seed": int(seed), "epochs": int(epochs), "stopping_step": int(patience),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "train_neg_sample_args": None, "loss_type": "CE",
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
        "metrics": ["Hit", "NDCG"], "topk": [10], "valid_metric": "NDCG@10", "train_batch_size": 2048, "eval_batch_size": 4096,
        "hidden_size": 64, "inner_size": 256, "n_layers": 2, "n_heads": 2, "hidden_dropout_prob": 0.5, "attn_dropout_prob": 0.5,
        "MAX_ITEM_LIST_LENGTH": int(max_items), "learning_rate": 1e-3, "use_gpu": False, "show_progress": False, "state": "ERROR",
        "save_dataset": False, "log_wandb": False,
    }  # fmt: skip
    sys.argv = sys.argv[:1]
    config = Config(model="SASRec", dataset="data", config_dict=settings)
    init_seed(config["seed"], config["reproducibility"])
    train, valid, test = data_preparation(config, create_dataset(config))
    init_seed(config["seed"], config["reproducibility"])
    model = get_model("SASRec")(config, train.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)
    trainer.fit(train, valid, saved=True, show_progress=False, verbose=False)
    found = trainer.evaluate(test, load_best_model=True, show_progress=False)
    with open(output, "w") as file:
        json.dump({"recall@10": float(found["hit@10"]), "ndcg@10": float(found["ndcg@10"])}, file)


if __name__ == "__main__":
    main()
