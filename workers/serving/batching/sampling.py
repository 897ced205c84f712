"""Each request's own sampling, inside one batch.

The library's batch has one temperature for all and one random generator. Here a logits processor chooses
every row's token by its request's settings, and hands the library scores that leave no other choice.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor
from transformers.generation.continuous_batching.requests import FutureRequestState

from workers.serving.batching.constraints import Constraint

NUCLEUS_CANDIDATES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """`temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 cut nothing; `repetition_penalty` 1 changes
    nothing; `top_logprobs` None asks for none.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural logarithms of the model's own distribution, before temperature and cuts.

    None is for a prompt's first token, which nothing predicted.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


class SamplingState:
    """What one request carries from token to token."""

    def __init__(
        self, settings: SamplingSettings, *, prompt: Sequence[int] = (), constraint: Constraint | None = None
    ) -> None:
        self.settings = settings
        self.constraint = constraint
        self.seen = set(prompt) if settings.repetition_penalty != 1 else set()
        self.random = random.Random(settings.seed)  # noqa: S311 -- sampling text, nothing secret
        self.counts: Counter[int] = Counter()
        self.logprobs: list[TokenLogprob] = []
        penalties = settings.presence_penalty or settings.frequency_penalty or settings.repetition_penalty != 1
        # Whether `adjust` ever changes a row; and whether the best score is the choice, of which nothing is told.
        self.adjusts = bool(penalties or settings.logit_bias or constraint is not None)
        self.is_plain = not (self.adjusts or settings.temperature > 0 or settings.top_logprobs is not None)

    def adjust(self, row: torch.Tensor) -> None:
        """Adds bias, subtracts penalties and masks what a grammar forbids, in place: `row` is [vocabulary]."""
        settings = self.settings
        if settings.repetition_penalty != 1:
            _discourage(row, self.seen | self.counts.keys(), settings.repetition_penalty)
        if settings.logit_bias:
            _add(row, dict(settings.logit_bias.items()))
        if self.counts and (settings.presence_penalty or settings.frequency_penalty):
            _add(row, {
                token: -settings.presence_penalty - settings.frequency_penalty * count
                for token, count in self.counts.items()
            })  # fmt: skip
        if self.constraint is not None:
            self.constraint.mask(row)

    def record(self, token: int, raw: torch.Tensor) -> None:
        """Notes the chosen token; `raw` has the model's scores, shape [vocabulary]."""
        self.counts[token] += 1
        if self.constraint is not None:
            self.constraint.accept(token)
        if self.settings.top_logprobs is None:
            return
        self.logprobs.append(token_logprob(token, raw, self.settings.top_logprobs))


def token_logprob(token: int, raw: torch.Tensor, top: int) -> TokenLogprob:
    """Of a token at a place where the model's scores are `raw`, shape [vocabulary], with the `top` best."""
    logprobs = torch.log_softmax(raw.float(), dim=-1)
    best = torch.topk(logprobs, top)
    return TokenLogprob(
        token, float(logprobs[token]), tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    )


class PerRequestSampler(ContinuousBatchingLogitsProcessor):
    """Register a state under a request's id before the request is added, and remove it afterwards.

    Works where a batch's tensors are prepared right before its forward pass: not with asynchronous batching,
    nor inside a captured CUDA graph.
    """

    supported_kwargs: dict[str, type] = {}  # noqa: RUF012 -- the library's interface
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.states: dict[str, SamplingState] = {}
        self._rows: list[SamplingState] = []
        # Of the batch, those included in which no request has a new token yet.
        self.passes = 0

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[FutureRequestState]) -> torch.Tensor:
        self.passes += 1
        # A request may have been cancelled and removed after it was scheduled; its token goes nowhere.
        self._rows = [
            self.states.get(request.state.request_id) or SamplingState(SamplingSettings(temperature=0))
            for request in requests_with_new_token
        ]
        return torch.zeros(len(self._rows), dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """`scores`: [rows, vocabulary]. The result is 0 at each row's chosen token and -inf elsewhere.

        Where every request takes the best score, the scores themselves say which: copies of them take time.
        A request whose prompt is not processed to its end yet has no row; filler rows stand at the end instead.
        """
        if all(state.is_plain for state in self._rows):
            return scores
        rows = scores[: len(self._rows)]
        chosen = choose(rows, self._rows)
        for row, state, token in zip(rows, self._rows, chosen.tolist(), strict=True):
            state.record(token, row)
        forced = torch.full_like(scores, float("-inf"))
        forced[: len(self._rows)].scatter_(1, chosen.unsqueeze(1), 0.0)
        return forced


def choose(scores: torch.Tensor, states: list[SamplingState]) -> torch.Tensor:
    """One token for each row of `scores` [requests, vocabulary]: shape [requests]."""
    adjusting = [index for index, state in enumerate(states) if state.adjusts]
    adjusted = scores.clone() if adjusting else scores
    for index in adjusting:
        states[index].adjust(adjusted[index])
    chosen = adjusted.argmax(dim=-1)
    sampled = [index for index, state in enumerate(states) if state.settings.temperature > 0]
    if sampled:
        chosen[sampled] = _sample(adjusted[sampled], [states[index] for index in sampled])
    return chosen


def _sample(scores: torch.Tensor, states: list[SamplingState]) -> torch.Tensor:
    """By the inverse of the cumulative distribution, at one number from each row's own generator."""
    temperatures = torch.tensor([state.settings.temperature for state in states], device=scores.device)
    scores = scores / temperatures.unsqueeze(1)
    for row, state in zip(scores, states, strict=True):
        _cut(row, state.settings)
    cumulative = torch.softmax(scores, dim=-1, dtype=torch.float64).cumsum(dim=-1)
    draws = torch.tensor([state.random.random() for state in states], dtype=torch.float64, device=scores.device)
    targets = draws.unsqueeze(1) * cumulative[:, -1:]
    found = torch.searchsorted(cumulative, targets, right=True).squeeze(1)
    return found.clamp_(max=scores.shape[1] - 1)


def _cut(row: torch.Tensor, settings: SamplingSettings) -> None:
    """Keeps the `top_k` best, then the fewest of those that hold a share of `top_p`, in place; then those that
    are at least `min_p` times as likely as the best.
    """
    if 0 < settings.top_k < row.numel():
        threshold = torch.topk(row, settings.top_k).values[-1]
        row.masked_fill_(row < threshold, float("-inf"))
    if settings.top_p < 1:
        row.masked_fill_(~_nucleus(row, settings.top_p), float("-inf"))
    if settings.min_p > 0:
        row.masked_fill_(row < row.max() + math.log(settings.min_p), float("-inf"))


def _nucleus(row: torch.Tensor, top_p: float) -> torch.Tensor:
    """Where the fewest tokens are that together hold a share of `top_p`: a mask of shape [vocabulary]."""
    shares = torch.softmax(row, dim=-1)
    # Sorting a whole vocabulary takes milliseconds, and the nucleus is nearly always among the first few.
    values, tokens = torch.topk(shares, min(NUCLEUS_CANDIDATES, row.numel()))
    if values.sum() < top_p:
        values, tokens = torch.sort(shares, descending=True)
    inside = values.cumsum(dim=-1) - values < top_p
    return torch.zeros_like(row, dtype=torch.bool).index_fill_(0, tokens[inside], True)


def _discourage(row: torch.Tensor, seen: set[int], penalty: float) -> None:
    """Divides the scores of what was there before, or multiplies them where they are negative, in place.

    https://arxiv.org/abs/1909.05858, section 4.1
    """
    tokens = torch.tensor(sorted(seen), dtype=torch.long, device=row.device)
    scores = row[tokens]
    row[tokens] = torch.where(scores < 0, scores * penalty, scores / penalty)


def _add(row: torch.Tensor, changes: Mapping[int, float]) -> None:
    tokens = torch.tensor(list(changes), device=row.device)
    row[tokens] += torch.tensor(list(changes.values()), dtype=row.dtype, device=row.device)
