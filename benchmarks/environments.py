"""Makes the contestants' environments under .bench/: `alignkit` with nothing but what it depends on, and `trl112` and
`trl116` without alignkit.

    python benchmarks/environments.py [alignkit] [trl112] [trl116]

What is there already is left alone; what was interrupted, or made from other pins, is finished. torch is installed
first and alone, so that nothing pulls another build of it; the environment variable TORCH_OPTIONS goes to that one
command, as in the Makefile. It needs the standard library only.
"""

import hashlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / ".bench"
CONSTRAINTS = ROOT / "constraints.txt"
# environment -> the file with its pins
PINS = {"alignkit": CONSTRAINTS, "trl112": ROOT / "benchmarks" / "constraints-trl112.txt", "trl116": CONSTRAINTS}


def pin(file: Path, package: str) -> str:
    """The line of `file` that pins `package`.

    Raises:
        SystemExit: there is none.
    """
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{package}=="):
            return line
    raise SystemExit(f"{file} has no line '{package}==...'")


def python(name: str) -> Path:
    """The environment's interpreter, made or not."""
    return HOME / name / "bin" / "python"


def _mark(name: str) -> tuple[Path, str]:
    text = pin(CONSTRAINTS, "torch") + "\n" + PINS[name].read_text(encoding="utf-8")
    return HOME / name / ".installed", hashlib.sha256(text.encode()).hexdigest()


def is_ready(name: str) -> bool:
    """Whether the environment was made to its end, from today's pins."""
    file, wanted = _mark(name)
    return file.exists() and file.read_text(encoding="utf-8") == wanted


def make(name: str) -> None:
    """Makes or finishes an environment.

    Raises:
        SystemExit: pip could not install; its own words are above.
    """
    if is_ready(name):
        return
    print(f"installing the environment .bench/{name}: a minute or two, without further words", flush=True)
    install = [str(python(name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    torch = pin(CONSTRAINTS, "torch")
    wanted = ["-e", str(ROOT)] if name == "alignkit" else [pin(PINS[name], "trl"), pin(PINS[name], "transformers")]
    commands = [
        [*install, *shlex.split(os.environ.get("TORCH_OPTIONS", "")), torch],
        [*install, "-c", str(PINS[name]), torch, *wanted],
    ]
    if not python(name).exists():
        commands.insert(0, [sys.executable, "-m", "venv", str(HOME / name)])
    alone = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    for command in commands:
        done = subprocess.run(command, env=alone, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{shlex.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    file, mark = _mark(name)
    file.write_text(mark, encoding="utf-8")


if __name__ == "__main__":
    for wanted in sys.argv[1:] or PINS:
        if wanted not in PINS:
            raise SystemExit(f"{wanted!r} is no environment; expected one of {', '.join(PINS)}")
        make(wanted)
