"""The critic: a scalar per state, on the policy's own trunk or on a trunk of its own."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from alignkit.errors import ModelError
from alignkit.models.scoring import CRITIC_NAME, HEAD_NAME, untaught_copy

HEAD_FILE = "value_head.safetensors"
_ADAPTER_PREFIX = "base_model.model."  # an adapter's file names the head as PEFT's wrapper sees it


class ValueHead(nn.Module):
    """Linear map from hidden state to value, computed in float32. It starts at zero: the first values are all 0.

    Args:
        hidden_size: width of the hidden states.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (...)."""
        with torch.autocast(hidden.device.type, enabled=False):
            weight, bias = self.linear.weight.float(), self.linear.bias.float()
            return nn.functional.linear(hidden.float(), weight, bias).squeeze(-1)


def hidden_size(model: PreTrainedModel) -> int:
    """Width of the states that the language-model head reads."""
    config = model.config.get_text_config(decoder=True)
    for name in ("hidden_size", "d_model", "n_embd"):
        if getattr(config, name, None):
            return int(getattr(config, name))
    raise ModelError(
        f"cannot tell the hidden size of {type(model).__name__}: its config has none of hidden_size, d_model, n_embd"
    )


def attach_value_head(model: PreTrainedModel, *, separate_critic: bool = False, source: str | None = None) -> None:
    """Give `model` a `value_head` (and a `critic` trunk), as submodules, so that every checkpoint carries them.

    Args:
        model: the policy, before PEFT wraps it.
        separate_critic: deep-copy the model as the critic's trunk instead of sharing the policy's.
        source: folder the model was loaded from; a head (or critic) saved there is restored.
    """
    for name in (HEAD_NAME, CRITIC_NAME):  # of a trainer that had the model before
        model._modules.pop(name, None)
    if separate_critic:
        critic = untaught_copy(model)
        # its language-model head predicts nothing: keep it out of checkpoints, gradients and tied-weight bookkeeping
        critic.set_output_embeddings(nn.Identity())
        critic._tied_weights_keys = None
        if hasattr(critic, "final_logits_bias"):  # BART and its kin add it to what the head gives, one for each token
            critic.final_logits_bias = torch.zeros(1, 1)
        model.add_module(CRITIC_NAME, critic)
    model.add_module(HEAD_NAME, ValueHead(hidden_size(model)).to(model.device))
    if source is not None:
        restore_value_head(model, source)


def restore_value_head(model: PreTrainedModel, folder: str) -> bool:
    """Load `value_head.*` and `critic.*` from the safetensors files of `folder`; False if it holds none.

    Raises:
        ModelError: the folder holds a head whose shapes do not fit this model.
    """
    wanted, _ = split_head(model.state_dict())
    found: dict[str, torch.Tensor] = {}
    for file in sorted(Path(folder).glob("*.safetensors")) if Path(folder).is_dir() else []:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (safetensors' handle is no mapping)
                plain = name.removeprefix(_ADAPTER_PREFIX)
                if plain in wanted:
                    found[plain] = tensors.get_tensor(name)
    if not found:
        return False
    misfits = [name for name in found if found[name].shape != wanted[name].shape]
    storages = {wanted[name].data_ptr() for name in found}  # tied weights are saved under one of their names
    missing = [name for name, tensor in wanted.items() if name not in found and tensor.data_ptr() not in storages]
    if misfits or missing:
        raise ModelError(
            f"the value head saved in {folder} does not fit: wrong shape {misfits or 'none'}, missing "
            f"{missing or 'none'}; train with the settings it was saved with (separate_critic among them)"
        )
    for name, tensor in found.items():
        whole = wanted[name]
        if isinstance(whole, DTensor):  # FSDP2: each process takes its part
            found[name] = distribute_tensor(tensor, whole.device_mesh, whole.placements)
    model.load_state_dict(found, strict=False)
    return True


def is_critics(name: str) -> bool:
    """Whether a parameter of this name (in the model itself, not in a wrapper) belongs to the critic."""
    return name.startswith((f"{HEAD_NAME}.", f"{CRITIC_NAME}."))


def split_head(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Part a state dict into the critic's tensors (`value_head.*`, `critic.*`) and the policy's own."""
    head = {name: tensor for name, tensor in state.items() if is_critics(name)}
    return head, {name: tensor for name, tensor in state.items() if name not in head}


def save_value_head(head: dict[str, torch.Tensor], folder: str) -> None:
    """Write the critic's tensors to `value_head.safetensors`, apart from the policy's: the folder stays loadable by
    plain transformers without a word about unexpected keys."""
    seen: set[int] = set()
    kept = {}
    for name, tensor in head.items():
        if tensor.data_ptr() not in seen:  # of tied weights one name is enough
            seen.add(tensor.data_ptr())
            kept[name] = tensor.detach().cpu().contiguous()
    save_file(kept, str(Path(folder) / HEAD_FILE), metadata={"format": "pt"})
