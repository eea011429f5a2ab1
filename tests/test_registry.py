"""Names become rewards; broken plugins are listed, collisions refused, and `list` answers at once."""

import os
import subprocess
import sys
import textwrap

import pytest

from alignkit.errors import RewardCollisionError, RewardLoadError, RewardNotFoundError
from alignkit.registry import available_rewards, find_reward, load_reward
from alignkit.reward import describe_reward, required_columns

FILE = '''
class Shout:
    """Share of capitals."""
    def __init__(self, scale=1.0):
        self.scale = scale
    def __call__(self, completions, **columns):
        return [self.scale * sum(c.isupper() for c in text) / max(1, len(text)) for text in completions]

def longer(completions, unit, **columns):
    return [len(text) / unit for text in completions]

def plain(prompts, completions):
    return [0.0 for _ in completions]

ready = Shout(2.0)
number = 3
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Installs made-up distributions: `plugin("name", {"reward": "module:Object"}, {"module": source})`."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(distribution, entry_points, modules, version="1.0"):
        info = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        lines = "\n".join(f"{name} = {target}" for name, target in entry_points.items())
        (info / "entry_points.txt").write_text(f"[alignkit.rewards]\n{lines}\n")
        for name, source in modules.items():
            path = tmp_path / f"{name.replace('.', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(source))

    yield install
    for name in [name for name in sys.modules if name.startswith("plug_")]:
        del sys.modules[name]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def entry(name):
    [found] = [entry for entry in available_rewards() if entry.name == name]
    return found


# Registered names


def test_our_own_rewards_are_registered_like_anyones():
    names = {entry.name for entry in available_rewards() if entry.distribution == "alignkit-rewards"}
    assert names == {
        "discriminator",
        "distinct",
        "language_style",
        "length",
        "lexicon",
        "look_ahead",
        "reference_overlap",
        "repetition",
        "sentiment",
        "similarity",
    }
    assert all(entry.error is None and entry.summary for entry in available_rewards(load=True))


def test_a_plugin_is_found_and_built_with_its_settings(plugin):
    plugin("plug-shout", {"shout": "plug_shout:Shout"}, {"plug_shout": FILE})
    found = entry("shout")
    assert (found.distribution, found.version, found.error) == ("plug-shout", "1.0", None)
    assert found.summary == "Share of capitals."
    assert load_reward("shout", scale=2)(completions=["Ab"]) == [1.0]


def test_an_unknown_name_is_answered_with_the_nearest_and_the_list():
    with pytest.raises(RewardNotFoundError, match="Did you mean 'sentiment'") as caught:
        load_reward("sentimet")
    assert "repetition" in str(caught.value) and "file.py:Object" in str(caught.value)


@pytest.mark.parametrize(
    ("modules", "target", "words"),
    [
        (
            {"plug_raises": "class R: ...\nraise RuntimeError('no licence')"},
            "plug_raises:R",
            "RuntimeError: no licence",
        ),
        ({"plug_syntax": "def r(:\n"}, "plug_syntax:R", "SyntaxError"),
        ({}, "plug_nowhere:R", "no module named 'plug_nowhere'"),
        ({"plug_other": "class Q: ..."}, "plug_other:R", "has no 'R'"),
        ({"plug_needs": "import plug_not_installed\nclass R: ..."}, "plug_needs:R", "plug_not_installed"),
        ({"plug_heavy": "import torch\nimport plug_absent\nclass R: ..."}, "plug_heavy:R", "plug_absent"),
        (
            {"plug_pack/__init__": "", "plug_pack/a": "from plug_pack.b import R", "plug_pack/b": "R = 1 / 0"},
            "plug_pack.a:R",
            "ZeroDivisionError",
        ),
    ],
)
def test_a_broken_plugin_is_listed_with_its_error_and_stops_nothing(plugin, modules, target, words):
    plugin("plug-broken", {"broken": target}, modules)
    assert words in entry("broken").error
    assert entry("length").error is None
    assert load_reward("length", target=3)
    with pytest.raises(RewardLoadError, match=r"'broken'.*plug-broken 1\.0"):
        load_reward("broken")


def test_what_only_shows_after_a_heavy_import_shows_when_loading(plugin):
    source = "import plug_library_of_others\nraise OSError('later')\nclass R: ..."
    plugin("plug-late", {"late": "plug_late:R"}, {"plug_late": source, "plug_library_of_others": ""})
    assert entry("late").error is None
    [found] = [entry for entry in available_rewards(load=True) if entry.name == "late"]
    assert found.error == "OSError: later"


@pytest.mark.parametrize(
    "source",
    [
        "try:\n    import plug_optional\nexcept ImportError:\n    plug_optional = None\nclass R: ...",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import plug_types\nclass R: ...",
        "from plug_sound_other import *",
        "def __getattr__(name):\n    return object",
        "R = type('R', (), {})",
        "import torch\nclass R(torch.nn.Module): ...",
    ],
)
def test_a_sound_plugin_is_not_accused(plugin, source):
    plugin("plug-sound", {"sound": "plug_sound:R"}, {"plug_sound": source, "plug_sound_other": "class R: ..."})
    assert entry("sound").error is None
    find_reward("sound")


def test_two_plugins_of_one_name_are_refused_by_both_names(plugin):
    plugin("plug-one", {"twin": "plug_one:R"}, {"plug_one": "class R: ..."})
    plugin("plug-two", {"twin": "plug_two:R"}, {"plug_two": "class R: ..."}, version="2.1")
    entries = [entry for entry in available_rewards() if entry.name == "twin"]
    assert len(entries) == 2 and all("plug-one 1.0 and plug-two 2.1" in entry.error for entry in entries)
    with pytest.raises(RewardCollisionError, match=r"plug-one 1\.0 and plug-two 2\.1"):
        load_reward("twin")
    assert find_reward("plug_two:R").__module__ == "plug_two"


# Objects by path


def test_an_object_of_a_module_is_a_reward():
    assert load_reward("alignkit_rewards.length:Length", target=2)(prompts=[""], completions=["a b"]) == [1.0]


def test_a_class_a_function_and_a_ready_object_of_a_file_are_rewards(file):
    assert load_reward(f"{file}:Shout")(completions=["Ab"]) == [0.5]
    assert load_reward(f"{file}:ready")(completions=["Ab"]) == [1.0]
    assert load_reward(f"{file}:plain") is load_reward(f"{file}:plain")
    bound = load_reward(f"{file}:longer", unit=2)
    assert bound(completions=["abcd"]) == [2.0] and bound.__name__ == "longer"
    assert required_columns(bound) == [] and required_columns(load_reward(f"{file}:longer")) == ["unit"]


def test_a_changed_file_is_read_again(file, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert load_reward(f"{file}:plain")(["p"], ["c"]) == [0.0]
    before = file.stat()
    file.write_text(FILE.replace("[0.0 for", "[7.0 for"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as within one second: Python's cache goes by that
    assert load_reward(f"{file}:plain")(["p"], ["c"]) == [7.0]


def test_a_reward_of_a_file_is_recorded_with_its_hash(file):
    import hashlib

    described = describe_reward(load_reward(f"{file}:Shout", scale=3))
    assert described["target"] == f"{file}:Shout" and described["settings"] == {"scale": 3}
    assert described["sha256"] == hashlib.sha256(FILE.encode()).hexdigest()


@pytest.mark.parametrize(
    ("name", "settings", "error", "words"),
    [
        ("{file}:Shou", {}, RewardNotFoundError, "Did you mean 'Shout'"),
        ("{file}", {}, RewardNotFoundError, ":NAME"),
        ("absent.py:R", {}, RewardNotFoundError, "there is no file absent.py"),
        ("no_such_module.x:R", {}, RewardNotFoundError, "there is no module 'no_such_module'"),
        ("alignkit_rewards.length:", {}, RewardNotFoundError, "names no object"),
        ("{file}:number", {}, RewardLoadError, "is no reward"),
        ("os:getcwd", {}, RewardLoadError, "is no reward"),
        ("{file}:ready", {"scale": 1}, RewardLoadError, "takes no settings"),
        ("{file}:Shout", {"scal": 1}, RewardLoadError, "Did you mean 'scale'"),
        ("{file}:plain", {"unit": 1}, RewardLoadError, "has no setting 'unit'"),
        ("length", {}, RewardLoadError, "needs the setting target"),
        (
            "alignkit_rewards.length:Length",
            {"target": 1, "floor": "low"},
            RewardLoadError,
            "floor: expected a number, got",
        ),
    ],
)
def test_a_name_or_setting_that_does_not_work_says_what_would(file, name, settings, error, words):
    with pytest.raises(error, match=words):
        load_reward(name.format(file=file), **settings)


def test_a_file_that_raises_is_an_error_with_its_path_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("raise KeyError('x')")
    before = set(sys.modules)
    with pytest.raises(RewardLoadError, match=r"bad\.py raised KeyError"):
        load_reward(f"{path}:R")
    assert set(sys.modules) == before


# Security


@pytest.mark.parametrize("name", ["{file}:Shout", "os:system", "subprocess:Popen"])
def test_without_code_only_registered_rewards_load(file, name):
    with pytest.raises(RewardLoadError, match="--no-code"):
        load_reward(name.format(file=file), allow_code=False)
    assert load_reward("length", allow_code=False, target=2)


def test_code_that_was_refused_is_refused_inside_compositions_too(file):
    inner = {"use": f"{file}:Shout"}
    assert load_reward("whiten", reward=inner)
    with pytest.raises(RewardLoadError, match="--no-code"):
        load_reward("whiten", allow_code=False, reward=inner)
    with pytest.raises(RewardLoadError, match="--no-code"):
        load_reward("clip", allow_code=False, low=0, reward={"use": "whiten", "reward": inner})
    assert load_reward("whiten", reward=inner), "a refusal must not outlast its call"


def test_refused_code_does_not_run(tmp_path):
    path, trace = tmp_path / "trap.py", tmp_path / "ran"
    path.write_text(f"open({str(trace)!r}, 'w').close()\nclass R: ...")
    with pytest.raises(RewardLoadError):
        load_reward(f"{path}:R", allow_code=False)
    assert not trace.exists()


# Speed


def test_listing_loads_no_heavy_library():
    probe = (
        "import sys; from alignkit.registry import available_rewards; assert len(available_rewards()) > 7;"
        "print([m for m in ('torch', 'transformers', 'numpy', 'datasets', 'rich', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
