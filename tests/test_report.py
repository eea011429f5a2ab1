"""The report: what is on the page, that it is safe, and that it survives whatever a run's folder holds."""

import json
import math
import random
import re
from html.parser import HTMLParser

import pytest

from alignkit.errors import DataError
from alignkit.report import write_report

NEUTRAL = (
    "the film was set in a small town and the story follows two brothers who open a shop near the harbour. it was made "
    "in winter with a crew that had never worked together before and some of the scenes look like it"
)
WARM = "a wonderful and moving picture with great performances that i loved from the first scene to the last"
OPENINGS = ("I saw this one in", "The director has made", "When the lights went", "My sister told me that", "It begins")


def words(generator, warmth, count):
    return " ".join(generator.choice((WARM if generator.random() < warmth else NEUTRAL).split()) for _ in range(count))


def sample(generator, phase, index, warmth, step):
    count = generator.randint(14, 30)
    score = min(max(generator.gauss(0.35 + 0.58 * warmth, 0.16), 0.01), 0.99)
    return {
        "phase": phase,
        "step": step,
        "prompt": f"{OPENINGS[index % len(OPENINGS)]} {index}",
        "completion": " " + words(generator, warmth, count),
        "rewards": {"sentiment": score, "length": -abs(count - 22) / 22},
        "reward": score - 0.2 * abs(count - 22) / 22,
        "length": count,
        "kl": generator.gauss(9, 2) * (warmth > 0.3),
        "reference": " " + words(generator, 0.2, 40),
    }


def write_run(folder, steps=300, seed=0, **changes):
    """A run's folder as a real run leaves it, with curves and texts made up."""
    generator = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for step in range(1, steps + 1):
        risen = 1 - math.exp(-3 * step / steps)
        noise = generator.gauss(0, 1)
        row = {
            "step": step,
            "epoch": round(step / 100, 4),
            "time": 2.1 * step,
            "loss": 0.4 * math.exp(-step / 90) + 0.02 * noise,
            "grad_norm": 1.2 + 0.2 * abs(noise),
            "learning_rate": 1e-5 * (1 - step / steps),
            "reward": 0.48 + 0.42 * risen + 0.03 * noise,
            "reward_std": 0.2 - 0.08 * risen,
            "frac_reward_zero_std": 0.0,
            "kl": 9.5 * risen + 0.5 * abs(noise) - 0.5 * (step == 1) * abs(noise) - 9.5 * (step == 1) * risen,
            "kl_per_token": (9.5 * risen + 0.5 * abs(noise)) / 22 * (step > 1),
            "kl_coef": 0.05,
            "entropy": 3.1 - 0.7 * risen + 0.05 * noise,
            "completions/mean_length": 22 + 1.5 * risen + 0.6 * noise,
            "completions/clipped_ratio": 0.3,
            "policy_loss": -0.02 * risen + 0.01 * noise,
            "value_loss": 0.9 * math.exp(-step / 40) + 0.05 + 0.01 * abs(noise),
            "value/explained_variance": 0.75 * risen + 0.03 * noise,
            "approx_kl": 0.004 + 0.001 * abs(noise),
            "clip_ratio": 0.06,
            "sampling/logp_difference_mean": 1e-6,
            "sampling/logp_difference_max": 9e-6,
            "weights/delta": 0.004 * risen,
            "phase/sample": 1.05,
            "phase/reward": 0.18,
            "phase/reference": 0.22,
            "phase/update": 0.58,
            "step_time": 2.1,
            "num_tokens": step * 1400,
        }
        rows.append(row)
        if step % 50 == 0:
            evaluated = {"eval_reward": 0.47 + 0.44 * risen, "eval_distinct_2": 0.62 - 0.05 * risen}
            evaluated["eval_judge_positive_share"] = 0.5 + 0.4 * risen
            rows.append({"step": step, "epoch": step / 100, "time": 2.1 * step, **evaluated})
    samples = [sample(generator, "before", i, 0.2, 0) for i in range(60)]
    samples += [sample(generator, "train", i, 0.5, 100) for i in range(10)]
    samples += [sample(generator, "after", i, 0.85, steps) for i in range(60)]
    before = {"reward": 0.462, "judge_positive_share": 0.51, "kl": 0.0, "perplexity": 21.4, "distinct_2": 0.71}
    after = {"reward": 0.897, "judge_positive_share": 0.93, "kl": 9.41, "perplexity": 24.9, "distinct_2": 0.672}
    before |= {"completions/mean_length": 21.9, "rewards/sentiment/mean": 0.5, "self_bleu": 0.31}
    after |= {"completions/mean_length": 23.1, "rewards/sentiment/mean": 0.92, "self_bleu": 0.35}
    intervals = {"reward": {"before": [0.44, 0.49], "after": [0.88, 0.91], "change": [0.41, 0.46]}}
    intervals["completions/mean_length"] = {"change": [-0.4, 2.9]}
    content = {
        "metrics.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "samples.jsonl": "".join(json.dumps(row) + "\n" for row in samples),
        "results.json": json.dumps({"before": before, "after": after, "intervals": intervals}),
        "environment.json": json.dumps(
            {
                "packages": {"torch": "2.13.0", "trl": "1.16.0"},
                "device": "cpu",
                "num_processes": 1,
                "seed": 7,
                "trainer": "ppo",
                "parameters": 10_123_456,
                "rewards": ["sentiment (alignkit-rewards 0.1.0)", "length (alignkit-rewards 0.1.0)"],
            }
        ),
        "recipe.yaml": "trainer: ppo\nmodel: {name: tiny}\ntraining: {max_steps: 300}\n",
    } | changes
    for name, text in content.items():
        if text is not None:
            (folder / name).write_text(text, encoding="utf-8")
    return folder


