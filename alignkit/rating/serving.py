"""`alignkit rate`: a study begun or gone on with, and its page served on this machine."""

import ipaddress
import socket
from collections.abc import Sequence
from pathlib import Path

from alignkit.errors import ConfigError
from alignkit.rating.questions import Questionnaire, read_questionnaire
from alignkit.rating.store import Ratings
from alignkit.rating.study import Study, make_study, open_study
from alignkit.rating.systems import match, parse_system, read_system, sample


def rate(
    systems: Sequence[str],
    output: str | Path,
    *,
    gold: bool = False,
    count: int = 50,
    seed: int = 42,
    questions: str | Path | None = None,
    together: bool = False,
    host: str = "127.0.0.1",
    port: int = 8642,
) -> None:
    """Serves the page until it is interrupted.

    Args:
        systems: `NAME=PATH` each, of a run's folder or a JSONL file; empty goes on with the study in `output`.
        output: the folder of the study and its ratings.
        gold: whether the reference is one of the systems.
        count: how many prompts are drawn.
        seed: of the draw, and of the raters' orders.
        questions: a YAML file in the place of the three default questions.
        together: show all responses to a prompt at once.
        host: address to listen on.
        port: to listen on; 0 takes one that is free.

    Raises:
        ConfigError: settings that cannot be, or a package that is missing.
        DataError: what the systems wrote cannot be read or matched.
    """
    from alignkit.rating.page import application

    with _listen(host, port) as listening:  # a port that is taken is told before anything is written
        study = open_study(output, begun(systems, gold, count, seed, questions, together) if systems else None)
        with Ratings(output, study) as ratings:
            address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/"
            responses = len(study.items) * len(study.systems)
            print(
                f"{len(study.items)} prompts, {len(study.systems)} systems: {responses} responses to rate", flush=True
            )
            print(f"raters open {address} (Ctrl-C ends it; answers are in {ratings.file})", flush=True)
            names = {"localhost", "127.0.0.1", "::1", host}
            if not _is_local(host):
                print("it can be reached from other machines, without a password and unencrypted", flush=True)
            _run(application(study, ratings, names if _is_local(host) else None), listening)
        print(f"ended; go on with: alignkit rate --output {output}, sum up with: alignkit rate --summary {output}")


def begun(
    systems: Sequence[str], gold: bool, count: int, seed: int, questions: str | Path | None, together: bool
) -> Study:
    """The study that these settings describe; says what is left out of the systems' rows."""
    places: dict[str, Path] = {}
    for argument in systems:
        name, path = parse_system(argument)
        if name in places:
            raise ConfigError(f"two systems are called {name!r}; name them: NAME={places[name]} OTHER={path}")
        places[name] = path
    items, remarks = match({name: read_system(path) for name, path in places.items()}, gold=gold)
    drawn = sample(items, count, seed)
    if len(drawn) < count:
        remarks.append(f"fewer prompts than --count: all {len(drawn)} are taken")
    for remark in remarks:
        print(remark, flush=True)
    return make_study(drawn, read_questionnaire(questions) if questions else Questionnaire(), seed, together)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()  # from here on nobody is turned away, also while the server starts
    except (OSError, OverflowError) as error:
        listening.close()
        raise ConfigError(
            f"nothing can listen on {host}, port {port}: {error}. Choose another --port, or 0 for any that is free"
        ) from error
    return listening


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _run(app: object, listening: socket.socket) -> None:
    import uvicorn

    # no log of requests: addresses hold the raters' names
    settings = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", server_header=False)  # type: ignore[arg-type]
    uvicorn.Server(settings).run(sockets=[listening])
