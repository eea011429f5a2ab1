"""Measures one contestant in this process and prints one JSON line; `run.py` starts it in its environment.

python benchmarks/contestant.py alignkit-ppo --size S --epochs 4 --precision fp32
python benchmarks/contestant.py limit --size S --phases
"""

import argparse
import json
import tempfile
from contextlib import nullcontext
from multiprocessing import get_context
from types import ModuleType
from typing import Any

import ours
import torch
import transformers
import trl_ppo
import trl_rloo
from clock import Clock, resident_mib
from job import SEED, SIZES, Job, changed, saved_model
from phases import Phases

TRAINERS: dict[str, ModuleType] = {name: module for module in (ours, trl_ppo, trl_rloo) for name in module.NAMES}
NAMES = (*TRAINERS, "limit")
OVERRIDES = ("layers", "width", "vocabulary", "batch", "new_tokens", "epochs", "steps", "warmup")


def measure(name: str, job: Job, phases: Phases | None = None) -> dict[str, Any]:
    """Runs all steps of the job; with `phases`, says too where the seconds went."""
    if not job.folder.exists():  # made by a process of its own: this one's memory is looked at
        maker = get_context("spawn").Process(target=saved_model, args=(job,))
        maker.start()
        maker.join()
    after_imports = resident_mib()
    clock = Clock(job, updates_per_step=1 if name == "trl112-ppo" else job.epochs)
    if phases is not None:
        clock.at_mark = {job.warmup: phases.reset, job.warmup + job.steps: phases.stop}
    with tempfile.TemporaryDirectory() as folder:
        if name == "limit":
            from limit import Limit

            Limit(job, clock, phases.phase if phases else nullcontext).train()
        else:
            trainer = TRAINERS[name].build(name, job, folder, clock)
            if phases is not None:
                TRAINERS[name].watch(trainer, phases)
            trainer.train()
    figures: dict[str, Any] = {"steps": job.steps, **clock.figures(), "imports_rss_mib": after_imports}
    if phases is not None:
        figures["phases"] = phases.per_step(job.steps)
    return figures


def main() -> None:
    """Reads the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--size", choices=SIZES, default="S")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--phases", action="store_true", help="say where the seconds went; the figures suffer a little")
    for option in OVERRIDES:
        parser.add_argument(f"--{option.replace('_', '-')}", type=int, default=None)
    arguments = parser.parse_args()
    job = changed(arguments.size, precision=arguments.precision, **{key: getattr(arguments, key) for key in OVERRIDES})
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    import_what_it_needs(arguments.name)
    torch.manual_seed(SEED)
    figures = measure(arguments.name, job, Phases() if arguments.phases else None)
    print(json.dumps(figures), flush=True)


def import_what_it_needs(name: str) -> None:
    """So that the memory of imports can be told from that of training."""
    if name == "trl112-ppo":
        import trl.experimental.ppo
    elif name == "trl116-rloo":
        import trl

        _ = trl.RLOOTrainer  # imported on first use
    elif name != "limit":
        import alignkit

        _ = alignkit.PPOTrainer, alignkit.ReinforceTrainer


if __name__ == "__main__":
    main()
