"""A test for each check of the contract, in a reward author's own suite.

pytest finds this plugin wherever alignkit is installed. A plugin author writes:

    @pytest.fixture
    def alignkit_reward():
        return Politeness()

    def test_contract(alignkit_check):
        alignkit_check()

The reward may also be named by a marker, `@pytest.mark.alignkit_reward("politeness", target=20)`, or on the command
line, `pytest --alignkit-reward politeness`. Values for required columns come from a fixture `alignkit_columns`.
"""

from collections.abc import Callable
from typing import Any

import pytest

_loaded = pytest.StashKey[dict[str, Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--alignkit-reward NAME`, as often as wanted."""
    group = parser.getgroup("alignkit", "alignkit: the reward contract")
    group.addoption(
        "--alignkit-reward",
        action="append",
        default=[],
        metavar="NAME",
        help="run tests that use the fixture alignkit_check on this reward; may be given several times",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Makes the marker known."""
    config.addinivalue_line(
        "markers", "alignkit_reward(name, **settings): the reward that alignkit_check checks, as for load_reward"
    )
    config.stash[_loaded] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each check, and for each reward named on the command line."""
    if "alignkit_check" not in metafunc.fixturenames:
        return
    from alignkit.testing import reward_checks

    checks = reward_checks()
    ids = [check.__name__.removeprefix("check_") for check in checks]
    metafunc.parametrize("_alignkit_one_check", checks, ids=ids)
    names = metafunc.config.getoption("--alignkit-reward")
    if names:
        metafunc.parametrize("_alignkit_named", names)


@pytest.fixture
def _alignkit_one_check() -> Any:
    raise pytest.UsageError("alignkit_check is for test functions, not for fixtures")


@pytest.fixture
def _alignkit_named() -> str | None:
    return None


@pytest.fixture
def alignkit_reward(request: pytest.FixtureRequest, _alignkit_named: str | None) -> Any:
    """The reward to check: of the marker or the command line; a suite with a reward of its own overrides this."""
    from alignkit.registry import load_reward

    marker = request.node.get_closest_marker("alignkit_reward")
    if marker is not None:
        name, settings = marker.args[0], marker.kwargs
    elif _alignkit_named is not None:
        name, settings = _alignkit_named, {}
    else:
        raise pytest.UsageError(
            "alignkit_check needs a reward: write a fixture alignkit_reward, mark the test with "
            "@pytest.mark.alignkit_reward('NAME'), or give --alignkit-reward NAME"
        )
    kept = request.config.stash[_loaded]
    key = f"{name} {sorted(settings.items(), key=lambda item: item[0])!r}"
    if key not in kept:
        kept[key] = load_reward(name, **settings)
    return kept[key]


@pytest.fixture
def alignkit_columns() -> dict[str, list]:
    """Values for the columns that the reward requires; empty here, overridden where texts will not do."""
    return {}


@pytest.fixture
def alignkit_check(
    _alignkit_named: str | None,
    _alignkit_one_check: Callable[[Any], None],
    alignkit_reward: Any,
    alignkit_columns: dict[str, list],
) -> Callable[[], None]:
    """Runs one check of the contract on `alignkit_reward`; the test that uses it is run once for each check."""

    def run() -> None:
        from alignkit.testing import NotApplicable, Subject, run_check

        reason = (getattr(alignkit_reward, "skip_checks", None) or {}).get(_alignkit_one_check.__name__)
        if reason is not None:
            pytest.skip(reason)
        try:
            run_check(_alignkit_one_check, Subject.of(alignkit_reward, alignkit_columns))
        except NotApplicable as error:
            pytest.skip(str(error))

    return run
