"""The model card of a finished run: `model/README.md`, written from what the run knows of itself.

The hub shows this file. Its metadata name the base and the data sets only where those are on the hub themselves, and a
licence only where the base says one.
"""

import json
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData, metadata_load, try_to_load_from_cache
from jinja2 import Environment, PackageLoader, StrictUndefined

from alignkit.data import DATASETS
from alignkit.models.adapters import QUANTIZATION_FILE, holds_adapter
from alignkit.models.locating import RUN_MODEL, resolve_model
from alignkit.path_names import without_folders
from alignkit.recipe import Recipe
from alignkit.recipe.reading import dump_yaml
from alignkit.report.reading import RunFiles, read_run
from alignkit.report.reliability import reliability_section, write_diagram
from alignkit.report.sections import is_per_token_kl
from alignkit.report.words import figure_of, signed, written
from alignkit.run.environment import launch_command
from alignkit.run.trained_model import longest_completion
from alignkit.trainers.model_card import HOSTS_MARK, local_name
from alignkit.whole_files import write_text

CARD = "README.md"
_ARXIV = "https://arxiv.org/abs/"
# The trainers of recipes: what they are called, and the papers they come from.
METHODS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "ppo": (
        "PPO with a value head, the KL to the reference in the reward",
        [
            ("Schulman et al. 2017, Proximal policy optimization algorithms", _ARXIV + "1707.06347"),
            ("Ziegler et al. 2019, Fine-tuning language models from human preferences", _ARXIV + "1909.08593"),
        ],
    ),
    "reinforce": (
        "REINFORCE",
        [
            (
                "Williams 1992, Simple statistical gradient-following algorithms for connectionist reinforcement "
                "learning",
                "https://doi.org/10.1007/BF00992696",
            )
        ],
    ),
    "cooperative": (
        "cooperative training: the policy learns its own texts, weighted by a reward",
        [
            (
                "Lamprier et al. 2022, Generative cooperative networks for natural language generation",
                _ARXIV + "2201.12320",
            )
        ],
    ),
    "grpo": ("GRPO, by TRL's trainer", [("Shao et al. 2024, DeepSeekMath", _ARXIV + "2402.03300")]),
    "rloo": (
        "REINFORCE with a leave-one-out baseline, by TRL's trainer",
        [("Ahmadian et al. 2024, Back to basics", _ARXIV + "2402.14740")],
    ),
    "sft": ("supervised learning of text (maximum likelihood), by TRL's SFTTrainer", []),
    "seq2seq": ("maximum likelihood of replies given prompts, by transformers' Seq2SeqTrainer", []),
    "classifier": ("supervised classification, by transformers' Trainer", []),
}
_PIPELINES = {"classifier": "text-classification", "causal": "text-generation"}


def write_card(folder: str | Path, recipe: Recipe, model: Any, tokenizer: Any) -> Path:
    """Write `model/README.md` of a run that has ended, in the place of a template that PEFT left there, and of a
    classifier `model/reliability.png` too.

    Args:
        folder: of the run; its metrics.jsonl, results.json and environment.json are read.
        recipe: of the run.
        model: that was trained.
        tokenizer: of the model.

    Returns:
        the card's path.

    Raises:
        DataError: a file of the run is missing or damaged.
    """
    place = Path(folder)
    host = place / CARD
    if host.is_file() and HOSTS_MARK in host.read_text(encoding="utf-8"):
        host.unlink()  # of the trainer's checkpoints: it knows neither rewards nor figures
    run = read_run(place)
    if run.reliability:
        write_diagram(run.reliability, place / RUN_MODEL)  # the card shows it
    return write_text(place / RUN_MODEL / CARD, render_card(run, place / RUN_MODEL, recipe, model, tokenizer))


