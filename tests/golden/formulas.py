"""The losses' formulas as their papers have them, in plain Python, on sums of log-probabilities per answer.

Usage: ``mean([PAIR_LOSSES["ipo"](pair, beta=0.1) for pair in pairs])``
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

__all__ = ["PAIR_LOSSES", "SORTED_LOSSES", "Pair", "dpo", "kto", "odds_ratio", "sigmoid", "simpo"]


@dataclass(frozen=True)
class Pair:
    """Log-probabilities of a pair's answers under policy and reference, and their lengths in tokens."""

    chosen: float
    rejected: float
    chosen_start: float
    rejected_start: float
    chosen_tokens: int
    rejected_tokens: int

    @property
    def won(self) -> float:
        """How much likelier the chosen answer has become, in nats."""
        return self.chosen - self.chosen_start

    @property
    def lost(self) -> float:
        """How much likelier the rejected answer has become."""
        return self.rejected - self.rejected_start

    @property
    def margin(self) -> float:
        """The difference of the two."""
        return self.won - self.lost

    @property
    def margin_of_means(self) -> float:
        """The difference of the two, each per token."""
        return self.won / self.chosen_tokens - self.lost / self.rejected_tokens


def sigmoid(x: float) -> float:
    """The logistic function."""
    return 1 / (1 + math.exp(-x))


def surprise(x: float) -> float:
    """-log sigmoid(x)."""
    return math.log1p(math.exp(-x))


def robust(pair: Pair, beta: float, smoothing: float) -> float:
    """rDPO, arXiv 2403.00409, eq. 6: the loss that is unbiased where a share of the labels is wrong."""
    right, wrong = surprise(beta * pair.margin), surprise(-beta * pair.margin)
    return ((1 - smoothing) * right - smoothing * wrong) / (1 - 2 * smoothing)


def exo(pair: Pair, beta: float, smoothing: float) -> float:
    """EXO, arXiv 2402.00856, eq. 16: KL of the policy's preference to the labels'."""
    better = sigmoid(beta * pair.margin)
    return better * math.log(better / (1 - smoothing)) + (1 - better) * math.log((1 - better) / smoothing)


def discopop(pair: Pair, beta: float, smoothing: float) -> float:
    """DiscoPOP, arXiv 2406.08414, eq. 5, with its temperature of 0.05."""
    x = beta * pair.margin
    share = sigmoid(x / 0.05)
    return (1 - share) * surprise(x) + share * math.exp(-x)


# Of one pair; TRL takes the mean over the pairs of a batch.
PAIR_LOSSES: dict[str, Callable[[Pair, float, float], float]] = {
    "sigmoid": lambda p, beta, _: surprise(beta * p.margin),  # arXiv 2305.18290, eq. 7
    "sigmoid_norm": lambda p, beta, _: surprise(beta * p.margin_of_means),  # arXiv 2411.15124
    "hinge": lambda p, beta, _: max(0.0, 1 - beta * p.margin),  # arXiv 2305.10425
    "ipo": lambda p, beta, _: (p.margin_of_means - 1 / (2 * beta)) ** 2,  # arXiv 2310.12036, eq. 17, per token
    "robust": robust,
    "exo_pair": exo,
    # NCA, arXiv 2402.05369.
    "nca_pair": lambda p, beta, _: surprise(beta * p.won) + (surprise(-beta * p.won) + surprise(-beta * p.lost)) / 2,
    # The quality loss of MPO, arXiv 2411.10442, without BCO's running shift.
    "bco_pair": lambda p, beta, _: surprise(beta * p.won) + surprise(-beta * p.lost),
    # SPPO, arXiv 2405.00675, eq. 4.7, the winner's probability being 1.
    "sppo_hard": lambda p, beta, _: (p.won - 1 / (2 * beta)) ** 2 + (p.lost + 1 / (2 * beta)) ** 2,
    "apo_zero": lambda p, beta, _: 1 - sigmoid(beta * p.won) + sigmoid(beta * p.lost),  # arXiv 2408.06266, eq. 7
    "apo_down": lambda p, beta, _: sigmoid(beta * p.won) + 1 - sigmoid(beta * p.margin),  # eq. 8
    "discopop": discopop,
}


def sft(pairs: Sequence[Pair], beta: float, smoothing: float) -> float:
    """The likelihood of the chosen answers, per token of the batch."""
    return -sum(pair.chosen for pair in pairs) / sum(pair.chosen_tokens for pair in pairs)


def aot(pairs: Sequence[Pair], beta: float, smoothing: float) -> float:
    """AOT, arXiv 2406.05882: sorted log-ratios of the policy against sorted ones of the reference."""
    policy = sorted(pair.chosen - pair.rejected for pair in pairs)
    reference = sorted(pair.chosen_start - pair.rejected_start for pair in pairs)
    return fmean(smoothed(beta * (one - other), smoothing) for one, other in zip(policy, reference, strict=True))


def aot_unpaired(pairs: Sequence[Pair], beta: float, smoothing: float) -> float:
    """AOT on unpaired answers: sorted gains of the chosen against sorted gains of the rejected."""
    won, lost = sorted(pair.won for pair in pairs), sorted(pair.lost for pair in pairs)
    return fmean(smoothed(beta * (one - other), smoothing) for one, other in zip(won, lost, strict=True))


def smoothed(x: float, smoothing: float) -> float:
    """-log sigmoid(x), where a share of the labels is taken the other way round."""
    return (1 - smoothing) * surprise(x) + smoothing * surprise(-x)


# Of a whole batch.
SORTED_LOSSES = {"sft": sft, "aot": aot, "aot_unpaired": aot_unpaired}


def dpo(name: str, pairs: Sequence[Pair], *, beta: float = 0.1, smoothing: float = 0.0) -> float:
    """One of DPO's losses over a batch of pairs."""
    if name in SORTED_LOSSES:
        return SORTED_LOSSES[name](pairs, beta, smoothing)
    return fmean(PAIR_LOSSES[name](pair, beta, smoothing) for pair in pairs)


def kto(
    gains: Sequence[tuple[float, bool]], *, kl: float, beta: float = 0.1, desirable: float = 1.0, other: float = 1.0
) -> float:
    """KTO, arXiv 2402.01306, eq. 7.

    Args:
        gains: per answer, how much likelier it has become, and whether it is a desirable one.
        kl: how much likelier answers to other prompts have become, on average; a divergence is never below 0.
        beta: the loss's temperature.
        desirable: weight of desirable answers.
        other: weight of the others.
    """
    zero = max(0.0, kl)
    return fmean(
        desirable * (1 - sigmoid(beta * (gain - zero))) if good else other * (1 - sigmoid(beta * (zero - gain)))
        for gain, good in gains
    )


def odds_ratio(chosen: float, rejected: float) -> float:
    """ORPO's term, arXiv 2403.07691, eq. 6 and 7, from mean log-probabilities per token."""
    odds = [math.exp(one) / (1 - math.exp(one)) for one in (chosen, rejected)]
    return surprise(math.log(odds[0] / odds[1]))


def simpo(chosen: float, rejected: float, *, beta: float, gamma: float, smoothing: float = 0.0) -> float:
    """SimPO, arXiv 2405.14734, eq. 6, from mean log-probabilities per token."""
    return smoothed(beta * (chosen - rejected) - gamma, smoothing)
