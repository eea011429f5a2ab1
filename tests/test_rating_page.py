"""The page without a browser: what it shows, what it never shows, what it keeps and what it refuses."""

import asyncio
import html
import os
import re
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from rating_study import QUESTIONS, SYSTEMS, small_study

pytest.importorskip("starlette", reason="part of the rate extra")

from alignkit.rating.page import application
from alignkit.rating.store import Ratings
from alignkit.rating.study import open_study

HOST = "127.0.0.1:8642"


class Answer:
    """Status, headers and text of a response."""

    def __init__(self, status: int, headers: dict[str, str], text: str):
        self.status, self.headers, self.text = status, headers, text

    @property
    def fields(self) -> list[str]:
        return sorted(set(re.findall(r'name="(answer-[\d-]+)"', self.text)))

    @property
    def hidden(self) -> dict[str, str]:
        return dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', self.text))


class Caller:
    """Asks the application as a server would."""

    def __init__(self, app):
        self.app = app

    def get(self, path: str, **headers: str) -> Answer:
        return asyncio.run(self._ask("GET", path, b"", headers))

    def post(self, path: str, fields: dict, **headers: str) -> Answer:
        return asyncio.run(self._ask("POST", path, urlencode(fields).encode(), headers))

    async def _ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        parts = urlsplit(path)
        lines = {"host": HOST, **headers}
        scope = {
            "type": "http", "http_version": "1.1", "method": method, "path": parts.path, "root_path": "",
            "query_string": parts.query.encode(), "scheme": "http", "server": ("127.0.0.1", 8642),
            "headers": [(name.encode(), value.encode()) for name, value in lines.items()],
        }  # fmt: skip
        sent = []

        async def receive():
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message):
            sent.append(message)

        await self.app(scope, receive, send)
        headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return Answer(sent[0]["status"], headers, b"".join(part.get("body", b"") for part in sent[1:]).decode())


@pytest.fixture(params=[False, True], ids=["one", "together"])
def study(request, tmp_path):
    return open_study(tmp_path, small_study(together=request.param))


@pytest.fixture
def ratings(study, tmp_path):
    with Ratings(tmp_path, study) as ratings:
        yield ratings


@pytest.fixture
def page(study, ratings):
    return Caller(application(study, ratings, {"127.0.0.1", "localhost"}))


def give(page: Caller, shown: Answer, value: int = 3, **fields: str) -> Answer:
    return page.post("/rate", {**shown.hidden, **dict.fromkeys(shown.fields, value), **fields})


def test_a_rater_begins_answers_everything_and_is_told_so(page, study, ratings):
    at = page.post("/start", {"rater": "Ann"}).headers["location"]
    for number in range(len(study.places("Ann"))):
        at = page.get(at).headers["location"] if "place" not in at else at
        shown = page.get(at)
        assert f'<b id="done">{number}</b>' in shown.text
        assert page.get("/end?rater=Ann").headers["location"] == at, "not the end yet"
        at = give(page, shown).headers["location"]
    end = page.get(at)
    assert at == "/end?rater=Ann" and "All done. Thank you, Ann!" in end.text
    assert set(ratings.answers("Ann")) == {(i, s, q) for i in range(4) for s in SYSTEMS for q in QUESTIONS}
    assert page.get("/rate?rater=Ann").headers["location"] == at


def test_what_is_kept_is_what_was_shown(page, study, ratings):
    """The answers go to the very response that the page has, whatever the rater's order."""
    for number, place in enumerate(study.places("Ann"), 1):
        shown = page.get(f"/rate?rater=Ann&place={number}")
        replies = [html.unescape(text) for text in re.findall(r'<p class="text">(reply .*?)</p>', shown.text)]
        assert replies == [study.items[place.item].responses[system] for system in place.systems]
        for i, system in enumerate(place.systems):
            give(page, shown, 1 + (number + i) % 5)
            value = ratings.answers("Ann")[place.item, system, "Fluency"]
            assert value == 1 + (number + i) % 5


def test_no_page_names_a_system_and_texts_are_no_markup(page, study):
    texts = [page.get("/").text, page.get("/style.css").text, page.get("/page.js").text]
    for number in range(1, len(study.places("Ann")) + 1):
        shown = page.get(f"/rate?rater=Ann&place={number}")
        assert "was long &amp; &lt;b&gt;hard" in shown.text and "<i>" not in shown.text
        texts.append(shown.text)
    assert [name for text in texts for name in SYSTEMS if re.search(rf"\b{name}\b", text)] == []


def test_changing_ones_mind_is_possible_and_the_page_remembers(page, ratings):
    give(page, page.get("/rate?rater=Ann&place=2"), 4)
    again = page.get("/rate?rater=Ann&place=2")
    assert set(re.findall(r'value="(\d)" checked', again.text)) == {"4"}
    give(page, again, 2)
    assert set(ratings.answers("Ann").values()) == {2}


