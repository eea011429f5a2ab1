"""What TRL 1.12's PPOTrainer reads of a reward is what the reward says of the decoded texts.

That trainer is not installed here; `get_reward` below stands in for the function of that name which it scores with:
the same name, arguments and calls. `make compat` asks the real one the same.
"""

import pickle
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from alignkit import LearnedReward, as_trl_reward_model
from alignkit.compose import Clip, WeightedSum, Whiten
from alignkit.errors import AlignkitError, MissingColumnError, RewardCallError, RewardError, RewardValueError
from alignkit.models.tiny import tiny_classifier, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
PAD, EOS = TOKENIZER.pad_token_id, TOKENIZER.eos_token_id
PROMPTS = ["the movie is", "i", "this story was very very", "the plot"]
COMPLETIONS = ["good good .", "bad", "", "a fine film !"]
LETTERS = {(p, c): len(p) + 0.01 * len(c) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)}


def by_letters(prompts, completions, **columns):
    """A number that only this prompt with this completion has."""
    return [len(p) + 0.01 * len(c) for p, c in zip(prompts, completions, strict=True)]


def praise(completions, **columns):
    return [float(text.split().count("good")) for text in completions]


def get_reward(model, query_responses, pad_token_id, context_length):
    """Masks, asks the backbone, and reads the score at the last token before the response's first padding."""
    mask = query_responses != pad_token_id
    positions = mask.cumsum(1) - mask.long()
    backbone = getattr(model, model.base_model_prefix)
    shown = query_responses.masked_fill(~mask, 0)
    output = backbone(
        input_ids=shown,
        attention_mask=mask,
        position_ids=positions,
        return_dict=True,
        output_hidden_states=True,
        use_cache=False,
    )
    logits = model.score(output.hidden_states[-1])
    after = torch.cat([query_responses[:, context_length:], torch.full((len(mask), 1), pad_token_id)], 1)
    last = (after == pad_token_id).long().argmax(1) - 1 + context_length
    return logits, logits[torch.arange(len(mask)), last].squeeze(-1), last


def rows(prompts, completions, side, pad=PAD, stop=EOS):
    """(rows, width of the prompts) as PPOTrainer 1.12 makes them."""
    asked = [TOKENIZER.encode(text) for text in prompts]
    answers = [[*TOKENIZER.encode(text), stop] for text in completions]
    width, longest = max(map(len, asked)), max(map(len, answers))
    filled = [[pad] * (width - len(ids)) + ids if side == "left" else ids + [pad] * (width - len(ids)) for ids in asked]
    pairs = zip(filled, answers, strict=True)
    return torch.tensor([left + right + [pad] * (longest - len(right)) for left, right in pairs]), width


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", [PAD, EOS])
def test_the_trainer_reads_what_the_reward_says_of_the_texts(side, pad):
    ids, width = rows(PROMPTS, COMPLETIONS, side, pad)
    logits, scores, _ = get_reward(as_trl_reward_model(by_letters, TOKENIZER), ids, pad, width)
    assert scores.tolist() == torch.tensor([LETTERS[pair] for pair in zip(PROMPTS, COMPLETIONS, strict=True)]).tolist()
    assert logits.shape == (4, ids.shape[1], 1) and logits.dtype == torch.float32


