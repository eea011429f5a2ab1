"""Speed and memory of Monte Carlo tree search, for docs/decoding.md.

    python benchmarks/decoding.py                         every case, one row of the table each
    python benchmarks/decoding.py --only reference kept   some of them
    python benchmarks/decoding.py --new-tokens 32 --rounds 3
    python benchmarks/decoding.py --policy runs/X --discriminator runs/Y/rewards/discriminator

The policy is model S of `make bench` (four layers of width 256, 8192 words) with random weights, its last norm scaled
so that the likeliest next word has a probability of about one half, as in a model that is fit for its task: a flat
policy would leave no subtree to keep. The reward is a token classifier of the same shape, also random. 8 prompts of 24
to 32 tokens, 50 simulations, 50 children, exploration 8. `--policy` and `--discriminator` take trained ones, which
write questions on the first 8 rows of SQuAD's validation part.

`reference` is the same search as one would first write it, prompts in one batch: at every simulation the whole text of
every leaf is read anew by both models, and each token begins with an empty tree. All cases but the last two make the
same search; each row says how many of its tokens are those of the first. Times are those of the process (one thread),
so that other work on the machine does not count; `models` is the share spent inside the two models.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from job import PAD, SEED, SIZES, Job, model, prompts, tokenizer
from transformers import BertConfig, BertForSequenceClassification, GPT2ForTokenClassification

from alignkit import MCTS, load_reward
from alignkit.data import load_data
from alignkit.decoding.generation import generation_config_for
from alignkit.decoding.prompts import encode_prompts, pad_left
from alignkit.models.loading import load_causal_or_seq2seq, load_tokenizer
from alignkit.models.tree import TreeReader

BATCH, SIMULATIONS, CHILDREN, EXPLORATION = 8, 50, 50, 8.0
PEAK = 8.0  # the last norm's weight; see `likeliest`
MIB = 2**20


class Discriminator:
    """A token classifier as a reward: the probability at the last token of what was written so far."""

    __name__ = "discriminator"

    def __init__(self, classifier: Any, words: Any):
        self.classifier, self.words = classifier, words
        self.reader: TreeReader | None = None

    def __call__(self, prompts: list, completions: list, completion_ids: list, **columns: Any) -> list[float]:
        """Whole texts."""
        encoded = encode_prompts(self.words, prompts)
        return self.read([[*p, *c] for p, c in zip(encoded, completion_ids, strict=True)])

    @torch.no_grad()
    def read(self, texts: list[list[int]]) -> list[float]:
        """Token ids, read as a whole."""
        return _last(self.classifier, texts)[:, 0].sigmoid().tolist()

    def begin(self, prompts: list, processing_class: Any, columns: Any) -> "Discriminator":
        """Beginnings, token by token."""
        self.reader = TreeReader.of(self.classifier, *pad_left(encode_prompts(self.words, prompts), PAD))
        return self

    def extend(self, parents: Any, tokens: Any) -> list[float]:
        """Scores of new nodes."""
        assert self.reader is not None
        return self.reader.extend(parents, tokens)[:, 0].sigmoid().tolist()

    def keep(self, nodes: Any) -> None:
        """Forget the others."""
        assert self.reader is not None
        self.reader.keep(nodes)


class Bidirectional:
    """A sequence classifier that reads prompt and completion as text, whole, every time."""

    __name__ = "bidirectional"

    def __init__(self, classifier: Any, words: Any):
        self.classifier, self.words = classifier, words

    @torch.no_grad()
    def __call__(self, prompts: list, completions: list, **columns: Any) -> list[float]:
        """Scores of texts."""
        texts = [f"{prompt} {completion}" for prompt, completion in zip(prompts, completions, strict=True)]
        read = self.words(text=texts, return_tensors="pt", padding=True)
        out = self.classifier(input_ids=read["input_ids"], attention_mask=read["attention_mask"])
        return out.logits[:, 0].sigmoid().tolist()


def _last(network: Any, texts: list[list[int]]) -> torch.Tensor:
    """What a network gives at the last token of each text."""
    ids, mask = pad_left(texts, PAD)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    more = {"logits_to_keep": 1} if hasattr(network, "lm_head") else {}
    return network(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False, **more).logits[:, -1]


@dataclass
class _Node:
    tokens: np.ndarray
    prior: np.ndarray
    visits: np.ndarray
    best: np.ndarray
    below: dict[int, Any] = field(default_factory=dict)


@torch.no_grad()
def reference(policy: Any, reward: Discriminator, encoded: list[list[int]], length: int, end: int) -> list[list[int]]:
    """The search without memory of what was read: one batch a simulation, an empty tree a token."""

    def children(texts: list[list[int]]) -> list[_Node]:
        logits = _last(policy, texts)
        logits[:, end] = -torch.inf
        top, tokens = logits.softmax(-1).topk(CHILDREN)
        prior = (top.double() / top.double().sum(1, keepdim=True)).numpy()
        empty = np.zeros(CHILDREN)
        return [_Node(t, p, empty.copy(), empty.copy()) for t, p in zip(tokens.numpy(), prior, strict=True)]

    written: list[list[int]] = [[] for _ in encoded]
    for _ in range(length):
        begun = [[*prompt, *text] for prompt, text in zip(encoded, written, strict=True)]
        roots = children(begun)
        for _ in range(SIMULATIONS - 1):
            ways: list[list[tuple[_Node, int]]] = []
            texts: list[list[int]] = []
            for root, before in zip(roots, begun, strict=True):
                node: Any = root
                way, text = [], list(before)
                while node is not None:  # an end of a text is never a node: it is read anew each time
                    explored = EXPLORATION * node.prior * np.sqrt(node.visits.sum()) / (1 + node.visits)
                    edge = int((node.best + explored).argmax())
                    way.append((node, edge))
                    text.append(int(node.tokens[edge]))
                    node = node.below.get(edge)
                ways.append(way)
                texts.append(text)
            values = reward.read(texts)
            for way, value, made, prompt, text in zip(ways, values, children(texts), encoded, texts, strict=True):
                if len(text) - len(prompt) < length:
                    way[-1][0].below[way[-1][1]] = made
                for node, edge in way:
                    node.visits[edge] += 1
                    node.best[edge] = max(node.best[edge], value)
        for text, root in zip(written, roots, strict=True):
            text.append(int(root.tokens[root.visits.argmax()]))
    return written


class Watch:
    """Seconds of this process inside some networks."""

    def __init__(self, *networks: Any):
        self.inside = 0.0
        self._began = 0.0
        for network in networks:
            network.register_forward_pre_hook(self._begin)
            network.register_forward_hook(self._end)

    def _begin(self, *ignored: Any) -> None:
        self._began = time.process_time()

    def _end(self, *ignored: Any) -> None:
        self.inside += time.process_time() - self._began


def build(job: Job) -> dict[str, Any]:
    """Policy, rewards, tokenizer and prompts."""
    words = tokenizer(job)
    policy = model(job).eval()
    with torch.no_grad():
        policy.transformer.ln_f.weight.fill_(PEAK)
    torch.manual_seed(SEED + 1)
    shape = {key: value for key, value in policy.config.to_dict().items() if key not in ("id2label", "label2id")}
    causal = GPT2ForTokenClassification(type(policy.config)(**shape, num_labels=1))
    with torch.no_grad():
        causal.classifier.weight.normal_(std=1 / job.width**0.5)  # logits of about one
    return _parts(job, policy, causal, words, list(prompts(job, BATCH)["prompt"]))


def build_trained(policy: str, discriminator: str) -> dict[str, Any]:
    """The same with networks that have learned to write questions, and to tell them from people's."""
    data = load_data("squad", sentences=0, prompt_words=56, reference_words=24)["validation"]
    causal, _ = load_reward("discriminator", model=discriminator, updates=0).network()
    texts = list(data.select(range(BATCH))["prompt"])
    return _parts(SIZES["S"], load_causal_or_seq2seq(policy).eval(), causal, load_tokenizer(policy), texts)


