"""A language model that is a table, of three letters and three places: 27 texts, whose probabilities can be written
down. With the data, the first policy and the optimal discriminator of the exact cases.

Contexts are numbered '' -> 0, (a) -> 1 + a, (a, b) -> 4 + 3 a + b. Everything is in double precision.
"""

from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback
from transformers.modeling_outputs import CausalLMOutputWithPast

from alignkit.decoding.sampling import Completions
from alignkit.reward import LearnedReward
from alignkit.trainers.cooperative import CooperativeTrainer
from alignkit.trainers.cooperative_config import CooperativeConfig

V = L = 3
SEQUENCES = [(a, b, c) for a in range(V) for b in range(V) for c in range(V)]
BEGIN = V  # the one token of a prompt
_CONTEXTS = torch.arange(13, dtype=torch.float64)[:, None]
_LETTERS = torch.arange(V, dtype=torch.float64)
TARGET = 2 * torch.sin(1 + 7 * _CONTEXTS + 3 * _LETTERS)
INITIAL = 2 * torch.sin(5 + 2 * _CONTEXTS + 11 * _LETTERS)


class TabularConfig(PreTrainedConfig):
    model_type = "alignkit_tabular"
    vocab_size: int = V


class TabularLM(PreTrainedModel, GenerationMixin):
    """A causal LM whose logits stand in a table, a row for each context; it has no end-of-sequence token."""

    config: TabularConfig
    config_class = TabularConfig

    def __init__(self, config: TabularConfig):
        super().__init__(config)
        self.table = nn.Parameter(INITIAL.clone())
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        pass

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **ignored: Any,
    ) -> CausalLMOutputWithPast:
        contexts, now, before = [], torch.zeros_like(input_ids[:, 0]), torch.zeros_like(input_ids[:, 0])
        depth = torch.zeros_like(now)
        for token in input_ids.T:
            letter = token < V
            second = 4 + 3 * before + token
            following = torch.where(depth == 0, 1 + token, torch.where(depth == 1, second, 0))
            now, before = torch.where(letter, following, 0), torch.where(letter, token, 0)
            depth = torch.where(letter, depth + 1, 0)
            contexts.append(now)
        logits = self.table[torch.stack(contexts, 1)]
        return CausalLMOutputWithPast(logits=logits, hidden_states=(logits,))

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **kwargs):
        return {"input_ids": input_ids, "attention_mask": attention_mask}


def tabular_lm(logits: torch.Tensor = INITIAL) -> TabularLM:
    model = TabularLM(TabularConfig(use_cache=False)).double()
    with torch.no_grad():
        model.table.copy_(logits)
    return model