def test_padding_is_no_word_where_token_0_is_one():
    """As in GPT-2, whose token 0 is "!": the trainer shows padding as token 0."""
    words = WordLevel({"oh": 0, "good": 1, "film": 2, "<pad>": 3}, unk_token="<pad>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), pad_token="<pad>")
    seen = []

    def watch(prompts, completions, **columns):
        seen.extend(zip(prompts, completions, strict=True))
        return [0.0] * len(completions)

    get_reward(as_trl_reward_model(watch, tokenizer), torch.tensor([[3, 3, 2, 0, 3, 3], [2, 0, 3, 1, 1, 0]]), 3, 3)
    assert seen == [("film", "oh"), ("film oh", "good good oh")]


def test_the_split_follows_each_call_not_the_last():
    model = as_trl_reward_model(by_letters, TOKENIZER, context_length=99)
    for prompts in (["i", "i"], ["the movie is very", "a"], ["i", "a"]):
        ids, width = rows(prompts, COMPLETIONS[:2], "left")
        _, scores, _ = get_reward(model, ids, PAD, width)
        assert scores.tolist() == torch.tensor(by_letters(prompts, COMPLETIONS[:2])).tolist()


def test_completion_ids_keep_the_stop_token_and_end_there():
    seen = {}

    def watch(prompts, completions, completion_ids, **columns):
        seen.update(prompts=prompts, completions=completions, ids=completion_ids, columns=sorted(columns))
        return [0.0] * len(completions)

    ids, width = rows(PROMPTS[:2], COMPLETIONS[:2], "left")
    ids[1, -1] = TOKENIZER.encode("dull")[0]  # what follows padding is no part of the completion
    get_reward(as_trl_reward_model(watch, TOKENIZER), ids, PAD, width)
    assert seen["ids"] == [[*TOKENIZER.encode(text), EOS] for text in COMPLETIONS[:2]]
    assert (seen["prompts"], seen["completions"]) == (PROMPTS[:2], COMPLETIONS[:2])
    assert seen["columns"] == ["log_extra", "log_metric", "trainer_state"]


def test_without_a_stop_token_every_token_counts():
    ids = torch.tensor([TOKENIZER.encode("i") + TOKENIZER.encode("good") + [EOS] + TOKENIZER.encode("bad")])
    seen = []
    model = as_trl_reward_model(lambda completions, **columns: seen.extend(completions) or [1.0], TOKENIZER)
    get_reward(model, ids, PAD, 1)
    assert seen == ["good bad"]


def test_another_caller_says_the_width_of_the_prompts():
    ids, width = rows(PROMPTS, COMPLETIONS, "left")
    model = as_trl_reward_model(by_letters, TOKENIZER, context_length=width)
    states = model.backbone(input_ids=ids, attention_mask=ids != PAD).hidden_states[-1]
    assert states[:, 0, 0].tolist() == states[:, -1, 0].tolist() == torch.tensor(list(LETTERS.values())).tolist()
    with pytest.raises(RewardCallError, match=r"cannot tell where the prompts end.*no value_model"):
        as_trl_reward_model(praise, TOKENIZER).backbone(input_ids=ids, attention_mask=ids != PAD)
    with pytest.raises(RewardCallError, match="without attention_mask"):
        model.backbone(input_ids=ids)


def test_no_opinion_stops_the_run_or_has_the_number_that_was_given():
    def shy(completions, **columns):
        return [None if not text else 2.0 for text in completions]

    ids, width = rows(PROMPTS, COMPLETIONS, "left")
    with pytest.raises(RewardValueError, match=r"'shy' has no opinion \(None\) on sample 3 of 4(.|\n)*very very"):
        get_reward(as_trl_reward_model(shy, TOKENIZER), ids, PAD, width)
    _, scores, _ = get_reward(as_trl_reward_model(shy, TOKENIZER, no_opinion=-1.5), ids, PAD, width)
    assert scores.tolist() == [2.0, 2.0, -1.5, 2.0]


@pytest.mark.parametrize("bad", [float("inf"), float("nan"), "good"])
def test_what_is_no_finite_number_stops_the_run(bad):
    ids, width = rows(PROMPTS, COMPLETIONS, "left")
    model = as_trl_reward_model(lambda completions, **columns: [0.0, bad, 0.0, 0.0], TOKENIZER)
    with pytest.raises(RewardValueError, match="sample 2 of 4"):
        get_reward(model, ids, PAD, width)


def test_what_that_trainer_cannot_give_is_refused_at_once():
    def in_character(completions, *, persona, **columns):
        return [0.0] * len(completions)

    def early(prompt, completions, **columns):
        return [0.0] * len(completions)

    class PerToken:
        granularity = "token"

        def __call__(self, completions, **columns):
            return [[0.0]] * len(completions)

    with pytest.raises(MissingColumnError, match=r"'in_character' needs column 'persona'; TRL 1\.12's PPOTrainer"):
        as_trl_reward_model(in_character, TOKENIZER)
    with pytest.raises(MissingColumnError, match="'weighted_sum' needs column 'persona'"):
        as_trl_reward_model(WeightedSum([praise, in_character]), TOKENIZER)
    with pytest.raises(MissingColumnError, match="name it prompts"):
        as_trl_reward_model(early, TOKENIZER)
    with pytest.raises(RewardError, match="scores each token"):
        as_trl_reward_model(PerToken(), TOKENIZER)
    with pytest.raises(RewardError, match=r"an nn\.Module, expected a reward callable"):
        as_trl_reward_model(tiny_classifier(), TOKENIZER)
    with pytest.raises(AlignkitError, match="a reward is a callable"):
        as_trl_reward_model(0.5, TOKENIZER)


class Growing(LearnedReward):
    """Gives the number of its updates."""

    updates = 3

    def __call__(self, prompts, completions, **columns):
        return [float(self.updates)] * len(completions)

    def update(self, prompts, completions, references):
        self.updates += 1
        return {}

    def state_dict(self):
        return {"updates": self.updates}

    def load_state_dict(self, state):
        self.updates = state["updates"]


def test_a_learned_reward_must_stand_still_and_does():
    reward = Growing()
    with pytest.raises(RewardError, match=r"'Growing' learns during the run.*eval\(\)"):
        as_trl_reward_model(Clip(reward, low=0), TOKENIZER)
    model = as_trl_reward_model(Clip(reward.eval(), low=0), TOKENIZER)
    reward.train()  # by mistake: nothing would ever take what it remembers
    ids, width = rows(PROMPTS, COMPLETIONS, "left")
    assert get_reward(model, ids, PAD, width)[1].tolist() == [3.0] * 4
    assert not reward.has_pending and reward.training


def test_running_statistics_go_on():
    whiten = Whiten(by_letters)
    ids, width = rows(PROMPTS, COMPLETIONS, "left")
    _, scores, _ = get_reward(as_trl_reward_model(whiten, TOKENIZER), ids, PAD, width)
    assert whiten.count == 4 and abs(scores.mean().item()) < 1e-6


def test_the_module_has_no_weights_and_can_be_copied():
    model = as_trl_reward_model(by_letters, TOKENIZER)
    assert list(model.parameters()) == [] and dict(model.state_dict()) == {}
    again = pickle.loads(pickle.dumps(model.to("cpu")))
    ids, width = rows(PROMPTS, COMPLETIONS, "left")
    assert get_reward(again, ids, PAD, width)[1].tolist() == get_reward(model, ids, PAD, width)[1].tolist()


def test_the_path_to_it_loads_no_trl():
    """Where TRL 1.12 is installed, alignkit's trainers cannot be imported."""
    code = "import sys; from alignkit import as_trl_reward_model, load_reward; print('trl' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
