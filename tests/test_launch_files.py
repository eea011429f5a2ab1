"""The files for `accelerate launch` say what accelerate understands, and start as many processes as their header."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from test_interruption import RECIPE

FOLDER = Path(__file__).resolve().parents[1] / "recipes" / "accelerate"
FILES = sorted(FOLDER.glob("*.yaml"))


def launched(file: Path):
    """The settings that `accelerate launch` arrives at with this file; it refuses keys that it does not know."""
    arguments = ["--config_file", str(file), "-m", "alignkit", "train", "recipes/sentiment/ppo.yaml"]
    return _validate_launch_command(launch_command_parser().parse_args(arguments))[0]


def test_there_is_a_file_for_each_way():
    assert [file.stem for file in FILES] == ["ddp", "fsdp2", "zero2", "zero3"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_knows_every_key(file):
    settings = launched(file)
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    known = vars(launch_command_parser().parse_args(["train.py"]))
    for group in ("fsdp_config", "deepspeed_config"):  # which accelerate itself does not look through
        unknown = content.get(group, {}).keys() - known.keys()
        assert not unknown, f"{file.name}: {group} has {unknown}"
        assert all(getattr(settings, key) == value for key, value in content.get(group, {}).items())
    assert settings.mixed_precision == "no"


def test_an_unknown_key_is_refused(tmp_path):
    broken = tmp_path / "ddp.yaml"
    broken.write_text(FILES[0].read_text(encoding="utf-8") + "num_proceses: 2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="num_proceses"):
        launched(broken)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_header_and_file_agree_on_command_and_number(file):
    text = file.read_text(encoding="utf-8")
    settings = launched(file)
    command = r"ALIGNKIT_NUM_PROCESSES=(\d+) accelerate launch --config_file (\S+) -m alignkit train (\S+)"
    number = re.search(command, text)
    assert number, f"{file.name} does not say how to start it"
    assert int(number[1]) == settings.num_processes == 2
    assert (FOLDER.parents[1] / number[2]) == file and (FOLDER.parents[1] / number[3]).is_file()
    assert (settings.multi_gpu, settings.use_fsdp, settings.use_deepspeed) == {
        "ddp": (True, False, False), "fsdp2": (False, True, False),
        "zero2": (False, False, True), "zero3": (False, False, True),
    }[file.stem]  # fmt: skip


def test_fsdp2_cuts_the_model_by_its_layers_and_saves_it_whole(monkeypatch):
    environment = prepare_multi_gpu_env(launched(FOLDER / "fsdp2.yaml"))
    for name, value in environment.items():
        if name.startswith(("FSDP_", "ACCELERATE_USE_FSDP")):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert plugin.state_dict_type.name == "FULL_STATE_DICT" and not plugin.cpu_ram_efficient_loading


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_files_reach_deepspeed(stage):
    settings = launched(FOLDER / f"zero{stage}.yaml")
    settings.deepspeed_fields_from_accelerate_config = "zero_stage"  # which `accelerate launch` adds on its way
    _, environment = prepare_deepspeed_cmd_env(settings)
    assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == str(stage)
    whole = environment.get("ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL", "false")
    assert whole == ("true" if stage == 3 else "false")


# what `accelerate launch` starts where there is no GPU, run for real: how many, and what it says of their number
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="with GPUs it starts several in other cases too")
@pytest.mark.parametrize("arguments, started", [
    (["--config_file", str(FOLDER / "ddp.yaml")], ["2", "2"]),
    (["--config_file", str(FOLDER / "ddp.yaml"), "--num_processes", "3"], ["3", "3", "3"]),
    (["--config_file", str(FOLDER / "ddp.yaml"), "--cpu"], ["none"]),
    (["--num_processes", "2"], ["none"]),
], ids=" ".join)  # fmt: skip
def test_how_many_processes_accelerate_starts_on_cpus(arguments, started, tmp_path):
    script = tmp_path / "count.py"
    script.write_text("import os; os.write(1, f\"size {os.environ.get('WORLD_SIZE', 'none')}\\n\".encode())\n")
    assert re.findall(r"size (\w+)", accelerate_launch(*arguments, str(script))) == started


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="it needs as many GPUs as processes")
def test_the_command_of_ddp_trains_in_two_processes_on_cpus(tmp_path):
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    job = ["-m", "alignkit", "train", str(tmp_path / "tiny.yaml"), f"training.output_dir={tmp_path / 'run'}"]
    more = ["training.max_steps=1", "training.per_device_train_batch_size=4"]
    accelerate_launch("--config_file", str(FOLDER / "ddp.yaml"), *job, *more, ALIGNKIT_NUM_PROCESSES="2")
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["num_processes"] == 2 and (tmp_path / "run" / "results.json").is_file()


def accelerate_launch(*arguments: str, **environment: str) -> str:
    """What it prints; it must end well."""
    command = [sys.executable, "-m", "accelerate.commands.launch", *arguments]
    own = {name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", "ALIGNKIT_NUM_PROCESSES")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**own, **environment})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
