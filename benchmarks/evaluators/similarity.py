"""How alike two texts are without a judge: embeddings, and the longest common subsequence of characters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onerec.model_folder import check_finite, loading, open_encoder

TFIDF = "tfidf"


def embedding_similarity(references: Sequence[str], answers: Sequence[str], encoder: str = TFIDF) -> np.ndarray:
    """Cosine of each answer's embedding and its reference's, [n]; an empty answer has 0.

    ``encoder`` is ``tfidf`` (character 1- to 3-grams weighted by TF-IDF over the references, so that models are
    compared in one space) or the folder of a Hugging Face encoder (mean of its last hidden states).
    """
    if encoder == TFIDF:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True)
        left = vectorizer.fit_transform(references)
        return np.asarray(left.multiply(vectorizer.transform(answers)).sum(axis=1)).ravel()
    return (_hf_embeddings(references, encoder) * _hf_embeddings(answers, encoder)).sum(1)


def _hf_embeddings(texts: Sequence[str], folder: str, batch_size: int = 32) -> np.ndarray:
    """Unit vectors [n, d]; zero for an empty text."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    open_encoder(folder)
    with loading(folder, f"{TFIDF}, or a Hugging Face encoder's folder"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = AutoModel.from_pretrained(folder, trust_remote_code=False, use_safetensors=True).eval()
    check_finite(folder, model.named_parameters())
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    parts = []
    for first in range(0, len(texts), batch_size):
        batch = [text or " " for text in texts[first : first + batch_size]]
        coded = tokenizer(batch, padding=True, truncation=True, max_length=512, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**coded).last_hidden_state.float()
        mask = coded["attention_mask"][..., None]
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        parts.append(torch.nn.functional.normalize(mean, dim=-1).numpy())
    vectors = np.concatenate(parts)
    vectors[[not text for text in texts]] = 0
    return vectors


def lcs_length(a: str, b: str) -> int:
    """Characters of the longest common subsequence (Hyyrö 2004, bits of one integer for a column of the table)."""
    places: dict[str, int] = {}
    for i, character in enumerate(a):
        places[character] = places.get(character, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for character in b:
        matched = row & places.get(character, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(a) - row.bit_count()


def char_rouge_l(reference: str, answer: str) -> float:
    """ROUGE-L over characters (Lin 2004): F1 of |longest common subsequence| / |answer| and / |reference|."""
    if not reference or not answer:
        return 0.0
    return 2 * lcs_length(reference, answer) / (len(reference) + len(answer))
