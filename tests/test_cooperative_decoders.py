"""The cooperative trainer with a decoder of the user's: what it cannot be, and how its completions are scored."""

from dataclasses import replace

import pytest
import torch
from test_cooperative import examples, trainer, vowels

from alignkit.decoding.das import DAS
from alignkit.decoding.mcts import MCTS
from alignkit.decoding.sampling import SamplingDecoder
from alignkit.errors import ConfigError
from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer


@pytest.mark.parametrize("weighting", ["importance", "reward"])
@pytest.mark.parametrize(
    "search", [MCTS(vowels, tiny_tokenizer(), visit_temperature=1.0), DAS(vowels, tiny_tokenizer(), sample=True)]
)
def test_a_search_that_leaves_texts_out_is_no_proposal_for_weights(search, weighting, tmp_path):
    name = type(search).__name__
    for proposal in ("policy", "own"):
        with pytest.raises(ConfigError, match=f"weighting='{weighting}': {name} never draws some .*policy_share"):
            trainer(tmp_path, decoder=search, weighting=weighting, proposal=proposal)
    trainer(tmp_path, decoder=search, weighting="uniform", proposal="own")


def test_a_decoder_that_gives_something_else_is_told(tmp_path):
    run = trainer(tmp_path, decoder=lambda *given, **named: None, weighting="uniform", proposal="own")
    with pytest.raises(ConfigError, match=r"gave NoneType; expected alignkit\.decoding\.sampling\.Completions"):
        run.train()


def test_one_completion_of_a_decoder_has_no_weight(tmp_path):
    search = MCTS(vowels, tiny_tokenizer(), visit_temperature=1.0, policy_share=0.1)
    for proposal in ("policy", "own"):
        with pytest.raises(ConfigError, match=r"num_generations=1 .*whatever its density; set num_generations to 2"):
            trainer(tmp_path, decoder=search, weighting="reward", num_generations=1, proposal=proposal)


def test_what_a_decoder_leaves_to_be_scored_is_scored_without_dropout(tmp_path):
    class Silent(SamplingDecoder):
        def __call__(self, *given, **named):
            return replace(super().__call__(*given, **named), log_probs=None)

    model = tiny_causal_lm()
    model.config.attn_pdrop = model.config.resid_pdrop = 0.5
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    run = trainer(tmp_path, model, decoder=Silent(), disable_dropout=False, proposal="own")
    run.model.train()
    torch.manual_seed(0)
    rollout = run.score(run.sample(examples(run)))
    seen = rollout.made.log_probs
    rollout.made.log_probs = None
    assert torch.equal(run.score(rollout).made.log_probs, seen) and run.model.training
