"""The page: what raters see, and what becomes of their answers. Raters are never told which system wrote what.

Pages are plain forms that name a rater and a place in that rater's order, and nothing else: there are no sessions, so a
page that was open before the server was killed goes on working after it came back.
"""

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined

from alignkit.errors import AlignkitError, ConfigError, DataError
from alignkit.rating.store import Asked, Ratings
from alignkit.rating.study import LONGEST_NAME, Place, Study, clean_name

try:
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
    from starlette.routing import Route
except ModuleNotFoundError as error:
    raise ConfigError(
        f"the rating page needs the package {error.name}, which is not installed; install it with "
        "pip install -e '.[rate]'"
    ) from error

_FILES = Path(__file__).parent
_LONGEST_BODY = 64_000
_HEADERS = {
    # nothing from elsewhere, nothing to elsewhere, not even the address of a page
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def application(study: Study, ratings: Ratings, hosts: set[str] | None = None) -> Starlette:
    """The page as an ASGI application.

    Args:
        study: what is rated.
        ratings: where answers go.
        hosts: names that the page may be asked for under, None for any. Another site whose name was made to lead to
            this machine has another one.
    """
    page = _Page(study, ratings)

    def guarded(handler: Any) -> Any:
        async def answer(request: Request) -> Response:
            refusal = _refusal(request, hosts)
            if refusal:
                return PlainTextResponse(refusal, 403, _HEADERS)
            try:
                form = await _form(request) if request.method == "POST" else dict(request.query_params)
                response = await run_in_threadpool(handler, form)
            except AlignkitError as error:
                response = page.problem(str(error), 400, request.url.path == "/answers")
            except OSError as error:  # the disk is full, most likely: the rater keeps the page open and tries again
                words = f"The answer could not be written: {error.strerror or error}."
                response = page.problem(words, 507, request.url.path == "/answers")
            response.headers.update(_HEADERS)
            return response

        return answer

    files = {"/style.css": "text/css", "/page.js": "text/javascript"}
    return Starlette(
        routes=[
            Route("/", guarded(page.start), methods=["GET"]),
            Route("/start", guarded(page.begin), methods=["POST"]),
            Route("/rate", guarded(page.show), methods=["GET"]),
            Route("/rate", guarded(page.submit), methods=["POST"]),
            Route("/answers", guarded(page.answers), methods=["POST"]),
            Route("/end", guarded(page.end), methods=["GET"]),
            *(Route(path, guarded(_file(path, kind)), methods=["GET"]) for path, kind in files.items()),
        ]
    )


class _Page:
    """One method a route; each takes the fields of a form or address."""

    def __init__(self, study: Study, ratings: Ratings):
        self.study = study
        self.ratings = ratings
        self.fingerprint = study.fingerprint()
        # every template is escaped, whatever its name ends in: what a model wrote must never become markup
        loader = PackageLoader("alignkit.rating", ".")
        environment = Environment(
            loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        self.template = environment.get_template("page.html.j2")

    def start(self, form: dict[str, str], problem: str = "") -> Response:
        asked = len(self.study.questionnaire.questions) * (len(self.study.systems) if self.study.together else 1)
        filled = self.study.questionnaire.filled(self.study.questionnaire.introduction)
        total = len(self.study.items) * (1 if self.study.together else len(self.study.systems))
        return self._page(
            "start", introduction=filled, longest=LONGEST_NAME, given=form.get("rater", ""), problem=problem,
            total=total, asked=asked,
        )  # fmt: skip

    def begin(self, form: dict[str, str]) -> Response:
        try:
            rater = clean_name(form.get("rater", ""))
        except ConfigError as error:
            return self.start(form, str(error))
        known = self.ratings.answers(rater)
        onward = _link("/rate", rater)
        if not known:
            return RedirectResponse(onward, 303)
        places = self.study.places(rater)
        begun = sum(self._done(place, known) for place in places)
        return self._page("again", given=rater, begun=begun, total=len(places), onward=onward)

    def show(self, form: dict[str, str], problem: str = "", tried: bool = False) -> Response:
        rater = clean_name(form.get("rater", ""))
        known, places = self.ratings.answers(rater), self.study.places(rater)
        if not form.get("place"):
            return self._onward(rater, places, known, -1)
        here = self._here(form, places)
        place, item = places[here], self.study.items[places[here].item]
        asked = self.study.questionnaire
        responses = [
            {
                "text": item.responses[system],
                "questions": [
                    {
                        "name": question.name,
                        "ask": asked.filled(question.ask),
                        "low": question.low,
                        "high": question.high,
                        "field": _field(i, j),
                        "value": (value := known.get((place.item, system, question.name))),
                        "missing": tried and value is None,
                    }
                    for j, question in enumerate(asked.questions)
                ],
            }
            for i, system in enumerate(place.systems)
        ]
        return self._page(
            "rate", rater=rater, study=self.fingerprint, number=here + 1, turns=item.turns, responses=responses,
            points=asked.points, problem=problem, previous=_link("/rate", rater, here) if here else None,
            skip=self._next_link(rater, places, known, here), **self._progress(rater, places, known, here),
        )  # fmt: skip

    def submit(self, form: dict[str, str]) -> Response:
        """The button: keep what was answered, and go on where nothing is missing."""
        rater, place = self._keep(form)
        known, places = self.ratings.answers(rater), self.study.places(rater)
        if not self._done(place, known):
            return self.show(form, "Some questions are not answered yet; please answer them, or choose Later.", True)
        return self._onward(rater, places, known, self._here(form, places))

    def answers(self, form: dict[str, str]) -> Response:
        """What the script sends with every answer: keep it, and say how many pages are done."""
        rater, _ = self._keep(form)
        known = self.ratings.answers(rater)
        return JSONResponse({"done": sum(self._done(place, known) for place in self.study.places(rater))})

    def end(self, form: dict[str, str]) -> Response:
        rater = clean_name(form.get("rater", ""))
        known, places = self.ratings.answers(rater), self.study.places(rater)
        if not all(self._done(place, known) for place in places):
            return self._onward(rater, places, known, -1)
        return self._page("end", rater=rater, **self._progress(rater, places, known))

    def problem(self, words: str, status: int, plain: bool) -> Response:
        if plain:
            return PlainTextResponse(words, status)
        return self._page("error", status, problem=words, onward="/")

    def _keep(self, form: dict[str, str]) -> tuple[str, Place]:
        if form.get("study") != self.fingerprint:
            raise DataError("This page is of another study; please begin anew from the first page.")
        rater = clean_name(form.get("rater", ""))
        places = self.study.places(rater)
        place = places[self._here(form, places)]
        given: list[tuple[Asked, int]] = []
        for i, system in enumerate(place.systems):
            for j, question in enumerate(self.study.questionnaire.questions):
                value = form.get(_field(i, j))
                if value is not None:
                    given.append(((place.item, system, question.name), _number(value)))
        self.ratings.add(rater, given)
        return rater, place

    def _here(self, form: dict[str, str], places: list[Place]) -> int:
        number = _number(form.get("place", ""))
        if not 1 <= number <= len(places):
            raise DataError(f"There is no page {number}; there are {len(places)}.")
        return number - 1

    def _done(self, place: Place, known: dict[Asked, int]) -> bool:
        names = self.study.questionnaire.names
        return all((place.item, system, name) in known for system in place.systems for name in names)

    def _next(self, places: list[Place], known: dict[Asked, int], here: int) -> int | None:
        """The first place that is open, from the one after `here` on and around."""
        around = [*range(here + 1, len(places)), *range(max(here, 0))]
        return next((i for i in around if not self._done(places[i], known)), None)

    def _next_link(self, rater: str, places: list[Place], known: dict[Asked, int], here: int) -> str | None:
        following = self._next(places, known, here)
        return None if following is None else _link("/rate", rater, following + 1)

    def _onward(self, rater: str, places: list[Place], known: dict[Asked, int], here: int) -> Response:
        return RedirectResponse(self._next_link(rater, places, known, here) or _link("/end", rater), 303)

    def _progress(
        self, rater: str, places: list[Place], known: dict[Asked, int], here: int | None = None
    ) -> dict[str, Any]:
        shown = [
            {"link": _link("/rate", rater, i + 1), "done": self._done(place, known), "current": i == here}
            for i, place in enumerate(places)
        ]
        return {"places": shown, "total": len(places), "done": sum(bool(place["done"]) for place in shown)}

    def _page(self, view: str, status: int = 200, **values: Any) -> Response:
        asked = self.study.questionnaire
        names = {"speaker": asked.speaker, "listener": asked.listener, "system": "Instruction"}
        values = {"rater": "", "problem": "", **values}
        return HTMLResponse(self.template.render(view=view, title="Rate replies", names=names, **values), status)


def _refusal(request: Request, hosts: set[str] | None) -> str | None:
    """Why a request is not answered: it was made by another site, or under a name that is not ours."""
    host = request.headers.get("host", "")
    origin = request.headers.get("origin")
    if hosts is not None and _name_of(host) not in hosts:
        return f"this page is not served under the name {host!r}"
    if request.method == "POST" and origin not in (None, f"http://{host}", f"https://{host}"):
        return "answers are taken from this page only"
    return None


def _name_of(host: str) -> str | None:
    """The name in a Host header, without the port; None where it is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


async def _form(request: Request) -> dict[str, str]:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _LONGEST_BODY:
            raise DataError("What was sent is longer than any answer.")
    fields = parse_qs(body.decode("utf-8", errors="replace"), keep_blank_values=True)
    return {name: values[-1] for name, values in fields.items()}


def _file(path: str, kind: str) -> Any:
    content = (_FILES / path[1:]).read_bytes()
    return lambda form: Response(content, media_type=kind)


def _field(response: int, question: int) -> str:
    return f"answer-{response}-{question}"


def _link(path: str, rater: str, number: int | None = None) -> str:
    return f"{path}?{urlencode({'rater': rater} | ({} if number is None else {'place': number}))}"


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise DataError(f"Expected a number, got {text!r:.40}.")
    return int(text)
