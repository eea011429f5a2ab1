"""Adapters: what of them must come back exactly, on a base that may be quantised, and what is refused beforehand.

PEFT's folder says which base an adapter is for, but not how that base was quantised while the adapter learned. A file
beside the adapter (`base_quantization.json`) says it, so that a saved policy is the policy that was trained.
"""

import importlib.util
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import INCLUDE_LINEAR_LAYERS_SHORTHAND, TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from safetensors import safe_open
from torch import nn
from transformers import BitsAndBytesConfig

from alignkit.errors import ConfigError, ModelError
from alignkit.models.locating import explained

SETTINGS_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
QUANTIZATION_FILE = "base_quantization.json"
_PREFIX = "base_model.model."
_KEPT = "modules_to_save.default."


def holds_adapter(folder: str | os.PathLike) -> bool:
    """Whether a folder holds an adapter rather than a whole model."""
    return (Path(folder) / SETTINGS_FILE).is_file()


def adapter_settings(name: str | os.PathLike, folder: str) -> dict[str, Any]:
    """What PEFT wrote of an adapter; its base is in `base_model_name_or_path`.

    Raises:
        ModelError: the file cannot be read, or names no base.
    """
    with explained(name, folder, "adapter"):
        settings = json.loads((Path(folder) / SETTINGS_FILE).read_text(encoding="utf-8"))
    if not settings.get("base_model_name_or_path"):
        raise ModelError(f"the adapter in {folder!r} does not say which model it is for (base_model_name_or_path)")
    return settings


def saved_shapes(folder: str | os.PathLike) -> dict[str, tuple[int, ...]]:
    """The tensors in an adapter's file, name in the model itself -> shape; empty where the file is of another kind."""
    file = Path(folder) / WEIGHTS_FILE
    if not file.is_file():
        return {}
    with safe_open(file, framework="pt") as tensors:
        return {
            name.removeprefix(_PREFIX): tuple(tensors.get_slice(name).get_shape())
            for name in tensors.keys()  # noqa: SIM118  (safetensors' handle is no mapping)
        }


def load_adapter(base: nn.Module, name: str | os.PathLike, folder: str) -> PeftModel:
    """The adapter of `folder` on its base, in eval mode; its weights in the precision in which they were saved.

    PEFT widens an adapter of 16 bits to 32, and a wider adapter computes otherwise than the one that was trained.

    Raises:
        ModelError: the files cannot be read, or weights are missing, those of a saved head among them.
    """
    file = Path(folder) / WEIGHTS_FILE
    dtypes: dict[str, str] = {}
    with explained(name, folder, "adapter"):
        if file.is_file():
            with safe_open(file, framework="pt") as tensors:
                dtypes = {key: tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
            modules = {key for key, _ in base.named_modules()}
            kept = adapter_settings(name, folder).get("modules_to_save") or []
            _check_complete(folder, {_PREFIX + key for key in kept if key in modules}, _parents(dtypes))
        model = PeftModel.from_pretrained(base, folder).eval()
        if file.is_file():
            wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
            _check_complete(folder, wanted.keys(), dtypes.keys())
            for key, parameter in model.named_parameters():
                saved = dtypes.get(key.replace(_KEPT, "").replace(".default.", "."))
                if ".lora_" in key and saved in _WIDTHS:
                    parameter.data = parameter.data.to(_WIDTHS[saved])
    return model


def _parents(names: Iterable[str]) -> set[str]:
    """The modules that hold the tensors of these names, and those that hold the modules."""
    parts = [name.split(".") for name in names]
    return {".".join(part[:end]) for part in parts for end in range(1, len(part))}


def _check_complete(folder: str, wanted: Iterable[str], saved: Iterable[str]) -> None:
    lost = sorted(set(wanted) - set(saved))
    if lost:
        more = f" and {len(lost) - 4} more" if len(lost) > 4 else ""
        raise ModelError(
            f"the adapter in {folder!r} lacks weights that its {SETTINGS_FILE} speaks of: {', '.join(lost[:4])}{more}; "
            "they would be those of a new adapter. Copy the folder again as it was saved"
        )


_WIDTHS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}  # safetensors' names


# ---- a quantised base ---------------------------------------------------------------------------------------------


