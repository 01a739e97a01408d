"""Scores of whole texts, such as translations: what is decoded is compared with the references, word for word."""

from __future__ import annotations

from collections.abc import Sequence

from dltrain.extras import require


def score(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return the scores of `hypotheses`, one for each of `references`, of which there is at least one.

    "bleu" (0 to 100, of the corpus; Papineni et al. 2002, https://aclanthology.org/P02-1040; 0 where no text has four
    words) and "chrf" (0 to 100; Popović 2015, https://aclanthology.org/W15-3049) are what the command sacrebleu prints
    with its own settings (Post 2018, https://aclanthology.org/W18-6319); "exact_match" is the fraction (0 to 1) of
    hypotheses that are their reference, spaces around them aside. Raises ConfigError if sacrebleu is missing.
    """
    assert len(hypotheses) == len(references) > 0
    sacrebleu = require("sacrebleu", "text", "to compute BLEU and chrF")
    pairs = zip(hypotheses, references, strict=True)
    num_equal = sum(hypothesis.strip() == reference.strip() for hypothesis, reference in pairs)
    # `force` changes no score: it only keeps quiet about full stops that stand apart, as if that were a mistake.
    return {
        "bleu": float(sacrebleu.corpus_bleu(hypotheses, [references], force=True).score),
        "chrf": float(sacrebleu.corpus_chrf(hypotheses, [references]).score),
        "exact_match": num_equal / len(references),
    }
