"""What the metrics here share: an `evaluate.Metric` that takes text, stays in memory and needs no network."""

from typing import Any

import evaluate
from datasets import Features, Value


class TextMetric(evaluate.Metric):
    """An `evaluate.Metric` over texts: `metric.compute(predictions=[...], prompts=[...], columns={...})`.

    A subclass writes `_compute(self, predictions, **)` and names there what else it wants: `prompts` (strings or
    message lists), `completions` (the predictions as the trainer has them: strings or message lists), `columns`
    (further columns of the data, a list each). It returns floats under keys that say what they are.

    A metric that scores each completion on its own leaves in `row_scores` what its last `compute` found: a key of its
    figures -> a score for each prediction, None where there is none. `alignkit.evaluation.evaluate_rows` puts them into
    the rows, under `metrics`, unless `per_row` is off: what a reward says that the run is trained on is no judge's
    opinion, which is what comparisons take the rows' metrics for.

    Unlike `evaluate.load`, constructing it fetches no script, so it works offline; and it writes no cache file.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**{"keep_in_memory": True, **kwargs})
        self.row_scores: dict[str, list[float | None]] = {}
        self.per_row = True

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=(type(self).__doc__ or "").strip(),
            citation="",
            inputs_description="",
            features=Features({"predictions": Value("string")}),
        )
