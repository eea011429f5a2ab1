"""What raters are asked: three questions after Shin et al. 2019, or those of a YAML file.

    questions:
      - name: Empathy
        ask: Does the reply show that it understands how the speaker feels?
        low: not at all
        high: very much
    points: 5
    speaker: Speaker
    listener: Listener
    introduction: What raters read before they begin.

Only `questions` must be there, and of each question only `name` and `ask`.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from alignkit.errors import ConfigError
from alignkit.recipe.reading import parse_yaml
from alignkit.settings import describe, did_you_mean


@dataclass(frozen=True)
class Question:
    """One question about a response, answered by a point of the scale.

    Attributes:
        name: short, in tables too.
        ask: the question in full.
        low: what the lowest point means.
        high: what the highest means.
    """

    name: str
    ask: str
    low: str = "not at all"
    high: str = "very much"


# The categories and what they ask for are those of appendix A.1 of the paper; the words are ours.
DEFAULT_QUESTIONS = (
    Question("Empathy", "Does the {listener} show that they understand how the {speaker} feels about what happened?"),
    Question("Relevance", "Does the reply suit the conversation, and keep to what it is about?"),
    Question("Fluency", "Can the reply be understood, and is it written in correct language?"),
)
INTRODUCTION = (
    "You will read short conversations between a {speaker} and a {listener}. Each ends with a reply of the {listener}; "
    "please rate that reply, and only that one. Replies may be by people or by machines; you are not told which. "
    "There is no right answer: your own impression counts. Every answer is kept at once, so you can stop "
    "whenever you like and go on later under the same name."
)


@dataclass(frozen=True)
class Questionnaire:
    """All that is asked of a rater.

    Attributes:
        questions: at least one, with different names.
        points: of the scale, 2 to 9: it runs from 1 (worst) to this.
        speaker: what the party is called who spoke last before the response.
        listener: what the responding party is called.
        introduction: what raters read first.
    """

    questions: tuple[Question, ...] = DEFAULT_QUESTIONS
    points: int = 5
    speaker: str = "Speaker"
    listener: str = "Listener"
    introduction: str = field(default=INTRODUCTION)

    @property
    def names(self) -> list[str]:
        """Of the questions, in their order."""
        return [question.name for question in self.questions]

    def filled(self, text: str) -> str:
        """A text with the parties' names in the places of {speaker} and {listener}."""
        return text.replace("{speaker}", self.speaker).replace("{listener}", self.listener)

    def to_dict(self) -> dict[str, Any]:
        """As `questionnaire_from` reads it."""
        return {**asdict(self), "questions": [asdict(question) for question in self.questions]}


def read_questionnaire(path: str | Path) -> Questionnaire:
    """The questions in a YAML file.

    Raises:
        ConfigError: no such file, not YAML, or something in it that is no questionnaire; all faults at once.
    """
    try:
        content = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the questions cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    return questionnaire_from(content, str(path))


def questionnaire_from(content: Any, source: str) -> Questionnaire:
    """The questions in a mapping.

    Args:
        content: with `questions`, and maybe `points`, `speaker`, `listener`, `introduction`.
        source: where it comes from, for messages.

    Raises:
        ConfigError: names every fault.
    """
    if not isinstance(content, dict):
        raise ConfigError(f"{source}: expected a mapping with 'questions', got {describe(content)}")
    known = ("questions", "points", "speaker", "listener", "introduction")
    faults = [f"unknown key {key!r}{did_you_mean(key, known)}" for key in content if key not in known]
    faults += [f"{key} must be text, got {describe(content[key])}" for key in known[2:] if not _text(content, key)]
    points = content.get("points", 5)
    if not isinstance(points, int) or isinstance(points, bool) or not 2 <= points <= 9:
        faults.append(f"points must be a whole number from 2 to 9, got {describe(points)}")
    listed = content.get("questions")
    if not isinstance(listed, list) or not listed:
        raise ConfigError(f"{source}: expected a list of questions, each with name and ask; got {describe(listed)}")
    for number, question in enumerate(listed, 1):
        faults += [f"question {number}: {fault}" for fault in _question_faults(question)]
    if faults:
        raise ConfigError(f"{source}: " + "; ".join(faults))
    names = [question["name"] for question in listed]
    if len(set(names)) < len(names):
        raise ConfigError(f"{source}: two questions have one name; there are: {', '.join(names)}")
    rest = {key: value for key, value in content.items() if key != "questions"}
    return Questionnaire(questions=tuple(Question(**question) for question in listed), **rest)


def _text(content: dict[str, Any], key: str) -> bool:
    return key not in content or (isinstance(content[key], str) and content[key].strip() != "")


def _question_faults(question: Any) -> list[str]:
    if not isinstance(question, dict):
        return [f"expected a mapping with name and ask, got {describe(question)}"]
    known = ("name", "ask", "low", "high")
    faults = [f"unknown key {key!r}{did_you_mean(key, known)}" for key in question if key not in known]
    faults += [f"{key} is missing" for key in known[:2] if key not in question]
    return faults + [f"{key} must be text, got {describe(question[key])}" for key in known if not _text(question, key)]
