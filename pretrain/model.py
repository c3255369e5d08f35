"""The model as the trainer sees it: a Hugging Face causal LM, packed rows in, loss at learnt positions out.

In stage 1 everything is frozen but the itemic rows of the embedding (and of the head where it is not tied), held as
parameters of their own: what is frozen has no gradient, no optimizer state and no weight decay, so it cannot drift.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from onerec.files import TOKENIZER_FILES
from onerec.folders import atomic_path
from onerec.model_folder import check_finite, loading, read_config
from onerec.startup import load_transformers
from pretrain import attention
from pretrain.dataset import IGNORE
from pretrain.loss import linear_cross_entropy
from pretrain.masters import halve


def quiet() -> Any:
    """transformers, without its warnings and progress bars."""
    transformers = load_transformers()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def load_tokenizer(model_dir: str | Path) -> Any:
    """Load a checkpoint's tokenizer; raises `InputError` where there is none."""
    with loading(model_dir):
        return quiet().AutoTokenizer.from_pretrained(model_dir, trust_remote_code=False)


def load_lm(model_dir: str | Path, dtype: torch.dtype | str = torch.float32) -> Any:
    """Load a causal LM; raises `InputError` where the directory does not hold one, or weights that are no numbers."""
    auto = load_transformers().AutoModelForCausalLM
    with loading(model_dir):
        lm = auto.from_pretrained(model_dir, dtype=dtype, trust_remote_code=False, use_safetensors=True)
    check_finite(model_dir, lm.named_parameters())
    return lm