def test_what_is_answered_in_part_is_kept_and_the_rest_asked_for(page, ratings):
    shown = page.get("/rate?rater=Ann&place=1")
    back = page.post("/rate", {**shown.hidden, shown.fields[0]: 5})
    assert back.status == 200 and "not answered yet" in back.text
    assert back.text.count('<fieldset class="missing">') == len(shown.fields) - 1
    assert list(ratings.answers("Ann").values()) == [5]


def test_later_goes_on_and_comes_back_in_the_end(page, study):
    count = len(study.places("Ann"))
    for number in range(2, count + 1):
        give(page, page.get(f"/rate?rater=Ann&place={number}"))
    assert page.get("/rate?rater=Ann").headers["location"].endswith("place=1")
    assert "Later" not in page.get("/rate?rater=Ann&place=1").text, "there is no other left to go to"


def test_two_raters_at_once_do_not_meet(page, ratings):
    ann, bo = page.get("/rate?rater=Ann&place=1"), page.get("/rate?rater=Bo&place=1")
    give(page, bo, 1)
    give(page, ann, 5)
    assert set(ratings.answers("Ann").values()) == {5} and set(ratings.answers("Bo").values()) == {1}


def test_who_comes_back_is_asked_whether_it_is_they(page):
    give(page, page.get("/rate?rater=Ann&place=1"))
    asked = page.post("/start", {"rater": " ann "})
    assert "Are you the ann who was here before?" in asked.text and "1 of" in asked.text
    assert page.post("/start", {"rater": " "}).text.count("Please give a name") == 1


def test_the_script_is_told_what_is_kept(page):
    shown = page.get("/rate?rater=Ann&place=1")
    part = page.post("/answers", {**shown.hidden, shown.fields[0]: 5})
    whole = page.post("/answers", {**shown.hidden, **dict.fromkeys(shown.fields, 5)})
    assert (part.text, whole.text) == ('{"done":0}', '{"done":1}')


def test_a_full_disk_is_told_to_the_rater_and_the_answer_can_be_sent_again(page, ratings, monkeypatch):
    shown = page.get("/rate?rater=Ann&place=1")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        told = page.post("/answers", {**shown.hidden, shown.fields[0]: 5})
    assert told.status == 507 and told.text == "The answer could not be written: No space left on device."
    assert ratings.answers("Ann") == {}
    assert page.post("/answers", {**shown.hidden, shown.fields[0]: 5}).status == 200


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"study": "0"}, "of another study"),
        ({"rater": ""}, "give a name"),
        ({"place": "99"}, "no page 99"),
        ({"place": "-1"}, "Expected a number"),
        ({"answer-0-0": "6"}, "does not belong"),
        ({"answer-0-0": "x"}, "Expected a number"),
        ({"answer-0-0": "3" * 70_000}, "longer than any answer"),
    ],
)
def test_what_no_page_of_ours_sends_is_refused(page, ratings, change, words):
    shown = page.get("/rate?rater=Ann&place=1")
    told = page.post("/answers", {**shown.hidden, "answer-0-0": "3", **change})
    assert told.status == 400 and words in told.text and ratings.answers("Ann") == {}


def test_other_sites_can_neither_answer_nor_read(page, ratings):
    shown = page.get("/rate?rater=Ann&place=1")
    for path in ("/answers", "/rate", "/start"):
        assert page.post(path, {**shown.hidden, "answer-0-0": 1}, origin="https://example.org").status == 403
    assert page.get("/", host="example.org:8642").status == 403, "a foreign name that leads to this machine"
    for host, status in (("LOCALHOST:1", 200), ("[", 403), ("", 403), ("127.0.0.1.example.org", 403)):
        assert page.get("/", host=host).status == status
    assert page.post("/start", {"rater": "Ann"}, origin="null").status == 403, "a page without an address of its own"
    assert ratings.answers("Ann") == {}
    assert page.post("/answers", {**shown.hidden, "answer-0-0": 1}, origin=f"http://{HOST}").status == 200


def test_pages_load_nothing_from_elsewhere_and_stay_out_of_caches(page):
    shown = page.get("/rate?rater=Ann&place=1")
    assert "default-src 'none'" in shown.headers["content-security-policy"]
    assert shown.headers["cache-control"] == "no-store"
    loaded = re.findall(r'(?:src|href|action)="([^"]+)"', shown.text)
    assert loaded and all(address.startswith("/") and not address.startswith("//") for address in loaded)
    assert not re.search(r"https?:", page.get("/style.css").text + page.get("/page.js").text)


def test_links_name_the_rater_whatever_the_name(page):
    name = "Ä & <b>?=#"
    at = page.post("/start", {"rater": name}).headers["location"]
    assert parse_qs(urlsplit(at).query)["rater"] == [name]
    shown = page.get(page.get(at).headers["location"])
    assert html.unescape(shown.hidden["rater"]) == name and "<b>?=" not in shown.text
