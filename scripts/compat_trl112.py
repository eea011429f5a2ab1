"""Trains the PPOTrainer that TRL had until 1.12 with rewards of ours, and holds the migration page against it.

    make compat

It runs in an environment of its own, with trl 1.12.0 (see the Makefile), and fails when

- what that trainer's `get_reward` reads differs from what the reward says of the decoded texts,
- a reward does not rise: a weighted sum of two plain ones, and a classifier that was trained from scratch,
- `docs/migrate-from-trl-ppo.md` leaves out a setting, an argument or a logged figure of that trainer.
"""

import contextlib
import copy
import dataclasses
import gc
import inspect
import io
import random
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, PreTrainedModel, TrainingArguments
from trl.experimental.ppo import PPOConfig, PPOTrainer
from trl.experimental.utils import get_reward

from alignkit import as_trl_reward_model, load_reward
from alignkit.models.tiny import tiny_causal_lm, tiny_classifier, tiny_tokenizer

PAGE = Path(__file__).resolve().parents[1] / "docs" / "migrate-from-trl-ppo.md"
TOKENIZER = tiny_tokenizer()
KIND = ["brilliant", "fine", "good", "great", "loved", "superb", "wonderful"]
UNKIND = ["awful", "bad", "boring", "dull", "hated", "poor", "terrible"]
PROMPTS = ["the movie is", "this story was", "i", "a film of"]
UPDATES, EDGE, BATCH, HELD_OUT = 24, 4, 32, 8
RISE = 0.2


class Recorded:
    """A reward that keeps what it was asked and what it answered."""

    def __init__(self, reward: Any):
        self.reward, self.__name__ = reward, reward.__name__
        self.asked: list[tuple[str, str, float]] = []

    def __call__(self, prompts: list, completions: list, **columns: Any) -> list[float]:
        """The answers of the reward inside."""
        scores = self.reward(prompts=prompts, completions=completions, **columns)
        self.asked += zip(prompts, completions, scores, strict=True)
        return scores


def check_scores(reward: Any) -> int:
    """Compares TRL's own `get_reward` with the reward called on texts; returns the number of rows compared."""
    generator, compared = random.Random(0), 0
    words = sorted(set(TOKENIZER.get_vocab()) - set(TOKENIZER.all_special_tokens))
    for side in ("left", "right"):
        for pad in (TOKENIZER.pad_token_id, TOKENIZER.eos_token_id):
            asked = [generator.choices(words, k=generator.randint(1, 6)) for _ in range(16)]
            answers = [generator.choices(words, k=generator.randint(0, 7)) for _ in range(16)]
            width, longest = max(map(len, asked)), max(map(len, answers)) + 1
            rows = []
            for question, answer in zip(asked, answers, strict=True):
                ids, reply = TOKENIZER.convert_tokens_to_ids(question), TOKENIZER.convert_tokens_to_ids(answer)
                gap, reply = [pad] * (width - len(ids)), [*reply, TOKENIZER.eos_token_id]
                rows.append((gap + ids if side == "left" else ids + gap) + reply + [pad] * (longest - len(reply)))
            _, scores, _ = get_reward(as_trl_reward_model(reward, TOKENIZER), torch.tensor(rows), pad, width)
            texts = [" ".join(question) for question in asked], [" ".join(answer) for answer in answers]
            expected = torch.tensor(reward(prompts=texts[0], completions=texts[1]))
            torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
            compared += len(rows)
    return compared


