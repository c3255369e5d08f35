"""RecBole's SASRec, run by sasrec.py in an environment of its own; imports nothing of this project.

python recbole_sasrec.py <file.inter> <settings as JSON> <output.json>

Settings: seed, epochs, patience, max_items, dim, dropout, lr, batch_size. The output has the metrics of the test and,
by user, the item that was to be found.
"""

import json
import os
import sys
import tempfile

# RecBole loads its own checkpoints as whole pickles.
os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"

from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed


def main() -> None:
    path, given, output = sys.argv[1:]
    given = json.loads(given)
    folder = tempfile.mkdtemp()
    os.makedirs(os.path.join(folder, "data"))
    os.symlink(path, os.path.join(folder, "data", "data.inter"))
    settings = {
        "data_path": folder,
        "checkpoint_dir": folder,
        "seed": given["seed"],
        "epochs": given["epochs"],
        "stopping_step": given["patience"] - 1,  # RecBole stops when more epochs than that have not been better
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "train_neg_sample_args": None,
        "loss_type": "CE",
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
        "metrics": ["Hit", "NDCG"],
        "topk": [10],
        "valid_metric": "NDCG@10",
        "train_batch_size": given["batch_size"],
        "eval_batch_size": 1 << 21,
        "hidden_size": given["dim"],
        "inner_size": 4 * given["dim"],
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dropout_prob": given["dropout"],
        "attn_dropout_prob": given["dropout"],
        "learning_rate": given["lr"],
        "MAX_ITEM_LIST_LENGTH": given["max_items"],
        "use_gpu": False,
        "show_progress": False,
        "state": "INFO",
        "save_dataset": False,
        "log_wandb": False,
    }
    sys.argv = sys.argv[:1]
    config = Config(model="SASRec", dataset="data", config_dict=settings)
    init_seed(config["seed"], config["reproducibility"])
    train, valid, test = data_preparation(config, create_dataset(config))
    init_seed(config["seed"], config["reproducibility"])
    model = get_model("SASRec")(config, train.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)

    def report(epoch: int, score: float) -> None:
        print(f"epoch {epoch + 1}: validation ndcg@10 {score:.4f}", flush=True)

    trainer.fit(train, valid, saved=True, show_progress=False, verbose=False, callback_fn=report)
    found = trainer.evaluate(test, load_best_model=True, show_progress=False)
    rows = test.dataset
    names = [rows.id2token(field, rows.inter_feat[field]).tolist() for field in ("user_id", "item_id")]
    targets = dict(zip(*names))  # noqa: B905
    value = {"recall@10": float(found["hit@10"]), "ndcg@10": float(found["ndcg@10"]), "targets": targets}
    with open(output, "w") as file:
        json.dump(value, file)


if __name__ == "__main__":
    main()