class PackedLM(nn.Module):
    """A causal LM over packed rows.

    Args:
        lm: the Hugging Face model; its attention is switched to the packed one of this machine.
        itemic_rows: (first, last) row, both inclusive, to train alone (stage 1); None trains everything.
        loss_chunk: positions whose logits exist at a time; None: `loss.CHUNKS`.
        attn, half, attention_dropout: see `attention.register`. half: also that `halve` is to come.
    """

    def __init__(
        self,
        lm: Any,
        itemic_rows: tuple[int, int] | None = None,
        loss_chunk: int | None = None,
        attn: str = "auto",
        half: bool = False,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.lm, self.half = lm, half
        self.loss_chunk = loss_chunk
        self.masters: dict[nn.Parameter, torch.Tensor] = {}  # of parameters in bfloat16, by `halve`
        self.rows = None if itemic_rows is None else (itemic_rows[0], itemic_rows[1] + 1)
        self.itemic_in: nn.Parameter | None = None
        self.itemic_out: nn.Parameter | None = None
        lm.set_attn_implementation(attention.register(attn, half, attention_dropout))
        lm.config.use_cache = False
        if self.rows is not None:
            lm.requires_grad_(False)
            begin, end = self.rows
            self.itemic_in = nn.Parameter(self.embedding[begin:end].detach().clone())
            if not self.tied:
                self.itemic_out = nn.Parameter(self.head[begin:end].detach().clone())

    @property
    def embedding(self) -> torch.Tensor:
        """Input embedding [vocabulary, H]."""
        return self.lm.get_input_embeddings().weight

    @property
    def head(self) -> torch.Tensor:
        """Output head [vocabulary, H]."""
        return self.lm.get_output_embeddings().weight

    @property
    def tied(self) -> bool:
        """Whether head and embedding are one tensor."""
        return self.head is self.embedding

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, labels: torch.Tensor, **borders: Any
    ) -> dict[str, torch.Tensor]:
        """One packed row, ids and labels int64 [1, T]; labels are the ids themselves where learnt, else -100.

        ``borders``: ``cu_seq_lens_q``, ``cu_seq_lens_k``, ``max_length_q``, ``max_length_k`` (`pretrain.attention`).
        Returns ``loss_sum`` (sum over learnt tokens), ``losses`` float32 [N] and ``targets`` int64 [N].
        """
        if self.lm.config._attn_implementation == attention.PACKED_SDPA:
            groups = attention.plan_groups(borders["cu_seq_lens_q"].tolist(), input_ids.device)
            borders["packed_plan"] = attention.Plan(groups)
        inputs = {"input_ids": input_ids} if self.rows is None else {"inputs_embeds": self._embed(input_ids)}
        hidden = self.lm.model(**inputs, position_ids=position_ids, use_cache=False, **borders).last_hidden_state
        # A token is predicted from the position before it; a sample's first token has no label, so none is crossed.
        places = (labels[0, 1:] != IGNORE).nonzero().flatten()
        targets = labels[0, places + 1]
        loss_sum, losses = linear_cross_entropy(hidden[0, places], targets, *self._head_parts(), chunk=self.loss_chunk)
        return {"loss_sum": loss_sum, "losses": losses, "targets": targets}

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        begin, end = self.rows
        mine = (ids >= begin) & (ids < end)
        frozen = F.embedding(ids, self.embedding)
        trained = F.embedding(torch.where(mine, ids - begin, 0), self.itemic_in)
        return torch.where(mine[..., None], trained, frozen)

    def _head_parts(self) -> list[torch.Tensor]:
        if self.rows is None:
            return [self.head]
        begin, end = self.rows
        trained = self.itemic_in if self.itemic_out is None else self.itemic_out
        return [part for part in (self.head[:begin], trained, self.head[end:]) if len(part)]

    @torch.no_grad()
    def halve(self) -> None:
        """Go on in bfloat16, with float32 masters (`pretrain.masters`)."""
        self.masters = halve(self)

    def _full(self, tensor: torch.Tensor) -> torch.Tensor:
        """A parameter in full precision."""
        return self.masters.get(tensor, tensor)

    @torch.no_grad()
    def state(self) -> dict[str, torch.Tensor]:
        """The LM's weights by Hugging Face names, in full precision, the trained itemic rows in their place.

        A tied head is left out. Where nothing is frozen they are the training's own tensors, which go on changing.
        """
        tensors = self.lm.state_dict(keep_vars=True)
        if self.tied:
            tensors.pop("lm_head.weight", None)
        state = {name: self._full(tensor).detach() for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            rows = self.itemic_in if tensor is self.embedding else self.itemic_out if tensor is self.head else None
            if rows is not None:
                state[name] = state[name].cpu().clone()
                state[name][slice(*self.rows)] = self._full(rows).cpu()
        return state

    @torch.no_grad()
    def load_weights(self, state: dict[str, torch.Tensor]) -> None:
        """Load an LM's weights (Hugging Face names) and, in stage 1, take the itemic rows from them."""
        with loading("checkpoint", "a checkpoint of this model"):
            missing, unexpected = self.lm.load_state_dict(state, strict=False)
            missing = [name for name in missing if not (self.tied and name == "lm_head.weight")]
            if missing or unexpected:
                raise ValueError(f"weights do not fit: missing {missing[:3]}, unexpected {unexpected[:3]}")
        names = {parameter: name for name, parameter in self.lm.named_parameters()}
        for parameter, master in self.masters.items():
            if parameter in names:
                master.copy_(state[names[parameter]])
        for rows, whole in ((self.itemic_in, self.embedding), (self.itemic_out, self.head)):
            if rows is not None:
                given = state[names[whole]][slice(*self.rows)]
                rows.copy_(given)
                self._full(rows).copy_(given)


def save_hf(lm: Any, base_dir: Path, output_dir: Path, card: str) -> None:
    """Write ``lm`` as a Hugging Face checkpoint, atomically, over an earlier one; ``card``: text of its README.md."""
    with atomic_path(output_dir, ours=True) as temporary:
        temporary.mkdir(parents=True)
        write_hf(lm, base_dir, temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")


def write_hf(lm: Any, base_dir: Path, folder: Path) -> None:
    """Write ``lm`` into a folder that exists, in the dtype in which ``base_dir`` stores its weights.

    Tokenizer, chat template and SIDs come from ``base_dir``.
    """
    stored = read_config(base_dir)
    dtype = getattr(torch, str(stored.get("dtype") or stored.get("torch_dtype") or "float32"))
    lm.config.use_cache = stored.get("use_cache", True)
    state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in lm.state_dict().items()}
    before, lm.config.dtype = lm.config.dtype, dtype
    try:
        lm.save_pretrained(folder, state_dict=state)
    finally:
        lm.config.dtype, lm.config.use_cache = before, False
    for name in TOKENIZER_FILES:
        if (base_dir / name).is_file():
            shutil.copyfile(base_dir / name, folder / name)