def trained_classifier() -> PreTrainedModel:
    """A tiny classifier, taught from scratch whether a text has more kind words or more unkind ones."""
    generator, classifier = random.Random(0), tiny_classifier()
    words = sorted(set(TOKENIZER.get_vocab()) - set(TOKENIZER.all_special_tokens))
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3)
    classifier.train()
    for _ in range(120):
        texts = [generator.choices(words, k=generator.randint(1, 8)) for _ in range(64)]
        balance = [sum(word in KIND for word in text) - sum(word in UNKIND for word in text) for text in texts]
        kept = [(" ".join(text), int(surplus > 0)) for text, surplus in zip(texts, balance, strict=True) if surplus]
        batch = TOKENIZER([text for text, _ in kept], return_tensors="pt", padding=True, padding_side="right")
        batch.pop("token_type_ids", None)
        loss = classifier(**batch, labels=torch.tensor([label for _, label in kept])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return classifier.eval()


def train(reward: Any) -> list[dict[str, float]]:
    """Trains TRL 1.12's own trainer on the reward; returns its log, each score in it compared with the reward's."""
    torch.manual_seed(0)
    recorded = Recorded(reward)
    policy = tiny_causal_lm(layers=1)
    one_output = copy.deepcopy(policy.config)
    one_output.num_labels = 1
    critic = AutoModelForSequenceClassification.from_config(one_output)
    data = Dataset.from_list([{"input_ids": TOKENIZER(PROMPTS[i % len(PROMPTS)])["input_ids"]} for i in range(64)])
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        settings = PPOConfig(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=1,
            local_rollout_forward_batch_size=BATCH // 2,
            total_episodes=BATCH * UPDATES,
            num_ppo_epochs=2,
            response_length=8,
            stop_token="eos",
            temperature=1.0,
            learning_rate=1e-2,
            num_sample_generations=1,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
        )
        trainer = PPOTrainer(
            args=settings,
            processing_class=TOKENIZER,
            model=policy,
            ref_model=None,
            reward_model=as_trl_reward_model(recorded, TOKENIZER, no_opinion=0.0),
            train_dataset=data,
            eval_dataset=data.select(range(HELD_OUT)),
            value_model=critic,
        )
        trainer.train()
    unknown = {prompt for prompt, _, _ in recorded.asked} - set(PROMPTS)
    assert not unknown, f"the reward saw prompts that are not in the data: {sorted(unknown)[:3]}"
    answers = [score or 0.0 for _, _, score in recorded.asked]
    del answers[BATCH : BATCH + HELD_OUT]  # the samples that it shows after the first update
    history = [row for row in trainer.state.log_history if "objective/scores" in row]
    seen = torch.tensor([row["objective/scores"] for row in history])
    torch.testing.assert_close(seen, torch.tensor(answers).view(-1, BATCH).mean(1), rtol=1e-4, atol=1e-5)
    return history


def gaps_in_the_page(page: str, logged: set[str]) -> list[str]:
    """What TRL 1.12 has and the migration page does not name, in backticks."""
    own = {field.name for field in dataclasses.fields(PPOConfig)}
    own -= {field.name for field in dataclasses.fields(TrainingArguments)}
    changed = {name for cls in PPOConfig.__mro__ if cls.__module__.startswith("trl.") for name in cls.__annotations__}
    arguments = set(inspect.signature(PPOTrainer).parameters)
    named = set(re.findall(r"`([^`\n]+)`", page))
    return sorted((own | changed | arguments | logged) - named)


def main() -> int:
    """Prints what was found; returns 1 if a reward did not rise or the page has gaps."""
    transformers.logging.set_verbosity_error()
    if trl.__version__ != "1.12.0":
        raise SystemExit(f"this is for trl 1.12.0, found {trl.__version__}; run it as `make compat`")
    parts = [{"use": "lexicon", "lexicon": KIND}, {"use": "length", "target": 3}]
    composed = load_reward("weighted_sum", rewards=parts, weights=[1.0, 0.5])
    network = load_reward("sentiment", model=trained_classifier(), tokenizer=TOKENIZER)
    print(f"get_reward of trl {trl.__version__} reads what the reward says: {check_scores(composed)} rows\n")
    print(f"{'reward':<14} {'updates':>7} {'first':>7} {'last':>7} {'seconds':>8}")
    failed, logged = False, set()
    gc.freeze()  # the trainer collects garbage at every update, and what was imported is none
    for reward in (composed, network):
        start = time.perf_counter()
        history = train(reward)
        logged |= {name for row in history for name in row}
        scores = [row["objective/scores"] for row in history]
        first, last = sum(scores[:EDGE]) / EDGE, sum(scores[-EDGE:]) / EDGE
        rose = len(scores) == UPDATES and last > first + RISE
        failed |= not rose
        mark = "" if rose else f"  did not rise by {RISE}"
        seconds = time.perf_counter() - start
        print(f"{reward.__name__:<14} {len(scores):>7} {first:>7.3f} {last:>7.3f} {seconds:>8.1f}{mark}", flush=True)
    gaps = gaps_in_the_page(PAGE.read_text(encoding="utf-8"), logged - {"step", "epoch"})
    print(f"\n{PAGE.name}: " + (f"does not name {', '.join(gaps)}" if gaps else "names every setting and figure"))
    return int(failed or bool(gaps))


if __name__ == "__main__":
    sys.exit(main())
