"""The contract, check by check.

Each check takes a `Subject` and raises `AssertionError` with a sentence for the reward's author: what the reward did,
what is expected, and why it matters. A check that does not concern a reward raises `NotApplicable`.
"""

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

from alignkit.errors import RewardCallError, RewardError
from alignkit.reward.contract import parameters
from alignkit.testing.subject import NotApplicable, Subject, agree, same, word_ids

Check = Callable[[Subject], None]

LONG_WORDS = 4000
ODD_TEXTS = ["\n\n\t ", "😀😀 🏳️‍🌈", "Ünïcödé ﷺ עברית 中文", "a\x00b\x07c", "<s></s>[MASK]<|endoftext|>", "'\"\\{}%s"]


def check_is_called_by_keyword(subject: Subject) -> None:
    """The call takes keywords, and any column that the data may have besides those it needs."""
    taken = parameters(subject.reward)
    assert any(p.kind is p.VAR_KEYWORD for p in taken.values()), (
        f"its call takes ({', '.join(taken)}); add **columns: TRL passes every column of the data, and trainer_state, "
        "log_extra and log_metric"
    )


def check_has_a_name(subject: Subject) -> None:
    """The name works as part of a key in the log."""
    name = subject.name
    assert name != "lambda", "a lambda has no name for the log; write a function or a class"
    assert name and all(letter.isprintable() and letter not in " /\\:" for letter in name), (
        f"its name {name!r} becomes part of log keys and file names; set __name__ to a plain word such as 'politeness'"
    )


def check_is_not_a_module(subject: Subject) -> None:
    """The reward holds its network instead of being one."""
    assert not any(base.__module__.startswith("torch.nn.") for base in type(subject.reward).__mro__), (
        "it is a torch module; TRL takes a module for a sequence classifier and never calls it with text. Keep the "
        "network in an attribute of a plain class"
    )


def check_one_finite_score_each(subject: Subject) -> None:
    """One score per completion, each a finite number or None, and not None everywhere."""
    scores = subject.score()
    assert any(score is not None for score in scores), "it has no opinion (None) on any sample; it cannot be tried"


def check_works_as_trl_calls_it(subject: Subject) -> None:
    """TRL's own call: all keywords at once, with a column that the reward does not know."""
    import asyncio
    import inspect

    from alignkit.reward import call_reward

    logged: list[str] = []
    answer = subject.reward(
        prompts=subject.prompts,
        completions=subject.completions,
        completion_ids=word_ids(subject.completions),
        a_column_it_does_not_know=list(range(len(subject.prompts))),
        trainer_state=None,
        log_extra=lambda name, values: logged.append(name),
        log_metric=lambda name, value: logged.append(name),
        **subject.columns,
    )
    if inspect.isawaitable(answer):

        async def wait() -> Any:
            return await answer

        answer = asyncio.run(wait())
    # The answer is held against the contract by the same code as in training.
    call_reward(_Answered(subject.reward, answer), subject.prompts, subject.completions, name=subject.name)


class _Answered:
    """A reward whose answer is known already."""

    def __init__(self, reward: Any, answer: Any):
        self.answer = answer
        self.granularity = getattr(reward, "granularity", "completion")

    def __call__(self, **columns: Any) -> Any:
        return self.answer


def check_needs_no_undeclared_column(subject: Subject) -> None:
    """The columns that its signature or `required_columns` names are enough."""
    from alignkit.reward import required_columns

    needed = required_columns(subject.reward)
    try:
        subject.score(columns={name: subject.columns[name] for name in needed})
    except RewardError as error:
        raise AssertionError(
            f"with the columns it declares ({', '.join(needed) or 'none'}) alone it fails: {error}\nName every column "
            "it needs as a keyword without a default, so that a missing one is found before a model is loaded"
        ) from error


def check_leaves_its_input_alone(subject: Subject) -> None:
    """Prompts, completions and columns are the trainer's: scoring does not change them."""
    before = copy.deepcopy((subject.prompts, subject.completions, subject.columns))
    subject.score()
    assert (subject.prompts, subject.completions, subject.columns) == before, (
        "it changed the lists it was given; other rewards and the log read the same lists. Copy before changing"
    )


def check_is_deterministic(subject: Subject) -> None:
    """The same samples get the same scores twice."""
    first, second = subject.score(), subject.score()
    assert agree(first, second), (
        f"the same samples got {_short(first)}, then {_short(second)}; put networks in eval mode, and seed what draws"
    )


def check_does_not_depend_on_order(subject: Subject) -> None:
    """Shuffled samples get the same scores, shuffled."""
    order = [*range(1, len(subject.prompts), 2), *range(0, len(subject.prompts), 2)][::-1]
    scores, shuffled = subject.score(), subject.score(**subject.rows(order))
    assert agree([scores[i] for i in order], shuffled), (
        f"shuffled, the samples got {_short(shuffled)} instead of {_short([scores[i] for i in order])}; look for state "
        "that one sample leaves for the next, and for results that are sorted and not put back"
    )


def check_does_not_depend_on_the_batch(subject: Subject) -> None:
    """A sample alone gets the score that it gets among others."""
    scores = subject.score()
    for i, score in enumerate(scores):
        [alone] = subject.score(**subject.rows([i]))
        assert same(score, alone), (
            f"sample {i} got {_short(score)} among {len(scores)} samples and {_short(alone)} alone; every process "
            "scores its own slice of a batch, so a score must not depend on its neighbours (padding without a mask, "
            "ranks within the batch)"
        )