def tokenizer() -> PreTrainedTokenizerFast:
    """One letter a token; the begin token stands for the prompt, pad is never read."""
    letters = {**{letter: i for i, letter in enumerate("abc")}, "<begin>": BEGIN, "<pad>": V + 1, "<end>": V + 2}
    inner = Tokenizer(models.WordLevel(letters, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<end>", padding_side="left"
    )  # "<end>" is not among the model's letters


def log_probs(logits: torch.Tensor) -> torch.Tensor:
    """(27,) of all texts under a table of logits."""
    table = logits.detach().log_softmax(-1)
    return torch.stack([table[0, a] + table[1 + a, b] + table[4 + 3 * a + b, c] for a, b, c in SEQUENCES])


DATA = log_probs(TARGET).exp()


def divergence(logits: torch.Tensor) -> float:
    """KL(data || policy) in nats."""
    further = log_probs(logits) - DATA.log()
    return float((DATA * (further.expm1() - further)).sum())  # the same sum without its cancellation


def number(text: str) -> int:
    """Which of the 27 a text is."""
    a, b, c = ("abc".index(letter) for letter in text if letter in "abc")
    return 9 * a + 3 * b + c


def table_of(probabilities: torch.Tensor) -> torch.Tensor:
    """The logits of a table that gives the 27 texts these probabilities."""
    p = probabilities.view(3, 3, 3)
    first, second = p.sum((1, 2)), p.sum(2)
    rows = [first[None], second / first[:, None], (p / second[..., None]).view(9, 3)]
    return torch.cat(rows).log()


class OptimalD(LearnedReward):
    """The discriminator that cannot be improved, p_d / (p_d + p), for the policy of the moment of its update; its
    logit is multiplied by `scale`."""

    __name__ = "optimal"

    def __init__(self, model: TabularLM, scale: float = 1.0):
        self.model, self.scale = model, scale
        self.seen: list[list[str]] = []
        self.log_d = self.now()

    def now(self) -> torch.Tensor:
        return nn.functional.logsigmoid(self.scale * (DATA.log() - log_probs(self.model.table)))

    def __call__(self, prompts, completions, **columns):
        return self.log_d.exp()[[number(text) for text in completions]].tolist()

    def update(self, prompts, completions, references):
        self.seen.append(list(completions))
        self.log_d = self.now()
        return {"mean": float(self.log_d.exp().mean())}

    def state_dict(self):
        return {"log_d": self.log_d.clone()}

    def load_state_dict(self, state):
        self.log_d = state["log_d"].clone()


class Solved(torch.optim.Optimizer):
    """Finds the table that minimises a weighted likelihood: each row's gradient is m (softmax(row) - q) with two
    unknowns, the context's weight m and its conditional q, which two gradients give; the next table is log q. Further
    gradients correct what rounding left. Begins anew every `passes` steps."""

    def __init__(self, parameters, passes: int):
        super().__init__(parameters, {"lr": 1.0})
        self.passes, self.count = passes, 0

    @torch.no_grad()
    def step(self, closure=None):
        (table,) = self.param_groups[0]["params"]
        p, gradient = table.softmax(-1), table.grad
        if self.count % self.passes == 0:
            self.p, self.gradient = p, gradient.clone()
            table -= 0.3 * gradient / gradient.abs().amax(1, keepdim=True).clamp(min=1e-300)
        else:
            if self.count % self.passes == 1:
                moved = self.p - p
                self.mass = ((self.gradient - gradient) * moved).sum(1, keepdim=True) / (moved**2).sum(1, keepdim=True)
            table.copy_((p - gradient / self.mass).log())
        self.count += 1


class Given:
    """A decoder that is told what to give: rows (B, 3) of letters and a density for each of the 27 texts."""

    def __init__(self, rows: torch.Tensor, density: torch.Tensor):
        self.rows, self.density = rows, density

    def __call__(self, model, prompt_ids, prompt_mask, generation_config, *, prompts=None, columns=None):
        numbers = (self.rows * torch.tensor([9, 3, 1])).sum(1)
        return Completions(
            prompt_ids, prompt_mask, self.rows, torch.ones_like(self.rows), log_density=self.density.log()[numbers]
        )


def trainer(
    folder, model: TabularLM, reward: Any = None, passes: int = 1, optimizer: Any = None, decoder: Any = None,
    **settings: Any,
):  # fmt: skip
    """A cooperative trainer of a tabular model on the prompt that says nothing."""
    rows = settings.pop("rows", 27)
    defaults: dict[str, Any] = dict(
        output_dir=str(folder), per_device_train_batch_size=rows, num_generations=rows, num_iterations=passes,
        max_steps=passes, max_completion_length=L, logging_steps=1, report_to="none", use_cpu=True, disable_tqdm=True,
        save_strategy="no", proposal="policy" if decoder else "exact", max_grad_norm=0.0, learning_rate=1.0,
        lr_scheduler_type="constant",
    )  # fmt: skip
    args = CooperativeConfig(**{**defaults, **settings})
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=args.learning_rate)
    data = Dataset.from_dict({"prompt": ["<begin>"] * max(rows // args.num_generations, 4)})
    return CooperativeTrainer(
        model, reward or OptimalD(model), args, data, None, tokenizer(), decoder=decoder,
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
    )  # fmt: skip


def rml(folder, model: TabularLM, outer: int, passes: int = 4, reward: Any = None, **settings: Any) -> SimpleNamespace:
    """RML-GAN by settings: exact q, and the inner minimum found by `passes` steps of `Solved`."""
    run = trainer(
        folder,
        model,
        reward,
        passes,
        max_steps=outer * passes,
        optimizer=Solved(model.parameters(), passes),
        **settings,
    )
    after: list[float] = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step % passes == 0:
                after.append(divergence(model.table))

    run.add_callback(Watch())
    run.train()
    return SimpleNamespace(run=run, kl=after)
