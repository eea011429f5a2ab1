"""The command line: exit codes, generation, evaluation, chat, and the description of the machine."""

import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from alignkit.cli import build_parser, main
from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer
from alignkit.recipe import load_recipe
from alignkit.run import run_recipe
from alignkit.run.generate import read_prompts
from alignkit.run.ingredients import build_reward

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "lm"
    tiny_causal_lm().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_every_command_explains_itself(capsys):
    for command in ("train", "evaluate", "compare", "generate", "chat", "rate", "rewards", "env"):
        with pytest.raises(SystemExit) as ended:
            build_parser().parse_args([command, "--help"])
        assert ended.value.code == 0 and "usage: alignkit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["evaluate", "RUN", "--ouput=f"], ["alignkit evaluate: unknown", "--ouput; did you mean '--output'?"]),
        (["train", "a.yaml", "--resume", "a=3", "--overwite"], ["alignkit train", "did you mean '--overwrite'?"]),
        (["rewards", "list", "--zzz"], ["see alignkit rewards list --help", "known: --help, --json, --load"]),
    ],
)
def test_a_misspelt_option_is_answered_with_the_nearest(words, told, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    err = capsys.readouterr().err
    assert ended.value.code == 2 and all(part in err for part in told), err


def test_the_version_is_the_packages(capsys):
    import alignkit

    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == f"alignkit {alignkit.__version__}"


def test_an_error_is_a_message_and_exit_code_2(tmp_path, capsys):
    assert main(["train", str(tmp_path / "none.yaml")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("alignkit: RecipeError: ") and "Traceback" not in said.err


def test_python_dash_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "alignkit", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("alignkit ")


def test_the_parser_loads_nothing_heavy():
    loaded = "print('torch' in sys.modules, 'yaml' in sys.modules)"
    probe = f"import sys; from alignkit.cli import build_parser; build_parser(); {loaded}"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_generate_completes_scores_and_repeats_itself(model, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the movie is\n\na story of\n")
    ask = ["generate", str(model), "--prompts", str(prompts), "--reward", "repetition", "--max-new-tokens", "6"]
    written = []
    for name in ("one.jsonl", "two.jsonl"):
        assert main([*ask, "--count", "2", "--output", str(tmp_path / name)]) == 0
        written.append([json.loads(line) for line in (tmp_path / name).read_text().splitlines()])
    assert written[0] == written[1]
    assert [row["prompt"] for row in written[0]] == ["the movie is"] * 2 + ["a story of"] * 2
    assert all(0 < row["length"] <= 6 and "repetition" in row["rewards"] for row in written[0])
    assert main([*ask, "--seed", "7"]) == 0
    assert "repetition" in capsys.readouterr().out


def test_only_the_recipe_is_required(capsys):
    with pytest.raises(SystemExit):
        main(["train"])
    assert capsys.readouterr().err.endswith("arguments are required: recipe; see alignkit train --help\n")


def test_temperature_zero_takes_the_likeliest_token(model, tmp_path):
    rows = []
    for seed in ("1", "2"):
        target = tmp_path / f"{seed}.jsonl"
        ask = ["generate", str(model), "--prompt", "the movie is", "--temperature", "0", "--seed", seed]
        assert main([*ask, "--max-new-tokens", "5", "--output", str(target)]) == 0
        rows.append(target.read_text())
    assert rows[0] == rows[1]


def test_generate_without_prompts_says_what_is_missing(capsys):
    assert main(["generate", "anything", "--reward", "repetition"]) == 2
    said = capsys.readouterr().err
    assert "add --prompt TEXT (repeatable) or --prompts FILE" in said and "alignkit rewards score" in said


def test_of_bitsandbytes_only_the_word_about_an_optional_package_is_kept_back(capsys, caplog):
    main(["generate", "anything"])  # any command
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s", "No module named 'kernels'")
    logger.warning("these weights are damaged")
    assert caplog.messages == ["these weights are damaged"]


def test_generate_passes_columns_of_jsonl_prompts_to_the_reward(model, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "the movie is", "reference": "good ."}) + "\n")
    ask = ["generate", str(model), "--prompts", str(tmp_path / "rows.jsonl"), "--reward", "reference_overlap"]
    assert main([*ask, "--max-new-tokens", "4", "--output", str(tmp_path / "out.jsonl")]) == 0
    (row,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert row["reference"] == "good ." and "reference_overlap" in row["rewards"]


def test_rewards_take_settings_in_the_words_of_a_recipe(model, tmp_path):
    out = tmp_path / "out.jsonl"
    entries = [
        "length: {target: 4}",
        "short: {use: length, target: 1, weight: 0.2}",
        "{clip: {reward: {use: length, target: 4}, high: 0.5}}",
    ]
    ask = ["generate", str(model), "--prompt", "the movie is", "--max-new-tokens", "6", "--output", str(out)]
    assert main([*ask, *(word for entry in entries for word in ("--reward", entry))]) == 0
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    # a recipe holds the same entries in its list
    recipe = tmp_path / "recipe.yaml"
    listed = "".join(f"  - {entry}\n" for entry in entries)
    recipe.write_text(f"trainer: ppo\nmodel: {model}\ndata: quickstart\nrewards:\n{listed}")
    expected = {}
    for name, spec in load_recipe(recipe).rewards.items():
        reward = build_reward(name, spec)
        expected[reward.__name__] = reward(prompts=[row["prompt"]], completions=[row["completion"]])[0]
    assert list(expected) == ["length", "short", "clip"] and row["rewards"] == pytest.approx(expected)
    assert expected["length"] != expected["short"]


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--prompt", "a", "--reward", "length: {targt: 4}"], "has no setting 'targt'; did you mean 'target'?"),
        (["--prompt", "a", "--reward", "length: 4"], "expected a mapping of its parameters, got the number 4"),
        (["--prompt", "a", "--reward", "length: {target: 4"], "is not valid YAML"),
        (["--prompt", "a", "--reward", "4"], "such as length or 'length: {target: 20}', got the number 4"),
        (["--prompt", "a", "--reward", "repetition", "--reward", "repetition"], "'repetition' stands twice"),
        (["--prompt", "a", "--reward", "repetitoin"], "Did you mean 'repetition'?"),
        (
            ["--prompt", "a", "--reward", "sentiment: {trust_remote_code: true}", "--no-code"],
            "sentiment.trust_remote_code: refused",
        ),
        (["--prompt", "a", "--decoder", "sampel"], "there is no decoder 'sampel'; did you mean 'sample'?"),
        (["--prompt", "a", "--count", "0"], "at least 1"),
        (["--prompt", "a", "--count", "2", "--temperature", "0"], "would write the same text 2 times"),
        (["--prompt", "a", "--reward", "reference_overlap"], "needs column 'reference'"),
        (["--prompt", "a", "--reward", "x.py:f", "--no-code"], "is refused"),
        (["--prompts", "missing.txt"], "cannot be read"),
        (["--prompts", "empty.txt"], "has no prompts"),
        (["--prompts", "bad.jsonl"], "bad.jsonl, line 2, is not valid JSON"),
        (["--prompts", "other.jsonl"], "row 1 of 'other.jsonl' has no prompt; it has: text"),
    ],
)
def test_generate_says_what_is_wrong(model, tmp_path, monkeypatch, capsys, arguments, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{nope\n')
    (tmp_path / "other.jsonl").write_text('{"text": "a"}\n')
    assert main(["generate", str(model), *arguments]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl"])
def test_a_line_separator_within_a_prompt_ends_no_prompt(name, tmp_path):
    prompts = ["one\u2028two", "three"]
    written = [json.dumps({"prompt": text}, ensure_ascii=False) if name.endswith("jsonl") else text for text in prompts]
    (tmp_path / name).write_text("\n\n".join(written), encoding="utf-8")
    assert [row["prompt"] for row in read_prompts(tmp_path / name)] == prompts


@pytest.fixture(scope="module")
def run(tiny_quickstart, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    run_recipe(load_recipe(RECIPES / "quickstart.yaml", [*tiny_quickstart, f"training.output_dir={folder}"]))
    return folder


def test_evaluating_a_run_repeats_its_figures_and_changes_nothing(run, tmp_path, capsys):
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["evaluate", str(run), "--output", str(tmp_path / "out.json")]) == 0
    written = json.loads((tmp_path / "out.json").read_text())
    after = json.loads((run / "results.json").read_text())["after"]
    assert written["figures"] == pytest.approx(after, abs=2e-5)
    assert len(written["rows"]) == 4 and "distinct_2" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == files


def test_evaluating_a_recipe_judges_the_model_that_it_starts_from(run, tiny_quickstart, tmp_path):
    out = tmp_path / "out.json"
    overrides = [*tiny_quickstart, f"training.output_dir={tmp_path / 'unused'}"]
    assert main(["evaluate", str(RECIPES / "quickstart.yaml"), *overrides, "--output", str(out)]) == 0
    before = json.loads((run / "results.json").read_text())["before"]
    assert json.loads(out.read_text())["figures"] == pytest.approx(before, abs=2e-5)


def test_a_run_is_judged_by_the_evaluation_of_another_recipe(run, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(
        (RECIPES / "quickstart.yaml").read_text().split("\nevaluation:")[0]
        + "\nevaluation: {prompts: 3, metrics: {brief: {reward: length, target: 2}}}\n"
    )
    out = tmp_path / "out.json"
    assert main(["evaluate", str(run), "--evaluation", str(other), "evaluation.prompts=2", "--output", str(out)]) == 0
    written = json.loads(out.read_text())
    assert len(written["rows"]) == 2 and {len(row["metrics"]) for row in written["rows"]} == {1}
    assert written["figures"]["brief"] == pytest.approx(sum(r["metrics"]["brief"] for r in written["rows"]) / 2)
    assert "distinct_2" not in written["figures"] and "reward" in written["figures"]  # trained on what it was
    assert written["recipe"]["evaluation"]["metrics"] == {"brief": {"reward": "length", "target": 2}}
    assert written["environment"]["seed"] == written["recipe"]["training"]["seed"]


def test_a_run_from_random_weights_is_evaluated_without_kl(tmp_path, capsys):
    """There is no model to measure it against; the trained one has no distance to itself."""
    (tmp_path / "scratch.yaml").write_text(f"""
trainer: ppo
model: {{scratch: {{hidden_size: 16, layers: 1, heads: 2, context: 96}}}}
data: {{use: quickstart, train_size: 32, validation_size: 4}}
rewards: {{length: {{target: 6}}}}
training: {{max_steps: 1, per_device_train_batch_size: 4, max_completion_length: 4, output_dir: {tmp_path}/run}}
evaluation: [length]
""")
    folder = run_recipe(load_recipe(tmp_path / "scratch.yaml"))
    assert "kl" in json.loads((folder / "results.json").read_text())["after"]
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--output", str(tmp_path / "out.json")]) == 0
    written = json.loads((tmp_path / "out.json").read_text())
    assert "kl" not in written["figures"] and "reward" in written["figures"]
    assert {row["kl"] for row in written["rows"]} == {None}
    assert "no KL: the recipe starts from random weights" in capsys.readouterr().out


def test_a_runs_folder_serves_wherever_a_model_is_asked_for(run, tmp_path, monkeypatch, capsys):
    ask = ["--prompt", "the movie is", "--max-new-tokens", "5"]
    written = []
    for name in (run, run / "model"):
        assert main(["generate", str(name), *ask, "--output", str(tmp_path / "out.jsonl")]) == 0
        written.append((tmp_path / "out.jsonl").read_text())
    assert written[0] == written[1]
    assert main(["evaluate", str(run), "--model", str(run), "--output", str(tmp_path / "judged.json")]) == 0
    after = json.loads((run / "results.json").read_text())["after"]
    assert json.loads((tmp_path / "judged.json").read_text())["figures"] == pytest.approx(after, abs=2e-5)
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.StringIO("the movie is\n"))
    assert main(["chat", str(run), "--max-new-tokens", "3", "--seed", "3"]) == 0
    assert "the movie is" in capsys.readouterr().out
    assert main(["chat", str(tmp_path)]) == 2
    assert "is neither a model's folder nor a run's" in capsys.readouterr().err


def test_evaluating_a_folder_without_a_run_says_so(tmp_path, capsys):
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "is no run's folder: it has no recipe.yaml" in capsys.readouterr().err


def test_chat_continues_lines_and_shows_scores(model, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("the movie is\n\n/new\na story of\n/quit\nnever\n"))
    ask = ["chat", str(model), "--reward", "short: {use: length, target: 1}", "--max-new-tokens", "3", "--seed", "3"]
    assert main(ask) == 0
    said = capsys.readouterr().out
    assert said.count("[short") == 2
    assert "the movie is" in said and "a story of" in said and "never" not in said


def test_chat_lists_its_commands(model, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("/help\n/quit\n"))
    assert main(["chat", str(model)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["/help", "/new", "/quit"]


def test_chat_keeps_the_conversation_where_there_is_a_template(model, tmp_path, monkeypatch, capsys):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = TEMPLATE
    tiny_causal_lm().save_pretrained(tmp_path / "chat")
    tokenizer.save_pretrained(tmp_path / "chat")
    seen = []
    import alignkit.chat as module

    real = module.generate_rows
    monkeypatch.setattr(module, "generate_rows", lambda *a, **k: seen.append(a[2]) or real(*a, **k))
    monkeypatch.setattr(sys, "stdin", io.StringIO("the movie\na story\n/new\nthe food\n"))
    assert main(["chat", str(tmp_path / "chat"), "--max-new-tokens", "3", "--seed", "1"]) == 0
    prompts = [rows[0]["prompt"] for rows in seen]
    assert [len(prompt) for prompt in prompts] == [1, 3, 1]
    assert [m["role"] for m in prompts[1]] == ["user", "assistant", "user"]
    assert len(capsys.readouterr().out.splitlines()) >= 3


def test_env_names_versions_machine_and_rewards(capsys):
    assert main(["env", "--json"]) == 0
    environment = json.loads(capsys.readouterr().out)
    assert {"torch", "trl", "alignkit"} <= set(environment["packages"])
    assert environment["num_processes"] == 1
    assert any(reward.startswith("sentiment (alignkit-rewards") for reward in environment["rewards"])
    assert main(["env"]) == 0
    assert "transformers" in capsys.readouterr().out
