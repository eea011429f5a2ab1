"""Runs that sample and are rewarded: ours and TRL's, judged by the same code on the same held-out prompts."""

from typing import Any

from alignkit.compose import checked_rewards
from alignkit.decoding.prompts import encode_prompts
from alignkit.errors import ConfigError, DataError
from alignkit.evaluation import evaluate_rows, real_text_rows
from alignkit.models.adapters import check_adapter
from alignkit.models.loading import load_causal_or_seq2seq
from alignkit.models.locating import resolve_model
from alignkit.models.reference import frozen_copy
from alignkit.recipe import Recipe
from alignkit.reward import granularity, stateful_rewards, unique_names
from alignkit.run.ingredients import Ingredients
from alignkit.run.models import adapter_config, load_generator, loading_options, quantization_config, reference_options
from alignkit.text import excerpt
from alignkit.trainers.evaluation import EvaluationMixin
from alignkit.trainers.learned_callback import RewardStateCallback
from alignkit.trainers.whole_checkpoints import with_whole_checkpoints

# Metrics that say something about a text by itself, and so can be asked of the data's own continuations.
_OF_TEXT = ("diversity", "repetition", "length", "self_bleu", "oracle_nll")


class OnPolicyJob:
    """A language model that learns from rewards.

    Args:
        recipe: with a trainer of the family `on_policy`.
        args: its config.
        found: data, rewards and metrics.
        callbacks: for the trainer.
    """

    def __init__(self, recipe: Recipe, args: Any, found: Ingredients, callbacks: list[Any]):
        self.recipe = recipe
        self.found = found
        build = _own_trainer if recipe.kind.own else _trl_trainer
        self.trainer = build(recipe, args, found, callbacks)
        self.trainer.eval_decoder = found.decoder(self.trainer.processing_class)
        _check_context(self.trainer, found)

    def evaluate(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Rewards, KL, lengths and metrics of completions of the held-out prompts."""
        trainer = self.trainer
        figures = None if trainer.args.load_best_model_at_end else _logged_just_now(trainer)
        if figures is None:
            figures = trainer.evaluate()
        reported = {key.removeprefix("eval_"): value for key, value in figures.items() if key.startswith("eval_")}
        return reported, trainer.eval_rows

    def sample_at(self, temperature: float) -> None:
        """From now on `evaluate` completes prompts at this temperature."""
        self.trainer.args.eval_temperature = temperature

    def real_text(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        """What the metrics of `_OF_TEXT` say of the data's own texts, if there are any."""
        metrics = self.recipe.evaluation.get("metrics", {})
        chosen = {n: m for n, m in self.found.metrics.items() if metrics[n].get("use", n) in _OF_TEXT}
        real = real_text_rows(rows)
        return evaluate_rows(real, chosen) if real else {}


def _check_context(trainer: Any, found: Ingredients) -> None:
    """Prompt and completion must fit into a model with learned positions, which has no others.

    Raises:
        DataError: names the longest prompt.
    """
    config = trainer.model.config
    context = getattr(config, "n_positions", None)
    if context is None or config.is_encoder_decoder:
        return
    room = context - (trainer.args.max_completion_length)
    for name, part in found.data.items():
        encoded = encode_prompts(trainer.processing_class, list(part["prompt"]), trainer.chat_template_kwargs)
        lengths = [len(ids) for ids in encoded]
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        if lengths[longest] > room:
            shown = excerpt(part[longest]["prompt"])
            raise DataError(
                f"prompt {longest} of {name} has {lengths[longest]} tokens ({shown!r}); with "
                f"max_completion_length={trainer.args.max_completion_length} the model's context of {context} leaves "
                f"{max(room, 0)}. Shorten prompts or completions, or take a model with a longer context"
            )


def _logged_just_now(trainer: Any) -> dict[str, float] | None:
    """The evaluation of these very weights, if training ended with one: it would come out the same again.

    One of an earlier process, in the log of a checkpoint, does not count: its rows are not here.
    """
    state = trainer.state
    if state.global_step == 0 or trainer.eval_step != state.global_step:
        return None
    found = [entry for entry in state.log_history if entry["step"] == state.global_step and "eval_kl" in entry]
    return found[-1] if found else None


def _own_trainer(recipe: Recipe, args: Any, found: Ingredients, callbacks: list[Any]) -> Any:
    extra: dict[str, Any] = {}
    if found.ptx is not None:
        extra["ptx_dataset"] = found.ptx["train"]
    if "scratch" in recipe.model:
        model, extra["processing_class"] = load_generator(recipe, found.data)
    else:
        # by name: the trainer then also restores a value head that was saved with the model
        model = resolve_model(recipe.model["name"])
        args.model_init_kwargs = {**loading_options(recipe), **(args.model_init_kwargs or {})}
        extra["quantization_config"] = quantization_config(recipe)
    return recipe.kind.trainer_class()(
        model,
        found.rewards,
        args,
        found.data["train"],
        found.data["validation"],
        callbacks=callbacks,
        peft_config=adapter_config(recipe),
        metrics=found.metrics,
        ref_model=_named_reference(recipe),
        **extra,
    )


def _named_reference(recipe: Recipe) -> Any:
    named = recipe.model.get("reference")
    return load_causal_or_seq2seq(named["name"], **reference_options(recipe)) if named else None


def _trl_trainer(recipe: Recipe, args: Any, found: Ingredients, callbacks: list[Any]) -> Any:
    finer = [
        name for name, reward in zip(recipe.rewards, found.rewards, strict=True) if granularity(reward) != "completion"
    ]
    if finer:
        raise ConfigError(
            f"reward {finer[0]!r} scores finer than per completion, which TRL's {recipe.trainer} cannot use"
        )
    for name, part in found.data.items():
        if "prompt" not in part.column_names:
            raise DataError(f"{name} has no column 'prompt'; it has: {', '.join(part.column_names)}")
    adapter = adapter_config(recipe)
    model, tokenizer = load_generator(recipe, found.data)
    check_adapter(model, adapter)
    # taken before TRL's constructor changes the model's forward
    reference = _named_reference(recipe)
    reference = frozen_copy(reference or model) if reference is not None or adapter is None else None
    if stateful_rewards(found.rewards):
        callbacks = [*callbacks, RewardStateCallback(found.rewards)]
    trainer_class = with_held_out_evaluation(with_whole_checkpoints(recipe.kind.trainer_class()))
    trainer = trainer_class(
        model=model,
        # TRL itself lets a reward's inf and equal names pass
        reward_funcs=checked_rewards(found.rewards),
        args=args,
        train_dataset=found.data["train"],
        eval_dataset=found.data["validation"],
        processing_class=tokenizer,
        callbacks=callbacks,
        peft_config=adapter,
    )
    trainer.judge_by(recipe, found, reference)
    return trainer


def with_held_out_evaluation(trainer_class: type) -> type:
    """TRL's trainer with its training untouched; `evaluate` is what alignkit's trainers do, so that all compare."""

    class Judged(EvaluationMixin, trainer_class):  # type: ignore[misc, valid-type]
        ref_model: Any

        def judge_by(self, recipe: Recipe, found: Ingredients, reference: Any) -> None:
            """Set what evaluation reads; none of it is read in training."""
            self.rewards = found.rewards
            self.reward_func_names = unique_names(found.rewards)
            self.metrics = found.metrics
            self.judging_reference = None if reference is None else reference.to(self.accelerator.device)
            # GRPOConfig has no such settings; they are the recipe's `evaluation`, as for alignkit's own trainers
            self.args.eval_samples = None
            self.args.eval_seed = recipe.evaluation.get("seed", 1234)
            self.args.eval_temperature = recipe.evaluation.get("temperature")
            self.args.eval_references = recipe.evaluation.get("references", False)
            self.args.reference_column = "reference"

        def generate_eval(self, eval_dataset: Any = None) -> list[dict[str, Any]]:
            trained_with, self.ref_model = self.ref_model, self.judging_reference
            try:
                return super().generate_eval(eval_dataset)
            finally:
                self.ref_model = trained_with

    Judged.__name__ = Judged.__qualname__ = trainer_class.__name__
    Judged.__doc__ = trainer_class.__doc__
    return Judged
