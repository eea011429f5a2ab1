"""A Monte Carlo tree search as one would write it down: one prompt, dictionaries, every prefix read anew."""

import math

import torch
from transformers import LogitsProcessorList


def next_scores(model, prompt, text, processors):
    """Logits and processed scores (V,) after `text`."""
    ids = torch.tensor([prompt])
    if model.config.is_encoder_decoder:
        begun = torch.tensor([[model.config.decoder_start_token_id, *text]])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), decoder_input_ids=begun).logits[:, -1]
        return logits[0], processors(begun, logits.clone())[0]
    whole = torch.tensor([[*prompt, *text]])
    logits = model(input_ids=whole).logits[:, -1]
    return logits[0], processors(whole, logits.clone())[0]


class SerialSearch:
    """`reward` takes token ids of a completion and gives a float."""

    def __init__(
        self, model, prompt, reward, *, simulations, children, exploration, backup, value, length, end=1, processors=(),
        keep=True,
    ):  # fmt: skip
        self.model, self.prompt, self.reward = model, prompt, reward
        self.simulations, self.children, self.c = simulations, children, exploration
        self.backup, self.value, self.length, self.end, self.keep = backup, value, length, end, keep
        self.processors = LogitsProcessorList(processors)
        self.tree = {}
        self.read = 0

    def scores(self, text):
        self.read += 1
        return next_scores(self.model, self.prompt, text, self.processors)

    def ended(self, text):
        return len(text) == self.length or (text and text[-1] == self.end)

    def expand(self, text):
        _, scores = self.scores(text)
        probabilities = scores.softmax(-1).tolist()
        best = sorted(range(len(probabilities)), key=lambda token: -probabilities[token])[: self.children]
        total = sum(probabilities[token] for token in best)
        self.tree[text] = [
            {"token": token, "prior": probabilities[token] / total, "values": []}
            for token in best
            if probabilities[token] > 0
        ]

    def worth(self, text):
        while self.value == "rollout" and not self.ended(text):
            text = (*text, int(self.scores(text)[1].argmax()))
        return self.reward(list(text))

    def simulate(self, text):
        if self.ended(text):
            return self.worth(text)
        if text not in self.tree:
            self.expand(text)
            return self.worth(text)
        edges = self.tree[text]
        visits = sum(len(edge["values"]) for edge in edges)

        def score(edge):
            values = edge["values"]
            quality = 0.0
            if values:
                quality = max(values) if self.backup == "max" else sum(values) / len(values)
            return quality + self.c * edge["prior"] * math.sqrt(visits) / (1 + len(values))

        edge = max(edges, key=score)  # the first of equals
        value = self.simulate((*text, edge["token"]))
        edge["values"].append(value)
        return value

    def visits(self, text):
        """Token and visits of each visited child, after the simulations that are still to make."""
        if not self.keep:
            self.tree = {}
        if text not in self.tree:
            self.expand(text)
        while 1 + sum(len(edge["values"]) for edge in self.tree[text]) < self.simulations:
            self.simulate(text)
        return [(edge["token"], len(edge["values"])) for edge in self.tree[text] if edge["values"]]

    def run(self):
        """The completion, and what `visits` gave at each of its tokens."""
        text, steps = (), []
        while not self.ended(text):
            steps.append(self.visits(text))
            counts = [len(edge["values"]) for edge in self.tree[text]]
            text = (*text, self.tree[text][counts.index(max(counts))]["token"])
        return list(text), steps