def _parts(job: Job, policy: Any, causal: Any, words: Any, texts: list[Any]) -> dict[str, Any]:
    torch.manual_seed(SEED + 2)
    whole = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(words),
            hidden_size=job.width,
            num_hidden_layers=job.layers,
            num_labels=1,
            num_attention_heads=job.heads,
            intermediate_size=4 * job.width,
            pad_token_id=PAD,
        )
    )
    return {
        "policy": policy,
        "causal": Discriminator(causal.eval(), words),
        "bidirectional": Bidirectional(whole.eval(), words),
        "words": words,
        "texts": texts,
        "encoded": encode_prompts(words, texts),
    }


def cases(parts: dict[str, Any], length: int) -> dict[str, Callable[[], tuple[list[list[int]], Any]]]:
    """Name -> what is timed; gives the tokens, and the search's output where it is ours."""
    policy, words = parts["policy"], parts["words"]
    ids, mask = pad_left(parts["encoded"], PAD)
    config = generation_config_for(
        policy, words, max_new_tokens=length, suppress_tokens=[words.eos_token_id], return_dict_in_generate=True
    )

    def ours(reward: Any, **settings: Any) -> tuple[list[list[int]], Any]:
        search = MCTS(reward, words, SIMULATIONS, CHILDREN, EXPLORATION, **settings)
        out = policy.generate(
            input_ids=ids, attention_mask=mask, generation_config=config, custom_generate=search, prompts=parts["texts"]
        )
        return out.completion_ids, out

    causal = parts["causal"]
    return {
        "anew": lambda: ours(causal, keep_subtree=False),
        "kept": lambda: ours(causal),
        "reference": lambda: (reference(policy, causal, parts["encoded"], length, words.eos_token_id), None),
        "waves of 8": lambda: ours(causal, leaves_per_wave=8),
        "bidirectional": lambda: ours(parts["bidirectional"]),
    }


