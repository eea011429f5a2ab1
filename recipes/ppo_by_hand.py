"""recipes/quickstart.yaml by hand: the same run in plain Python, to read, copy and change.

    alignkit train recipes/quickstart/lm.yaml
    alignkit train recipes/quickstart/classifier.yaml
    python recipes/ppo_by_hand.py

Hardware: one CPU core, about a minute.
Shows: what a recipe stands for. A test proves that both give the same figures, to the last bit.
"""

from typing import Any

import torch

from alignkit import PPOConfig, PPOTrainer, load_data, load_metric, load_reward


def main(
    language_model: str = "runs/quickstart/lm/model",
    classifier: str = "runs/quickstart/classifier/model",
    train_size: int = 6000,
    validation_size: int = 400,
    prompts: int = 200,
    **settings: Any,
) -> PPOTrainer:
    """Trains, prints figures before and after, and returns the trainer. `settings` go on top of those below."""
    # 1. Data: the columns `prompt` and `reference`
    data = load_data("quickstart", form="prompts", train_size=train_size, validation_size=validation_size)
    held_out = data["validation"].select(range(prompts))

    # 2. The reward that is trained on, and metrics that are not
    sentiment = load_reward("sentiment", model=classifier)
    metrics = {name: load_metric(name) for name in ("diversity", "repetition", "length")}
    metrics["perplexity"] = load_metric("perplexity", model=language_model)

    # 3. The trainer: TRL's arguments, and our settings
    args = PPOConfig(
        **{
            "output_dir": "runs/ppo_by_hand",
            "seed": 1,
            "max_steps": 60,
            "per_device_train_batch_size": 64,
            "num_iterations": 4,
            "learning_rate": 1.0e-4,
            "vf_coef": 2.0,
            "cliprange_value": None,
            "max_completion_length": 32,
            "kl_coef": 0.1,
            "logging_steps": 1,
            "eval_strategy": "steps",
            "eval_steps": 20,
            "per_device_eval_batch_size": 100,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": not torch.cuda.is_available(),
            **settings,
        }
    )
    trainer = PPOTrainer(
        model=language_model,
        reward_funcs=[sentiment],
        args=args,
        train_dataset=data["train"],
        eval_dataset=held_out,
        metrics=metrics,
    )

    # 4. Held-out figures, training, held-out figures
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    trainer.save_model(f"{args.output_dir}/model")
    for key in after:
        print(f"{key:32} {before[key]:10.4f} {after[key]:10.4f}")
    return trainer


if __name__ == "__main__":
    main()
