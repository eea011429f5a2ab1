"""Cooperative training moves a tiny language model towards the data with nothing but a discriminator to go by."""

import torch
from datasets import Dataset
from torch.nn import functional as F

from alignkit.models.tiny import WORDS, tiny_causal_lm, tiny_tokenizer
from alignkit.reward import LearnedReward
from alignkit.trainers.cooperative import CooperativeTrainer
from alignkit.trainers.cooperative_config import CooperativeConfig

TEXT = "good film ."
PLACES = 4


class Places(LearnedReward):
    """A logistic regression on which word stands in which of the first four places: the probability that a text is one
    of the data's."""

    __name__ = "places"

    def __init__(self):
        self.net = torch.nn.Linear(PLACES * (len(WORDS) + 1), 1)
        torch.nn.init.zeros_(self.net.weight)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.05, weight_decay=0.1)

    def features(self, texts) -> torch.Tensor:
        rows = []
        for text in texts:
            words = [WORDS.index(word) if word in WORDS else len(WORDS) for word in text.split()]
            words = (words + [len(WORDS)] * PLACES)[:PLACES]
            rows.append(F.one_hot(torch.tensor(words), len(WORDS) + 1).float().flatten())
        return torch.stack(rows)

    def log_scores(self, prompts, completions, **columns):
        with torch.no_grad():
            return F.logsigmoid(self.net(self.features(completions))[:, 0]).tolist()

    def __call__(self, prompts, completions, **columns):
        with torch.no_grad():
            return self.net(self.features(completions))[:, 0].sigmoid().tolist()

    def update(self, prompts, completions, references):
        for _ in range(3):
            real, fake = self.net(self.features(references)), self.net(self.features(completions))
            loss = F.softplus(-real).mean() + F.softplus(fake).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return {"loss": loss.item()}

    def state_dict(self):
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state):
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])


def test_the_data_become_likely_though_no_likelihood_of_them_is_trained(tmp_path):
    prompts = ["i loved the film", "the plot was", "this movie is very dull but", "it"] * 16
    data = Dataset.from_dict({"prompt": prompts, "reference": [TEXT] * len(prompts)})
    args = CooperativeConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=64, num_generations=16, discriminator_samples=4,
        max_completion_length=4, learning_rate=2e-3, lr_scheduler_type="constant", logging_steps=20,
        report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", eval_references=True, max_steps=160,
        seed=3,
    )  # fmt: skip
    run = CooperativeTrainer(tiny_causal_lm("llama"), Places(), args, data, data.select(range(32)), tiny_tokenizer())
    before = run.evaluate()["eval_reference_perplexity"]
    run.train()
    after = run.evaluate()["eval_reference_perplexity"]
    assert before > 25 and after < 12  # 4 to 9 with four seeds; 1 is the data's own
