"""Scores of beginnings: against the whole text, read again, and where a bad word comes in."""

import random

import pytest
import torch
from alignkit_rewards import Discriminator
from alignkit_rewards.discriminator.prefixes import DiscriminatorPrefixes, TextBeginnings

from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer
from alignkit.reward import PrefixScorer

PROMPTS = ["it was", "this movie is very"]
SCRATCH = {"architecture": "llama", "hidden_size": 16, "heads": 2, "layers": 2}
END = 1


def made(architecture: str = "llama", **settings) -> Discriminator:
    settings = {"tokenizer": tiny_tokenizer(), "learning_rate": 1e-2, "dtype": "float64", **settings}
    reward = Discriminator(scratch={**SCRATCH, "architecture": architecture}, **settings)
    for _ in range(4):
        reward.update(PROMPTS * 4, ["bad dull film"] * 8, ["very good film"] * 8)
    return reward


class ReadAgain:
    """A tree whose every node is read from the start."""

    def __init__(self, model, ids, mask):
        self.model = model
        self.paths = {row: ids[row][mask[row].bool()].tolist() for row in range(len(ids))}
        self.made = len(ids)
        self.read = 0

    def extend(self, parents, tokens):
        out = []
        for parent, token in zip(parents, tokens, strict=True):
            path = [*self.paths[parent], token]
            self.paths[self.made], self.made = path, self.made + 1
            self.read += 1
            out.append(self.model(input_ids=torch.tensor([path])).logits[0, -1])
        return torch.stack(out)

    def keep(self, nodes):
        self.paths = {node: self.paths[node] for node in nodes}


def ids_of(text: str) -> list[int]:
    return tiny_tokenizer()(text)["input_ids"]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "lstm"])
def test_a_finished_beginning_has_the_score_of_the_whole_text(architecture):
    reward = made(architecture)
    scorer: PrefixScorer = reward.begin(PROMPTS, tiny_tokenizer(), {})
    again = DiscriminatorPrefixes(
        reward.learner().reader, reward.learner().reader.encode_prompts(PROMPTS), ReadAgain
    )  # fmt: skip
    words = [ids_of("very good film"), ids_of("bad dull film")]
    nodes, mine = [0, 1], []
    for place in range(3):
        tokens = [words[row][place] for row in range(2)]
        mine.append(scorer.extend(nodes, tokens))
        assert mine[-1] == pytest.approx(again.extend(nodes, tokens), abs=1e-9)
        nodes = [2 * place + 2, 2 * place + 3]
    finished = scorer.extend(nodes, [END, END])
    assert finished == pytest.approx(reward(PROMPTS, ["very good film", "bad dull film"]), abs=1e-9)
    assert all(0 < score < 1 for scores in mine for score in scores)


def test_branches_are_scored_apart_and_what_is_forgotten_is_not_needed():
    reward = made()
    scorer = reward.begin(PROMPTS, tiny_tokenizer(), {})
    good, bad = ids_of("good bad")
    first = scorer.extend([0, 0, 1], [good, bad, bad])  # nodes 2, 3, 4
    assert first == pytest.approx(
        DiscriminatorPrefixes(
            reward.learner().reader, reward.learner().reader.encode_prompts(PROMPTS), ReadAgain
        ).extend([0, 0, 1], [good, bad, bad]),
        abs=1e-9,
    )  # fmt: skip
    scorer.keep([2, 4])
    after = scorer.extend([4, 2], [END, END])  # nodes 5, 6
    assert after == pytest.approx(reward(PROMPTS[::-1], ["bad", "good"]), abs=1e-9)
    with pytest.raises(KeyError):
        scorer.extend([3], [END])


def test_the_score_falls_where_a_bad_word_comes_in():
    """The policy writes as people do, but for one "dull" somewhere."""
    drawn = random.Random(0)
    reward = Discriminator(scratch=SCRATCH, tokenizer=tiny_tokenizer(), learning_rate=1e-2, updates=10)
    for _ in range(5):
        people, policy = ([drawn.choices(("very", "good", "film"), k=5) for _ in range(32)] for _ in range(2))
        for words in policy:
            words[drawn.randrange(5)] = "dull"
        figures = reward.update(["it was"] * 32, list(map(" ".join, policy)), list(map(" ".join, people)))
    assert figures["accuracy"] == 1.0
    scorer = reward.begin(["it was"], tiny_tokenizer(), {})
    scores, node = [], 0
    for token in ids_of("very good dull film good"):
        scores += scorer.extend([node], [token])
        node = len(scores)
    assert min(scores[:2]) > 0.4 and max(scores[2:]) < 0.1


def test_what_is_not_read_keeps_the_score_of_what_is():
    reward = made(max_length=7, max_completion_tokens=3)
    tree = {}
    reader = reward.learner().reader
    scorer = DiscriminatorPrefixes(
        reader, reader.encode_prompts(["it " * 9]), lambda *given: tree.setdefault("reader", ReadAgain(*given))
    )
    scores, node = [], 0
    for token in [*ids_of("very good film bad"), END]:
        scores += scorer.extend([node], [token])
        node = len(scores)
    assert scores[2] == scores[3] == scores[4] != scores[1] and tree["reader"].read == 3
    assert reward(["it " * 9], ["very good film bad"]) == pytest.approx([scores[4]], abs=1e-9)
    scorer.keep([3, 5])
    assert scorer.extend([5, 3], [END, END]) == [scores[4], scores[4]] and tree["reader"].read == 3


def test_a_policy_with_other_tokens_has_its_beginnings_scored_as_beginnings():
    """Not as texts that are over: the end token comes where the policy has written its own."""
    reward = made()
    other = tiny_tokenizer(["film", "bad", "good", "very", "dull"])
    mine, theirs = reward.begin(PROMPTS, tiny_tokenizer(), {}), reward.begin(PROMPTS, other, {})
    assert isinstance(theirs, TextBeginnings)
    nodes = [0, 1]
    for place, words in enumerate([("very", "bad"), ("good", "dull"), ("film", "film")]):
        mine_now = mine.extend(nodes, [ids_of(word)[0] for word in words])
        assert theirs.extend(nodes, [other(word)["input_ids"][0] for word in words]) == pytest.approx(mine_now)
        nodes = [2 * place + 2, 2 * place + 3]
    finished = theirs.extend(nodes, [other.eos_token_id] * 2)
    assert finished == pytest.approx(mine.extend(nodes, [END, END]))
    assert finished == pytest.approx(reward(PROMPTS, ["very good film", "bad dull film"]))
    theirs.keep(nodes)


def test_whole_text_readers_have_no_scorer():
    for kind in ("bidirectional", "cnn"):
        whole = Discriminator(kind=kind, scratch={}, tokenizer=tiny_tokenizer())
        assert whole.begin(PROMPTS, tiny_tokenizer(), {}) is None


def test_a_language_model_as_backbone_is_read_token_by_token_in_half_precision(tmp_path):
    tiny_causal_lm("qwen3").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    reward = Discriminator(str(tmp_path), dtype="bfloat16")
    scorer = reward.begin(PROMPTS, tiny_tokenizer(), {})
    good, _ = ids_of("good bad")
    scorer.extend([0, 1], [good, good])
    assert scorer.extend([2, 3], [END, END]) == pytest.approx(reward(PROMPTS, ["good", "good"]), abs=0.02)