def require_bitsandbytes(what: str) -> None:
    """Raises `ConfigError`, with what to install, where bitsandbytes is missing."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(f"{what} needs bitsandbytes, which is not installed: pip install -e '.[quantization]'")


def save_quantization(model: Any, folder: str | os.PathLike) -> None:
    """Write beside a saved adapter how its base was quantised; nothing for any other model."""
    base = model.get_base_model() if isinstance(model, PeftModel) else None
    settings = getattr(getattr(base, "config", None), "quantization_config", None)
    if base is None or settings is None:
        return
    settings = settings if isinstance(settings, dict) else settings.to_dict()
    content = {"quantization_config": settings, "dtype": str(base.dtype).removeprefix("torch.")}
    (Path(folder) / QUANTIZATION_FILE).write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")


def saved_quantization(name: str | os.PathLike, folder: str) -> dict[str, Any]:
    """How to load the base of the adapter in `folder`: `quantization_config` and `dtype`, or nothing."""
    file = Path(folder) / QUANTIZATION_FILE
    if not file.is_file():
        return {}
    with explained(name, folder, "adapter"):
        content = json.loads(file.read_text(encoding="utf-8"))
    require_bitsandbytes(f"{str(name)!r}, an adapter on a quantised base,")
    settings = content["quantization_config"]
    known = {key: value for key, value in settings.items() if not key.startswith("_") and key != "quant_method"}
    return {"quantization_config": BitsAndBytesConfig(**known), "dtype": content["dtype"]}


def keep_trainable(model: nn.Module) -> None:
    """Forbid bitsandbytes to repack 4-bit weights for inference on a CPU.

    It does so for good in the first forward outside training (sampling is one). What it packs has no backward: the
    adapters would stay where they are without a word. And it computes otherwise than what is not packed.
    """
    module: Any  # bitsandbytes' own layer
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


class TrainablePrecision:
    """Keeps what trains beside a quantised base in float32, as it was before a TRL trainer was built around it.

    TRL rounds those weights to bfloat16. A critic regresses, and an adapter's steps are mostly smaller than bfloat16
    can add; and PEFT reads a checkpoint back as float32, so that a resumed run would compute otherwise.

    Args:
        model: before the trainer's constructor, with an adapter or without.
    """

    def __init__(self, model: nn.Module):
        self.quantised = is_quantised(model)
        adapted = self.quantised and isinstance(model, PeftModel)
        named = model.named_parameters() if adapted else []
        self.before = {name: parameter.detach().clone() for name, parameter in named if parameter.requires_grad}

    def restore(self, model: nn.Module) -> None:
        """Undo the rounding in `model`, the one that was given, now or by then with an adapter."""
        if not self.quantised:
            return
        everything = dict(model.named_parameters())
        for name, parameter in everything.items():
            if parameter.requires_grad and parameter.is_floating_point():
                original = everything.get(name.replace(_KEPT, "original_module.")) if _KEPT in name else None
                exact = self.before.get(name, parameter if original is None else original)
                parameter.data = exact.detach().clone().to(parameter.device, torch.float32)


def let_learn(model: Any) -> None:
    """Let an adapter learn that was loaded to be read, as `load_causal_or_seq2seq` does; one that learns already, or in
    part, and any other model stay as they are."""
    if isinstance(model, PeftModel) and not any(parameter.requires_grad for parameter in model.parameters()):
        model.set_requires_grad(model.active_adapters)


def is_quantised(model: Any) -> bool:
    """Whether the weights of a model, or of the base of an adapter, are quantised."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return bool(getattr(base, "is_quantized", False))


def computes_in_eight_bits(model: Any) -> bool:
    """Whether the base's products are of 8-bit numbers: its activations are then rounded too, not its weights alone."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return bool(getattr(base, "is_loaded_in_8bit", False))


# ---- what cannot work ---------------------------------------------------------------------------------------------


def check_adapter(model: Any, peft_config: Any) -> None:
    """Refuse an adapter that cannot be put on `model`, and a quantised model that has none.

    Raises:
        ConfigError: says which of `target_modules` match nothing, and what there is.
    """
    if peft_config is None:
        if is_quantised(model) and not isinstance(model, PeftModel):
            raise ConfigError(
                "the model's weights are quantised, and quantised weights do not train; add an adapter "
                "(peft_config=LoraConfig(r=16); in a recipe adapter: {r: 16}), or leave the quantisation out"
            )
        return
    if isinstance(model, PeftModel):
        raise ConfigError(
            "the model is an adapter already and goes on learning; leave the new adapter out (peft_config, in a recipe "
            "adapter), or fold the first into its base before (alignkit merge)"
        )
    own = "alora_invocation_tokens" if getattr(peft_config, "alora_invocation_tokens", None) else ""
    if own or peft_config.is_prompt_learning:
        raise ConfigError(
            f"an adapter that depends on where a text begins ({own or peft_config.peft_type.value}) scores a "
            "completion otherwise than it sampled it; use LoRA or another adapter of the layers' weights"
        )
    targets = getattr(peft_config, "target_modules", None)
    if getattr(peft_config, "target_parameters", None) or targets == INCLUDE_LINEAR_LAYERS_SHORTHAND:
        return
    kind = getattr(model.config, "model_type", "")
    if targets is None and hasattr(peft_config, "target_modules"):
        if kind not in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING:
            raise ConfigError(
                f"PEFT does not know which layers of a model of type {kind!r} an adapter goes to; say it with "
                f"target_modules: {_layers(model)}, or all-linear"
            )
        return
    if targets is None:
        return
    names = [name for name, _ in model.named_modules() if name]
    each = [targets] if isinstance(targets, str) else sorted(targets)
    lost = [target for target in each if not any(_matches(peft_config, target, name) for name in names)]
    if lost:
        raise ConfigError(
            f"the adapter's target_modules {', '.join(lost)} match{'es' if len(lost) == 1 else ''} nothing in "
            f"{type(model).__name__}; its linear layers are: {_layers(model)}; or give all-linear"
        )


def _matches(peft_config: Any, target: str, name: str) -> bool:
    if isinstance(peft_config.target_modules, str):
        return bool(check_target_module_exists(peft_config, name))
    return name == target or name.endswith(f".{target}")


def _layers(model: nn.Module) -> str:
    linear = [name.rsplit(".", 1)[-1] for name, module in model.named_modules() if _is_linear(module)]
    return ", ".join(sorted(set(linear))) or "none"


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


Prepare = Callable[[Any], None]
"""Changes a base model before its adapter is loaded on it: a module that the adapter saved must be there by then."""
