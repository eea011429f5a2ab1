"""What a predictor of the next turn is given."""

import pytest
import torch
from alignkit_rewards import LookAhead

from alignkit.testing import tiny_classifier, tiny_tokenizer


@pytest.mark.parametrize("conversational", [False, True])
def test_look_ahead_reads_the_last_turn_and_the_reply_as_a_pair(conversational):
    model, tokenizer = tiny_classifier(), tiny_tokenizer()
    turns, replies = ["i hated it !", "it was good ."], ["the film was bad .", "superb"]
    prompts, completions = [f"hello .\n{turn}\n" for turn in turns], [f" {reply}" for reply in replies]
    if conversational:
        prompts = [[{"role": "assistant", "content": "hello ."}, {"role": "user", "content": t}] for t in turns]
        completions = [[{"role": "assistant", "content": reply}] for reply in replies]
    expected = []
    for turn, reply in zip(turns, replies, strict=True):
        first, second = (tokenizer(text)["input_ids"] for text in (turn, reply))
        types = torch.tensor([[0] * len(first) + [1] * len(second)])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([first + second]), token_type_ids=types).logits
        expected.append(logits.softmax(1)[0, 1])
    scores = LookAhead(model, tokenizer=tokenizer)(prompts, completions)
    torch.testing.assert_close(torch.tensor(scores), torch.stack(expected), rtol=1e-5, atol=1e-6)
    assert scores != LookAhead(model, tokenizer=tokenizer)(["superb"] * 2, completions)
