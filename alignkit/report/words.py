"""What a key of the log is called on the page, how its numbers are written, and which way is better."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """How to show one metric.

    Attributes:
        label: what people call it.
        unit: behind the label, or empty.
        better: 1 where higher is better, -1 where lower is, 0 where it depends.
        percent: whether it is written as a percentage.
    """

    label: str
    unit: str = ""
    better: int = 0
    percent: bool = False


_FIGURES = {
    "reward": Figure("Reward", better=1),
    "reward_std": Figure("Spread of rewards"),
    "frac_reward_zero_std": Figure("Groups without spread", percent=True),
    "kl": Figure("KL to the reference", "nats per response"),
    "kl_per_token": Figure("KL per token", "nats"),
    "kl_coef": Figure("KL coefficient"),
    "entropy": Figure("Entropy", "nats per token"),
    "completions/mean_length": Figure("Length", "tokens"),
    "completions/min_length": Figure("Shortest completion", "tokens"),
    "completions/max_length": Figure("Longest completion", "tokens"),
    "completions/clipped_ratio": Figure("Cut off at the limit", percent=True),
    "completions/mean_terminated_length": Figure("Length of finished ones", "tokens"),
    "completions/min_terminated_length": Figure("Shortest finished one", "tokens"),
    "completions/max_terminated_length": Figure("Longest finished one", "tokens"),
    "policy_loss": Figure("Policy loss"),
    "value_loss": Figure("Value loss"),
    "value/explained_variance": Figure("Explained variance", "of returns", better=1),
    "value/mean": Figure("Mean value"),
    "returns/mean": Figure("Mean return"),
    "approx_kl": Figure("Move within a rollout", "nats per token"),
    "clip_ratio": Figure("Tokens at the clip", percent=True),
    "value_clip_ratio": Figure("Values at the clip", percent=True),
    "ratio_max": Figure("Largest policy ratio"),
    "weighted_nll": Figure("Weighted likelihood loss", "nats per response"),
    "ess": Figure("Effective sample size", "completions", better=1),
    "ess/share": Figure("Effective share of a prompt's completions", better=1, percent=True),
    "weights/max": Figure("Largest weight of a prompt", percent=True),
    "weights/log_z": Figure("Log of the mean weight", "nats"),
    "log_weights/spread": Figure("Spread of log-weights", "nats"),
    "log_weights/clipped_share": Figure("Weights at the clip", percent=True),
    "ptx_loss": Figure("Ptx loss", "nats per token", better=-1),
    "mle_loss": Figure("MLE loss", "nats per token", better=-1),
    "sampling/logp_difference_mean": Figure("Sampling against scoring, mean", "nats"),
    "sampling/logp_difference_max": Figure("Sampling against scoring, worst", "nats"),
    "weights/delta": Figure("Change of the weights", "of their norm"),
    "loss": Figure("Loss", better=-1),
    "grad_norm": Figure("Gradient norm"),
    "learning_rate": Figure("Learning rate"),
    "num_tokens": Figure("Tokens seen"),
    "step_time": Figure("Time per step", "seconds"),
    "phase/sample": Figure("Sampling", "seconds per step"),
    "phase/reward": Figure("Rewards", "seconds per step"),
    "phase/reference": Figure("Reference", "seconds per step"),
    "phase/update": Figure("Update", "seconds per step"),
    "phase/other": Figure("Everything else", "seconds per step"),
    "perplexity": Figure("Perplexity", "per token", better=-1),
    "reference_perplexity_sampled": Figure("Reference perplexity as sampled", "per token", better=-1),
    "reference_perplexity_resampled": Figure("Reference perplexity as resampled", "per token", better=-1),
    "reference_undrawn": Figure("References that resampling never writes", better=-1, percent=True),
    "distinct_1": Figure("Distinct words", "distinct-1", better=1),
    "distinct_2": Figure("Distinct word pairs", "distinct-2", better=1),
    "distinct_3": Figure("Distinct word triples", "distinct-3", better=1),
    "distinct_2_of_1000": Figure("Distinct of 1,000 word pairs", "distinct-2 at one size", better=1),
    "self_bleu": Figure("Self-BLEU", better=-1),
    "duplicates": Figure("Duplicates", better=-1, percent=True),
    "repetition": Figure("Repetition", "within a text", better=-1),
    "looping": Figure("Looping texts", better=-1, percent=True),
    "words_mean": Figure("Words"),
    "words_std": Figure("Spread of words"),
    "empty": Figure("Empty completions", better=-1, percent=True),
    "bleu": Figure("BLEU", "to the reference", better=1),
    "sentence_bleu": Figure("BLEU of a text", "to its reference", better=1),
    **{f"bleu_{n}": Figure(f"BLEU-{n}", "to all references", better=1) for n in (2, 3, 4, 5)},
    **{f"self_bleu_{n}": Figure(f"Self-BLEU-{n}", better=-1) for n in (2, 3, 4, 5)},
    "rouge_1": Figure("ROUGE-1", "F-measure", better=1),
    "rouge_2": Figure("ROUGE-2", "F-measure", better=1),
    "rouge_l": Figure("ROUGE-L", "F-measure", better=1),
    "oracle_nll": Figure("NLL under the oracle", "nats per word", better=-1),
    "oracle_nll_short": Figure("Shorter than the oracle's", percent=True),
    "oracle_nll_invalid": Figure("None of the oracle's", better=-1, percent=True),
    "two_sample": Figure("Told from people's texts", "AUC of a fresh classifier", better=-1),
    "f1": Figure("F1", better=1),
    "win_rate": Figure("Preferred to references", better=1, percent=True),
    "next_turn": Figure("Simulated user's next turn", better=1),
    "next_turn_se": Figure("Standard error of the next turn"),
    "next_turn_empty": Figure("Empty next turns", better=-1, percent=True),
    "accuracy": Figure("Accuracy", better=1, percent=True),
    "mean_token_accuracy": Figure("Token accuracy", better=1, percent=True),
    "nll": Figure("Negative log-likelihood", "nats", better=-1),
    "brier": Figure("Brier score", better=-1),
    "calibration_error": Figure("Calibration error", better=-1),
    "majority": Figure("Share of the largest class", percent=True),
    "baseline": Figure("Accuracy of the baseline", percent=True),
    "temperature": Figure("Temperature of the scaling"),
}
_TRL_KL = Figure("KL to the reference", "nats per token")


def figure_of(key: str, per_token_kl: bool = False) -> Figure:
    """How to show a key, `eval_` in front or not.

    Args:
        key: as logged.
        per_token_kl: TRL's own trainers log `kl` per token, alignkit's per response.
    """
    name = key.removeprefix("eval_")
    if name == "kl" and per_token_kl:
        return _TRL_KL
    if name in _FIGURES:
        return _FIGURES[name]
    if name.startswith("rewards/") and name.endswith("/mean"):
        return Figure(f"Reward: {name[len('rewards/') : -len('/mean')]}", better=1)
    if name.startswith("rewards/") and name.endswith("/std"):
        return Figure(f"Spread: {name[len('rewards/') : -len('/std')]}")
    if name.endswith("_positive_share"):
        return Figure(f"Positive share: {name.removesuffix('_positive_share')}", better=1, percent=True)
    if name.endswith("_perplexity"):
        return Figure(name.replace("_", " "), "per token", better=-1)
    if name.endswith("_margin"):
        return Figure(f"Above references: {name.removesuffix('_margin')}", better=1)
    if name.endswith("_gain"):
        return Figure(f"Gain of people's texts: {name.removesuffix('_gain')}", "nats a text")
    if name.endswith("_std"):
        return Figure(f"Spread: {name.removesuffix('_std')}")
    return Figure(name)


def written(value: float | None, percent: bool = False) -> str:
    """A number for the page: three digits, a true minus sign, a dash where there is none.

    >>> written(0.51234), written(-12.345), written(0.934, percent=True), written(None), written(12345.6)
    ('0.512', '−12.3', '93%', '–', '12,346')
    """
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0%" if percent else "0"
    if percent:
        share = 100 * value
        text = f"{share:.1f}%" if 0 < abs(share) < 10 or 99 < share < 100 else f"{share:.0f}%"
    else:
        size = abs(value)
        if size and (size < 1e-3 or size >= 1e7):
            text = f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
        else:
            text = f"{value:,.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3}f}"
    return text.replace("-", "−")


def signed(value: float, percent: bool = False) -> str:
    """A change: its sign is always there; percentages change by points.

    >>> signed(0.25), signed(-0.0312, percent=True)
    ('+0.250', '−3.1 points')
    """
    if value == 0:
        return "±0"
    text = written(value, percent).replace("%", " points")
    return text if value < 0 else f"+{text}"


def span(seconds: float) -> str:
    """A duration for the page.

    >>> span(0.034), span(4.2), span(250), span(8000)
    ('34 ms', '4.2 s', '4 min 10 s', '2 h 13 min')
    """
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