def render_card(run: RunFiles, saved: Path, recipe: Recipe, model: Any, tokenizer: Any) -> str:
    """The card as a string; `saved` is the folder that holds the model."""
    adapter = holds_adapter(saved)
    config = model.config
    kind = "classifier" if recipe.kind.family == "classifier" else "seq2seq" if config.is_encoder_decoder else "causal"
    module = type(config).__module__.split(".")
    own = ".".join(module[:3]) if module[0] == "alignkit" else ""
    base = _base(recipe)
    licence = _licence(recipe)
    method, papers = METHODS[recipe.trainer]
    metadata = ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag=_PIPELINES.get(kind),
        base_model=base if base and _is_on_hub(base) else None,
        base_model_relation=("adapter" if adapter else "finetune") if base and _is_on_hub(base) else None,
        datasets=list(dict.fromkeys(name for data in _data(recipe) for name in _hub_data(data))) or None,
        license=licence,
        tags=["alignkit", recipe.trainer],
    )
    environment = Environment(
        loader=PackageLoader("alignkit.run", "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    facts = run.environment
    page = environment.get_template("card.md.j2").render(
        metadata=metadata.to_yaml(),
        name=run.name,
        origin=_origin(base, adapter),
        method=method,
        papers=papers,
        kind=kind,
        own=own,
        adapter=adapter,
        chat=getattr(tokenizer, "chat_template", None) is not None,
        pair="text_pair" in facts["data"]["train"]["columns"],
        auto_class=("AutoPeftModelFor" if adapter else "AutoModelFor")
        + ("Seq2SeqLM" if config.is_encoder_decoder else "CausalLM"),
        max_new_tokens=longest_completion(recipe.to_dict()),
        loading=_loading(saved, adapter, own),
        before=run.before,
        intervals=any(row[-1] for row in _figures(run)),
        python=facts["python"],
        after=run.after,
        figures=_figures(run),
        reliability=reliability_section(run) if run.reliability else "",
        findings=[finding for finding in run.findings if finding.status not in ("ok", "off")],
        rewards=_rewards(recipe, facts["reward_origins"]),
        data=" ".join(f"`{_cell(_settings(data))}`" for data in _data(recipe)),
        splits=[
            (name, f"{part['rows']:,}", ", ".join(f"`{column}`" for column in part["columns"]))
            for name, part in facts["data"].items()
        ],
        command=launch_command(without_folders(facts["command"]), facts["num_processes"], accelerate_settings="..."),
        recipe=dump_yaml(without_folders(recipe.to_dict())).rstrip(),
        parameters=f"{facts['trainable_parameters']:,} of {facts['parameters']:,} parameters",
        machine=_machine(facts),
        versions=", ".join(f"{name} {version}" for name, version in facts["packages"].items()),
        licence=_licence_sentence(licence),
    )
    return re.sub(r"\n{3,}", "\n\n", page).rstrip() + "\n"


def _base(recipe: Recipe) -> str | None:
    return recipe.model.get("name")


def _is_on_hub(name: str) -> bool:
    """Whether a model came from the hub by its id, and not from a folder of that name."""
    return resolve_model(name) == name and not Path(name).exists()


def _origin(base: str | None, adapter: bool) -> str:
    if base is None:
        return "A model that alignkit trained from random weights."
    source = resolve_model(base)
    named = f"[{base}](https://huggingface.co/{base})" if _is_on_hub(base) else f"`{local_name(source)}`, a local model"
    return f"{'An adapter for' if adapter else 'A fine-tuned version of'} {named}, trained with alignkit."


def _figures(run: RunFiles) -> list[tuple[str, str, str, str, str]]:
    """Rows of the table: label with its key, before, after, change, interval of the change."""
    rows = []
    for key in [*run.after, *(key for key in run.before if key not in run.after)]:
        figure = figure_of(key, is_per_token_kl(run))
        first, last = run.before.get(key), run.after.get(key)
        change = signed(last - first, figure.percent) if first is not None and last is not None else ""
        bounds = run.intervals.get(key, {}).get("change")
        between = " to ".join(signed(bound, figure.percent) for bound in bounds) if bounds else ""
        label = f"{figure.label}{f' ({figure.unit})' if figure.unit else ''}"
        name = f"{_cell(label)} `{key}`" if label != key else f"`{key}`"
        rows.append((name, written(first, figure.percent), written(last, figure.percent), change, between))
    return rows


def _rewards(recipe: Recipe, origins: list[dict[str, Any]]) -> list[tuple[str, str, str, str, str]]:
    rows = []
    for (name, spec), weight, origin in zip(recipe.rewards.items(), recipe.reward_weights, origins, strict=True):
        code = f"{origin.get('distribution') or 'none'} {origin.get('version') or ''}".strip()
        settings = {key: value for key, value in spec.items() if key not in ("use", "weight")}
        shown = f"`{_cell(_settings(settings))}`" if settings else ""
        rows.append(
            (
                f"`{_cell(without_folders(name))}`",
                f"{weight:g}",
                f"`{_cell(without_folders(origin['target']))}`",
                code,
                shown,
            )
        )
    return rows


def _data(recipe: Recipe) -> list[dict[str, Any]]:
    """The recipe's data, and that of the ptx term behind it."""
    own = {key: value for key, value in recipe.data.items() if key != "ptx"}
    return [own, recipe.data["ptx"]] if recipe.data.get("ptx") else [own]


def _hub_data(data: dict[str, Any]) -> list[str]:
    """The hub ids of a data set and of those that it is made of: its own, or what alignkit's reader of it is for."""
    if data["use"] == "hub":
        return [str(data["name"])]
    own = getattr(import_module(DATASETS[data["use"]].module), "HUB_ID", None)
    inside = [*data.get("parts", []), *([data["of"]] if "of" in data else [])]  # of a mix, and of look_ahead
    return ([own] if own else []) + [name for part in inside for name in _hub_data(part)]


def _settings(settings: Mapping[str, Any]) -> str:
    return json.dumps(without_folders(settings), ensure_ascii=False, default=str)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("`", "'")


def _machine(facts: dict[str, Any]) -> str:
    processes = facts["num_processes"]
    where = ", ".join(facts["accelerators"]) or facts["processor"]
    return where if processes == 1 else f"{processes} processes on {where}"


def _loading(saved: Path, adapter: bool, own: str) -> str:
    parts = []
    if adapter:
        parts.append(
            "This folder holds an adapter (PEFT): the base that `adapter_config.json` names is loaded first, and must "
            "be where that says. `alignkit merge` folds the adapter into its base."
        )
        if (saved / QUANTIZATION_FILE).is_file():
            parts.append(
                f"The base was quantised while the adapter learned (`{QUANTIZATION_FILE}`): loaded by "
                "`load_causal_or_seq2seq` of `alignkit.models.loading` it is so again. PEFT alone does not quantise "
                "it, and the outputs then differ a little."
            )
    if own:
        parts.append("The architecture is alignkit's own: the first import makes it known to the auto classes.")
    if (saved / "value_head.safetensors").is_file():
        parts.append("`value_head.safetensors` is PPO's critic; only further training needs it.")
    return " ".join(parts)


def _licence(recipe: Recipe) -> str | None:
    """The licence that the card of the base names, if there is one here."""
    base = _base(recipe)
    if base is None:
        return None
    found = try_to_load_from_cache(base, CARD) if _is_on_hub(base) else str(Path(resolve_model(base), CARD))
    if not isinstance(found, str) or not Path(found).is_file():
        return None
    try:
        named = (metadata_load(found) or {}).get("license")
    except (ValueError, yaml.YAMLError):
        return None  # a card of others, which a run need not fail on: this one says that no licence is known
    return named if isinstance(named, str) else None


def _licence_sentence(licence: str | None) -> str:
    if licence is None:
        return (
            "No licence is recorded. Before you publish this model, see what the base and the data allow, and name the "
            "licence in the first lines of this file (`license:`)."
        )
    return f"`{licence}`, as the card of the base says. The data may set further terms."