@torch.no_grad()
def likeliest(parts: dict[str, Any], texts: list[list[int]]) -> float:
    """Mean probability of the likeliest next word, over what a search wrote."""
    means = []
    for prompt, text in zip(parts["encoded"], texts, strict=True):
        logits = parts["policy"](input_ids=torch.tensor([[*prompt, *text]])).logits[0, len(prompt) - 1 : -1]
        means.append(float(logits.softmax(-1).max(-1).values.mean()))
    return statistics.mean(means)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", default=None)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--policy", help="a trained causal model, in place of random weights")
    parser.add_argument(
        "--discriminator", help="the folder of a saved causal discriminator that it was trained against"
    )
    args = parser.parse_args()
    if (args.policy is None) != (args.discriminator is None):
        parser.error("--policy and --discriminator go together")
    torch.set_num_threads(1)
    parts = build(SIZES["S"]) if args.policy is None else build_trained(args.policy, args.discriminator)
    watch = Watch(parts["policy"], parts["causal"].classifier, parts["bidirectional"].classifier)
    wanted = {n: case for n, case in cases(parts, args.new_tokens).items() if args.only is None or n in args.only}
    cases(parts, 1)["kept"]()  # first use of everything
    seconds: dict[str, list[float]] = {name: [] for name in wanted}
    first: list[list[int]] | None = None
    for _ in range(args.rounds):
        for name, case in wanted.items():
            watch.inside = 0.0
            began = time.process_time()
            ids, out = case()
            seconds[name].append(time.process_time() - began)
            first = ids if first is None else first
            same = sum(a == b for one, other in zip(first, ids, strict=True) for a, b in zip(one, other, strict=True))
            asked = args.new_tokens * SIMULATIONS if out is None else out.evaluations
            held = "" if out is None else f"policy's tree {out.peak_bytes / MIB:.1f} MiB"
            print(
                f"{name:14} {seconds[name][-1]:8.2f} s, models {watch.inside / seconds[name][-1]:.0%}, asked {asked}, "
                f"{1000 * (seconds[name][-1] - watch.inside) / asked:.2f} ms beside the models each time, "
                f"{same} of {BATCH * args.new_tokens} tokens alike, likeliest {likeliest(parts, ids):.2f} {held}",
                flush=True,
            )
    if "reference" in seconds:
        slow = statistics.median(seconds["reference"])
        for name, values in seconds.items():
            print(f"{name:14} {slow / statistics.median(values):.1f} times as fast as the reference")


if __name__ == "__main__":
    main()