def check_can_be_pickled(subject: Subject) -> None:
    """A copy that went through pickle scores alike."""
    try:
        restored = pickle.loads(pickle.dumps(subject.reward))
    except Exception as error:
        raise AssertionError(
            f"it cannot be pickled ({type(error).__name__}: {error}), so it cannot go to another process; use a class "
            "at module level instead of a closure or lambda, and leave networks out in __getstate__"
        ) from error
    before, after = subject.score(), subject.score(reward=restored)
    assert agree(before, after), f"unpickled it scores {_short(after)} instead of {_short(before)}"


def check_takes_conversations(subject: Subject) -> None:
    """Prompts and completions may be lists of messages, references too."""
    prompts = [[{"role": "user", "content": prompt}] for prompt in _texts(subject.prompts)]
    completions = [[{"role": "assistant", "content": text}] for text in _texts(subject.completions)]
    plain = subject.score()
    try:
        scores = subject.score(prompts=prompts, completions=completions)
    except RewardCallError as error:
        raise AssertionError(
            f"{error}\nit raises on conversations, which are lists of messages: read a completion with "
            "alignkit.text.completion_text, a prompt with prompt_text"
        ) from error
    alike = all(score == scores[0] for score in scores) and not all(score == plain[0] for score in plain)
    assert not alike, (
        f"on conversations every sample scores {_short(scores[0])}, on plain text not: it seems to read the list "
        "of messages as if it were the text. Use alignkit.text.completion_text"
    )
    assert [score is not None for score in scores] == [score is not None for score in plain], (
        f"on conversations it has other opinions than on plain text: {_short(scores)}; read completions with "
        "alignkit.text.completion_text"
    )


def check_takes_plain_text(subject: Subject) -> None:
    """Prompts and completions may be strings."""
    subject.score(prompts=_texts(subject.prompts), completions=_texts(subject.completions))


def check_takes_empty_completions(subject: Subject) -> None:
    """A policy may stop at once: an empty completion is scored, or has None."""
    subject.score(completions=[""] * len(subject.completions))
    subject.score(completions=["", *_texts(subject.completions)[1:]])


def check_takes_very_long_completions(subject: Subject) -> None:
    """A policy may never stop: thousands of words are scored, or have None."""
    text = " ".join(_texts(subject.completions))
    long = (text + " ") * (LONG_WORDS // len(text.split()) + 1)
    subject.score(**{**subject.rows([0, 1]), "completions": [long, _texts(subject.completions)[1]]})


def check_takes_odd_texts(subject: Subject) -> None:
    """Blanks, emoji, other scripts, control characters, and special tokens written out."""
    for text in ODD_TEXTS:
        subject.score(**{**subject.rows([0]), "completions": [text]})


def check_state_can_be_saved(subject: Subject) -> None:
    """State survives a checkpoint: saved and loaded without running code, it gives the same scores."""
    stateful = subject.stateful()
    if not stateful:
        raise NotApplicable("it has no state")
    import torch

    before = subject.score()
    for name, part in stateful.items():
        file = io.BytesIO()
        torch.save(part.state_dict(), file)
        file.seek(0)
        try:
            state = torch.load(file, weights_only=True)
        except pickle.UnpicklingError as error:
            raise AssertionError(
                f"the state of '{name}' holds more than tensors, numbers, strings, lists and dictionaries, so loading "
                f"it would run code: {str(error).splitlines()[0]}"
            ) from error
        part.load_state_dict(state)
    after = subject.score()
    assert agree(before, after), f"after loading its own state it scores {_short(after)} instead of {_short(before)}"


def check_stands_still_in_evaluation(subject: Subject) -> None:
    """Scoring during evaluation changes no state."""
    stateful = subject.stateful()
    if not stateful:
        raise NotApplicable("it has no state")
    before = {name: _frozen(part.state_dict()) for name, part in stateful.items()}
    subject.score()
    after = {name: _frozen(part.state_dict()) for name, part in stateful.items()}
    assert before == after, "scoring in evaluation changed its state; learn only while `training` is True"


def check_learns_by_update_only(subject: Subject) -> None:
    """`update` changes the state, scoring does not; it returns floats; its state restores what it was."""
    learned = subject.learned()
    if not learned:
        raise NotApplicable("it does not train along")
    for reward in learned:
        trial = copy.deepcopy(reward)
        trial.train()
        start = _frozen(trial.state_dict())
        saved = copy.deepcopy(trial.state_dict())
        references = [str(value) for value in subject.columns.get("reference", subject.completions[::-1])]
        logged = trial.update(subject.prompts, subject.completions, references)
        assert isinstance(logged, dict) and all(isinstance(k, str) for k in logged), (
            f"update returned {_short(logged)}; expected a dictionary of names and floats to log"
        )
        wrong = {name: value for name, value in logged.items() if not _finite(value)}
        assert not wrong, f"update returned values to log that are no finite floats: {wrong}"
        assert _frozen(trial.state_dict()) != start, (
            "update changed nothing that state_dict shows; a checkpoint would lose what it learned"
        )
        trial.load_state_dict(saved)
        assert _frozen(trial.state_dict()) == start, "load_state_dict did not put back what state_dict gave"


def reward_checks() -> list[Check]:
    """All checks, in the order in which they are run; their `__name__` is their name, their docstring the claim."""
    return [check for name, check in globals().items() if name.startswith("check_")]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _texts(values: list) -> list[str]:
    from alignkit.text import completion_text

    return [completion_text(value) for value in values]


def _frozen(state: Any) -> Any:
    """A state in a form that can be compared."""
    if isinstance(state, dict):
        return {key: _frozen(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [_frozen(value) for value in state]
    return state.tolist() if callable(getattr(state, "tolist", None)) else state


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:99] + "…"
