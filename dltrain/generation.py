"""Text from a model, token by token: the likeliest next token (greedy), the likeliest text (beam search), or by chance.

A model that has `start` and `step`, as EncoderDecoder has, computes each token once; any other is called with all of
the text anew. What a row gives does not depend on the rows beside it (when drawn, it does), and rows that have ended
leave the batch. Special tokens are never chosen, but for the one that ends a row, and that is not part of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.data.columns import PADDING
from dltrain.data.tokenizer import NUM_SPECIAL
from dltrain.errors import CheckpointError, ConfigError

_WORTH_LEAVING = 0.75
"""Share of the rows below which those that have ended are taken out of the batch, which copies what is cached."""


@torch.no_grad()
def greedy(
    model: nn.Module, sources: tuple[Tensor, ...], *, begin: int, end: int, max_new_tokens: int
) -> list[list[int]]:
    """Return for each source the tokens of which each is the likeliest after those before it.

    Args:
        model: in evaluation mode; without `sources` a language model.
        sources: what the model is called with before the target, each (B, ...); () gives one row.
        begin: the token that each row starts from.
        end: the token that ends a row.
        max_new_tokens: at which a row ends otherwise.

    Raises:
        ConfigError: if the model has fewer positions than that.
    """
    prompts = _begin(model, sources, begin)
    return _extend(model, sources, prompts, lambda scores: scores.argmax(1), end, max_new_tokens)


@torch.no_grad()
def sample(
    model: nn.Module,
    prompts: Tensor,
    *,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    rng: torch.Generator,
    end: int | None = None,
) -> list[list[int]]:
    """Return for each prompt the tokens that a language model draws after it, without the prompt.

    Args:
        model: in evaluation mode.
        prompts: (B, L) int64, shorter ones filled up with padding at their end; each has at least one token.
        max_new_tokens: at which a row ends, if not at `end`.
        temperature: by which scores are divided: below 1 the likely tokens become likelier; 0 takes the likeliest.
        top_k: choose among that many of the likeliest (Fan et al. 2018, https://arxiv.org/abs/1805.04833);
            None: among all.
        rng: of the model's device.
        end: the token that ends a row; None: none does.

    Raises:
        ConfigError: if the model has fewer positions than the longest prompt and `max_new_tokens` need, or if a
            prompt is empty.
    """
    if prompts.shape[1] == 0 or bool((prompts[:, 0] == PADDING).any()):
        raise ConfigError("a prompt is empty; give at least one token to go on from")

    def draw(scores: Tensor) -> Tensor:
        if temperature == 0:
            return scores.argmax(1)
        if top_k is not None and top_k < scores.shape[1]:
            least = scores.topk(top_k, dim=1).values[:, -1:]
            scores = scores.masked_fill(scores < least, -math.inf)
        if not scores.isfinite().any(1).all():
            raise CheckpointError("the scores of the model are not finite; are its weights?")
        return torch.multinomial((scores / temperature).softmax(1), 1, generator=rng).squeeze(1)

    return _extend(model, (), prompts, draw, end, max_new_tokens)


@torch.no_grad()
def beam_search(
    model: nn.Module,
    sources: tuple[Tensor, ...],
    *,
    begin: int,
    end: int,
    max_new_tokens: int,
    beam_size: int,
    length_penalty: float,
) -> list[list[int]]:
    """Return for each source the text of the best score that a beam of `beam_size` texts finds.

    The score is log P(text) / ((5 + n) / 6) ** length_penalty for n tokens with the end (Wu et al. 2016,
    https://arxiv.org/abs/1609.08144); 0 compares probabilities, which favours short texts. A search is over when
    `beam_size` texts have ended, or when no other can become better; a text that is cut at `max_new_tokens` is
    returned only where none has ended. A beam of 1 is greedy.

    Args:
        model: as for `greedy`, with the other arguments of it.
        sources: see there.
        begin: see there.
        end: see there.
        max_new_tokens: see there.
        beam_size: texts at once, at least 1.
        length_penalty: at least 0.

    Raises:
        ConfigError: if the model has fewer positions than `max_new_tokens`.
    """
    first = _begin(model, sources, begin)
    _check_positions(model, 1, max_new_tokens)
    decoder = _decoder(model, sources)
    decoder.select(torch.arange(len(first), device=first.device).repeat_interleave(beam_size))
    beams = _Beams.begin(first, beam_size)
    results: list[list[int]] = [[] for _ in range(len(first))]
    tokens = first.repeat_interleave(beam_size, dim=0)
    for length in range(1, max_new_tokens + 1):
        log_probabilities = _without_special(decoder.step(tokens).float().log_softmax(1), end)
        parents = beams.extend(log_probabilities, end, _penalty(length, length_penalty))
        over = beams.finish(_penalty(max_new_tokens, length_penalty))
        if bool(over.all()) or length == max_new_tokens:
            break
        kept = torch.arange(len(over), device=over.device)
        if int(over.sum()) >= (1 - _WORTH_LEAVING) * len(over):
            beams.write(results, over)
            kept = kept[~over]
            beams.select(kept)
        decoder.select((kept[:, None] * beam_size + parents[kept]).flatten())
        tokens = beams.texts[:, :, -1].reshape(-1, 1)
    beams.write(results, torch.ones_like(beams.rows, dtype=torch.bool))
    return results


class _Decoder(Protocol):
    """A model at work on a batch of texts."""

    def step(self, ids: Tensor) -> Tensor:
        """Add `ids` (B, t) to the texts; return scores (B, V) of the next token."""
        ...

    def select(self, rows: Tensor) -> None:
        """Keep the texts at `rows`, in that order."""
        ...


class _Cached:
    """A decoder that keeps what it has computed."""

    def __init__(self, model: Any, sources: tuple[Tensor, ...]) -> None:
        self._model = model
        self._cache = model.start(*sources)

    def step(self, ids: Tensor) -> Tensor:
        scores: Tensor = self._model.step(ids, self._cache)
        return scores

    def select(self, rows: Tensor) -> None:
        self._cache.select(rows)


class _Uncached:
    """A decoder that computes all anew for each token, for any model."""

    def __init__(self, model: nn.Module, sources: tuple[Tensor, ...]) -> None:
        self._model, self._sources = model, sources
        self._texts: Tensor | None = None

    def step(self, ids: Tensor) -> Tensor:
        self._texts = ids if self._texts is None else torch.cat([self._texts, ids], dim=1)
        scores: Tensor = self._model(*self._sources, self._texts)[:, -1]
        return scores

    def select(self, rows: Tensor) -> None:
        self._sources = tuple(x[rows] for x in self._sources)
        self._texts = None if self._texts is None else self._texts[rows]


def _decoder(model: nn.Module, sources: tuple[Tensor, ...]) -> _Decoder:
    assert not model.training, "dropout would change the text"
    has_cache = hasattr(model, "start") and hasattr(model, "step")
    return _Cached(model, sources) if has_cache else _Uncached(model, sources)


def _extend(
    model: nn.Module,
    sources: tuple[Tensor, ...],
    prompts: Tensor,
    choose: Callable[[Tensor], Tensor],
    end: int | None,
    max_new_tokens: int,
) -> list[list[int]]:
    """Return for each of `prompts` (B, L) the tokens that `choose` takes, by scores (B, V), until `end` or the limit.

    The tokens of the longer prompts are put in where a shorter one has its first of its own.
    """
    lengths = (prompts != PADDING).sum(1)
    shortest, longest = int(lengths.min()), prompts.shape[1]
    _check_positions(model, longest, max_new_tokens)
    decoder = _decoder(model, sources)
    limits = lengths + max_new_tokens
    texts = torch.cat([prompts, prompts.new_full((len(prompts), max_new_tokens), PADDING)], dim=1)
    rows = torch.arange(len(prompts), device=prompts.device)  # of those in the batch, where they are in `texts`
    going = torch.ones_like(rows, dtype=torch.bool)
    ids = prompts[:, :shortest]
    for position in range(shortest, longest + max_new_tokens):
        chosen = choose(_without_special(decoder.step(ids).float(), end))
        chosen = torch.where(position < lengths[rows], texts[rows, position], chosen)
        going = going & (position < limits[rows])
        if end is not None:
            going = going & ((chosen != end) | (position < lengths[rows]))
        texts[rows, position] = chosen.where(going, PADDING)
        num_going = int(going.sum())
        if num_going == 0:
            break
        if num_going < _WORTH_LEAVING * len(rows):
            kept = going.nonzero().squeeze(1)
            decoder.select(kept)
            rows, going, chosen = rows[kept], going[kept], chosen[kept]
        ids = chosen[:, None]
    return [_up_to_padding(row[length:]) for row, length in zip(texts.tolist(), lengths.tolist(), strict=True)]


@dataclass
class _Beams:
    """For each source of the batch K texts that go on, the best first, and the best that has ended."""

    rows: Tensor
    """(B,) int64: of which source."""
    texts: Tensor
    """(B, K, t) int64."""
    scores: Tensor
    """(B, K): log-probabilities; -inf where there is no such text yet."""
    best: Tensor
    """(B,): penalised score of the best text that has ended; -inf where none has."""
    best_texts: Tensor
    """(B, t - 1) int64: that text without its end, padded."""
    num_ended: Tensor
    """(B,) int64."""

    @classmethod
    def begin(cls, first: Tensor, beam_size: int) -> _Beams:
        """Return beams of one text each: `first` (B, 1)."""
        B, device = len(first), first.device
        scores = torch.full((B, beam_size), -math.inf, device=device)
        scores[:, 0] = 0.0
        zeros = torch.zeros(B, dtype=torch.int64, device=device)
        texts = first.new_empty(B, beam_size, 0)
        best = torch.full((B,), -math.inf, device=device)
        return cls(torch.arange(B, device=device), texts, scores, best, first.new_empty(B, 0), zeros)

    def extend(self, log_probabilities: Tensor, end: int, penalty: float) -> Tensor:
        """Add the best next tokens by `log_probabilities` (B * K, V); return (B, K) int64 the texts that went on.

        Of the 2 K best, at most K are ends, one a text; those among the first K have ended, as the beam has no room
        for the others.
        """
        B, K = self.scores.shape
        totals = self.scores[:, :, None] + log_probabilities.view(B, K, -1)
        V = totals.shape[2]
        scores, indices = totals.flatten(1).topk(min(2 * K, K * V), dim=1)
        parents, tokens = indices // V, indices % V
        is_end = tokens == end
        self._end_texts(scores[:, :K], parents[:, :K], is_end[:, :K], penalty)
        going = is_end.int().argsort(dim=1, stable=True)[:, :K]
        parents = parents.gather(1, going)
        self.scores = scores.gather(1, going).masked_fill(is_end.gather(1, going), -math.inf)
        self.texts = torch.cat([_gather(self.texts, parents), tokens.gather(1, going)[:, :, None]], dim=2)
        return parents

    def _end_texts(self, scores: Tensor, parents: Tensor, is_end: Tensor, penalty: float) -> None:
        """Compare the texts that end here, at `is_end` (B, K), with the best so far."""
        ended = is_end & (scores > -math.inf)
        penalised = (scores / penalty).masked_fill(~ended, -math.inf)
        best, index = penalised.max(1)
        texts = _gather(self.texts, parents.gather(1, index[:, None]))[:, 0]
        padded = _padded(self.best_texts, texts.shape[1])
        is_better = best > self.best
        self.best_texts = torch.where(is_better[:, None], texts, padded)
        self.best = torch.where(is_better, best, self.best)
        self.num_ended = self.num_ended + ended.sum(1)

    def finish(self, largest_penalty: float) -> Tensor:
        """Return (B,) bool, True where K texts have ended, or none that goes on can become better; there, none does."""
        is_over = (self.num_ended >= self.scores.shape[1]) | (self.best >= self.scores[:, 0] / largest_penalty)
        self.scores = self.scores.masked_fill(is_over[:, None], -math.inf)
        return is_over

    def select(self, kept: Tensor) -> None:
        """Keep the sources at `kept` (int64) of the batch."""
        for name, value in vars(self).items():
            setattr(self, name, value[kept])

    def write(self, results: list[list[int]], chosen: Tensor) -> None:
        """Put the best text of each source at `chosen` (B,) bool into `results`."""
        has_ended = self.best > -math.inf
        texts = torch.where(has_ended[:, None], _padded(self.best_texts, self.texts.shape[2]), self.texts[:, 0])
        for row, text in zip(self.rows[chosen].tolist(), texts[chosen].tolist(), strict=True):
            results[row] = _up_to_padding(text)


def _begin(model: nn.Module, sources: tuple[Tensor, ...], begin: int) -> Tensor:
    """Return (B, 1) int64: the first token of each row."""
    device = next((x.device for x in (*sources, *model.parameters())), None)
    return torch.full((len(sources[0]) if sources else 1, 1), begin, device=device)


def _check_positions(model: nn.Module, num_given: int, max_new_tokens: int) -> None:
    """Raise ConfigError if the model has not as many positions as these tokens take; the last is not put in."""
    longest = getattr(model, "max_length", None)
    if isinstance(longest, int) and num_given + max_new_tokens - 1 > longest:
        raise ConfigError(
            f"{max_new_tokens:,} new tokens after {num_given:,} are more than the {longest:,} learned positions of "
            f"the model; ask for at most {max(0, longest - num_given + 1):,}"
        )


def _without_special(scores: Tensor, end: int | None) -> Tensor:
    """Return `scores` (B, V) with -inf for all special tokens but `end`."""
    tokens = torch.arange(scores.shape[1], device=scores.device)
    is_special = tokens < NUM_SPECIAL
    return scores.masked_fill(is_special if end is None else is_special & (tokens != end), -math.inf)


def _penalty(num_tokens: int, length_penalty: float) -> float:
    return math.pow((5 + num_tokens) / 6, length_penalty)


def _gather(texts: Tensor, parents: Tensor) -> Tensor:
    """Return (B, N, t) the `parents` (B, N) of `texts` (B, K, t)."""
    return texts.gather(1, parents[:, :, None].expand(-1, -1, texts.shape[2]))


def _padded(texts: Tensor, length: int) -> Tensor:
    return F.pad(texts, (0, length - texts.shape[1]), value=PADDING)


def _up_to_padding(text: list[int]) -> list[int]:
    return text[: text.index(PADDING)] if PADDING in text else text