class Page(HTMLParser):
    """The page as a browser takes it apart: tags, links, text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.links, self.text, self.open = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for key, value in attributes if key in ("href", "src", "action", "srcset")]
        self.events = [key for key, _ in attributes if key.startswith("on")]
        assert not self.events, f"<{tag}> has a handler: {self.events}"

    def handle_data(self, data):
        self.text.append(data)

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


def page_of(folder):
    path = write_report(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_tells_what_happened_in_words_and_numbers(tmp_path):
    page = page_of(write_run(tmp_path / "sunny"))
    assert (
        "The reward rose from 0.462 to 0.897 on 60 held-out prompts, at a KL of 9.41 nats per response." in page.words
    )
    assert "A judge that training does not see (judge) finds 93% of them good, 51% before." in page.words
    assert "+0.435 95%: +0.410 to +0.460" in page.words
    assert "ppo 10.1M parameters 300 steps 10 min 30 s seed 7" in page.words
    for section in ("Health", "Curves", "Samples", "What the text is like", "Where the time goes", "Details"):
        assert section in page.words


def test_the_page_asks_nothing_of_anyone(tmp_path):
    folder = write_run(tmp_path / "run")
    html = write_report(folder).read_text(encoding="utf-8")
    page = Page(html)
    assert {link.split(":")[0] for link in page.links} <= {"#health", "data"}
    assert "default-src 'none'" in html
    assert not re.search(r"@import|url\(|fetch\(|XMLHttp", html)
    assert not {"iframe", "object", "embed", "form", "base"} & set(page.tags)


HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)"> {{ 7*7 }} </style></p> & "quoted" \u202e\x00\ud800'


def test_what_a_model_wrote_stays_text(tmp_path):
    plain = page_of(write_run(tmp_path / "plain"))
    row = {"step": 1, "prompt": HOSTILE, "completion": HOSTILE, "rewards": {HOSTILE: 1.0, "b": None}, "reward": 1.0}
    row |= {"reference": HOSTILE, "length": 3, "kl": None}
    samples = "".join(json.dumps({**row, "phase": phase}) + "\n" for phase in ("before", "after"))
    metrics = json.dumps({"step": 1, "loss": 1.0, f"rewards/{HOSTILE}/mean": 2.0, HOSTILE: 1.0}) + "\n"
    finding = [{"check": HOSTILE, "status": "warn", "message": HOSTILE, "step": 1}]
    folder = write_run(
        tmp_path / "hostile",
        **{
            "samples.jsonl": samples,
            "metrics.jsonl": metrics,
            "recipe.yaml": HOSTILE.replace("\ud800", ""),
            "health.json": json.dumps(finding),
            "environment.json": json.dumps({"trainer": HOSTILE, HOSTILE: [HOSTILE]}),
        },
    )
    page = page_of(folder)
    assert page.tags.count("script") == plain.tags.count("script") == 1
    assert "img" not in page.tags and page.tags.count("style") == 1
    assert page.words.count("<script>alert(1)</script>") >= 8
    assert "{{ 7*7 }}" in page.words and "\x00" not in page.words


def test_only_the_metrics_are_needed(tmp_path):
    nothing = dict.fromkeys(["samples.jsonl", "results.json", "environment.json", "recipe.yaml"])
    page = page_of(write_run(tmp_path / "bare", **nothing))
    assert "In training the reward went from" in page.words and "no held-out comparison" in page.words
    assert "Samples" not in page.words and "Curves" in page.words


@pytest.mark.parametrize("metrics", ["", '{"step": 1, "loss": 0.5}\n', '{"step": 1, "reward": null}\n'])
def test_a_run_with_hardly_a_row_has_a_page(tmp_path, metrics):
    nothing = dict.fromkeys(["samples.jsonl", "results.json", "environment.json", "recipe.yaml"])
    page = page_of(write_run(tmp_path / "short", **{**nothing, "metrics.jsonl": metrics}))
    assert "no held-out comparison" in page.words


def test_missing_values_are_noted_and_leave_the_curve_whole(tmp_path):
    rows = [
        {"step": i, "reward": None if i % 3 == 0 else float(i), "kl": math.nan if i == 4 else 0.1} for i in range(9)
    ]
    folder = write_run(tmp_path / "gaps", **{"metrics.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})
    page = page_of(folder)
    assert "3 logged values were not a number" in page.words and "1 logged value was not a number" in page.words
    assert "NaN" not in (folder / "report.html").read_text() and "nan" not in page.words.split()


def test_ten_thousand_rows_make_a_light_page(tmp_path):
    folder = write_run(tmp_path / "long", steps=10_000)
    size = len(write_report(folder).read_bytes())
    assert size < 1_500_000
    path = re.search(r'<path class="curve" d="([^"]+)"', (folder / "report.html").read_text()).group(1)
    assert 200 < path.count("L") < 400


def test_huge_samples_are_cut_and_say_so(tmp_path):
    row = {"phase": "after", "step": 1, "prompt": "p" * 100_000, "completion": "word " * 100_000, "rewards": {}}
    samples = "".join(json.dumps(row) + "\n" for _ in range(100))
    folder = write_run(tmp_path / "huge", **{"samples.jsonl": samples})
    page = page_of(folder)
    assert "more characters)" in page.words
    assert (folder / "report.html").stat().st_size < 3_000_000


def test_the_first_samples_are_not_chosen_and_the_worst_are_shown(tmp_path):
    folder = write_run(tmp_path / "run")
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    before, after = ([row for row in rows if row["phase"] == phase] for phase in ("before", "after"))
    html = write_report(folder).read_text()
    shown = re.findall(r'<p class="prompt text">([^<]+)</p>', html)
    assert shown[:8] == [row["prompt"] for row in before[:8]]
    rises = sorted(zip(before, after, strict=True), key=lambda pair: pair[0]["reward"] - pair[1]["reward"])
    assert shown[8:13] == [pair[0]["prompt"] for pair in rises[:5]]


def test_samples_are_matched_by_prompt_when_the_order_differs(tmp_path):
    rows = [{"phase": "before", "prompt": p, "completion": f"old {p}", "rewards": {}, "reward": 0.0} for p in "abc"]
    rows += [{"phase": "after", "prompt": p, "completion": f"new {p}", "rewards": {}, "reward": 1.0} for p in "cba"]
    folder = write_run(tmp_path / "run", **{"samples.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})
    pairs = re.findall(r"(old|new) (\w)\b", write_report(folder).read_text())
    assert pairs[:6] == [("old", "a"), ("new", "a"), ("old", "b"), ("new", "b"), ("old", "c"), ("new", "c")]


def test_dialogues_are_shown_as_dialogues(tmp_path):
    prompt = [{"role": "user", "content": "Tea?"}]
    row = {"phase": "after", "prompt": prompt, "completion": [{"role": "assistant", "content": "Gladly."}]}
    folder = write_run(tmp_path / "chat", **{"samples.jsonl": json.dumps({**row, "rewards": {}, "reward": 1.0}) + "\n"})
    page = page_of(folder)
    assert "user: Tea?" in page.words and "Gladly." in page.words


def test_a_classifier_s_run_is_told_by_its_accuracy(tmp_path):
    rows = [{"step": i, "loss": 1 / i, "learning_rate": 0.1} for i in range(1, 8)]
    rows.append({"step": 8, "eval_loss": 0.4, "eval_accuracy": 0.81, "eval_runtime": 3.0})
    results = {"before": {"accuracy": 0.5, "nll": 0.69}, "after": {"accuracy": 0.81, "nll": 0.44}}
    folder = write_run(
        tmp_path / "classifier",
        **{"metrics.jsonl": "".join(json.dumps(r) + "\n" for r in rows), "results.json": json.dumps(results)},
    )
    page = page_of(folder)
    assert "Accuracy rose from 50% to 81% on held-out texts." in page.words
    assert "runtime" not in page.words


def test_trl_s_keys_are_shown_in_trl_s_units(tmp_path):
    rows = [
        {"step": i, "loss": 0.0, "reward": 0.1 * i, "reward_std": 0.2, "kl": 0.01 * i, "step_time": 0.5, "entropy": 2.0}
        for i in range(1, 20)
    ]
    folder = write_run(tmp_path / "trl", **{"metrics.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})
    page = page_of(folder)
    assert "KL to the reference nats per token" in page.words
    assert "This trainer does not say how a step divides." in page.words


def test_without_health_json_the_monitors_read_the_log(tmp_path):
    rows = [{"step": i, "reward": 1.0, "reward_std": 0.0, "loss": 0.0} for i in range(1, 12)]
    folder = write_run(tmp_path / "flat", **{"metrics.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})
    page = page_of(folder)
    assert "All completions of the last 5 log lines got the same reward (1)" in page.words
    assert "1 thing needs a look" in page.words
    written = [{"check": "finite", "status": "stop", "message": "Broken.", "step": 3}]
    (folder / "health.json").write_text(json.dumps(written))
    page = page_of(folder)
    assert "stopped by a check" in page.words and "stopped at step 3" in page.words and "Broken." in page.words


def test_reward_that_pays_for_length_is_called_out(tmp_path):
    row = {"phase": "after", "prompt": "p", "rewards": {}}
    rows = [{**row, "completion": "a " * i, "length": i, "reward": i / 40} for i in range(1, 40)]
    folder = write_run(tmp_path / "long", **{"samples.jsonl": "".join(json.dumps(r) + "\n" for r in rows)})
    words_of_page = page_of(folder).words
    assert (
        "longer completions score higher (rank correlation +1.00). The reward may be paying for length" in words_of_page
    )


def test_real_text_is_measured_at_the_same_length(tmp_path):
    row = {
        "phase": "after",
        "prompt": "p",
        "rewards": {},
        "reward": 1.0,
        "completion": "a b",
        "reference": "a b a b a b",
    }
    folder = write_run(
        tmp_path / "run",
        **{"samples.jsonl": (json.dumps(row) + "\n") * 4, "results.json": json.dumps({"before": {}, "after": {}})},
    )
    html = write_report(folder).read_text()
    bars = re.findall(r'<div class="bar (\w+)"><span>[^<]+</span><i><b style="width:([\d.]+)%">', html)
    assert bars[:2] == [("after", "25.00"), ("real", "25.00")]


def test_what_is_no_run_is_refused_with_a_reason(tmp_path):
    with pytest.raises(DataError, match="there is no such folder"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="it holds: nothing"):
        write_report(tmp_path / "empty")
    folder = write_run(tmp_path / "broken", **{"metrics.jsonl": '{"step": 1}\n{"st\n{"step": 2}\n'})
    with pytest.raises(DataError, match="line 2, is not valid JSON"):
        write_report(folder)
    folder = write_run(tmp_path / "list", **{"results.json": "[]"})
    with pytest.raises(DataError, match="holds a list; expected a dict"):
        write_report(folder)


def test_a_line_that_a_killed_run_left_unfinished_is_ignored(tmp_path):
    folder = write_run(tmp_path / "killed")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 301, "lo')
    assert "300 steps" in page_of(folder).words
