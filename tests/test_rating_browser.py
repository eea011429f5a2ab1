"""The page in a browser: two raters, a server that is killed between two answers, and a summary in the end.

Needs selenium, and Chromium with its driver; without them it is skipped.
"""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys

import pytest

pytest.importorskip("uvicorn", reason="part of the rate extra")
pytest.importorskip("krippendorff", reason="part of the rate extra")
pytest.importorskip("selenium", reason="pip install selenium")

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from alignkit.json_lines import append_json_lines, read_json_lines

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
]
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


class Server:
    """`alignkit rate` in a process of its own, always on the same port."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        for name, word in (("plain", "Oh ."), ("tuned", "I am glad for you !")):
            said = [{"prompt": f"I won {n} races.\n", "completion": f"{word} {n}"} for n in range(2)]
            append_json_lines(folder / f"{name}.jsonl", said)
        self.folder = folder
        self.start("plain.jsonl", "tuned.jsonl")

    def start(self, *systems: str) -> None:
        command = [sys.executable, "-m", "alignkit", "rate", *systems, "--output", "ratings", "--port", str(self.port)]
        self.process = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.PIPE, text=True)
        while not (address := re.search(r"http://\S+/", line := self.process.stdout.readline())):
            assert line, "it ended before it served"
        self.address = address[0]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL

    def rows(self) -> list[dict]:
        return read_json_lines(self.folder / "ratings" / "ratings.jsonl")


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    yield server
    server.process.kill()
    server.process.wait()


class Rater:
    """A person at a browser of their own."""

    def __init__(self, server: Server, name: str, folder):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*QUIET, f"--user-data-dir={folder}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        self.browser.get(server.address)
        self.browser.find_element(By.ID, "name").send_keys(name + Keys.ENTER)

    def until(self, seen) -> None:
        WebDriverWait(self.browser, 20, poll_frequency=0.05).until(lambda _: seen())

    def press(self, *keys: str) -> None:
        for key in keys:
            self.browser.switch_to.active_element.send_keys(key)

    def said(self, element: str) -> str:
        # read in one step: between finding and reading, the page may have gone on to the next
        return self.browser.execute_script(f"return document.getElementById('{element}')?.textContent ?? ''")

    @property
    def done(self) -> str:
        return self.said("done")

    @property
    def reply(self) -> str:
        return self.browser.find_element(By.CSS_SELECTOR, ".reply .text").text

    @property
    def checked(self) -> list[str]:
        return [one.get_attribute("value") for one in self.browser.find_elements(By.CSS_SELECTOR, "input:checked")]

    def rate(self, digits: str) -> None:
        """One page by the keys alone."""
        before = self.browser.current_url
        self.press(*digits, Keys.ENTER)
        self.until(
            lambda: (
                self.browser.current_url != before
                and self.browser.execute_script("return document.readyState") == "complete"
            )
        )


@pytest.fixture
def raters(server, tmp_path_factory):
    raters = [Rater(server, name, tmp_path_factory.mktemp(name)) for name in ("Ann", "Bo")]
    yield raters
    for rater in raters:
        rater.browser.quit()


def test_two_people_rate_the_server_is_killed_and_nothing_is_lost_or_doubled(server, raters):
    ann, bo = raters
    ann.rate("543")
    bo.rate("111")
    ann.press("2", "2")
    ann.until(lambda: len(server.rows()) == 8)
    reply = ann.reply
    server.kill()

    # an answer given while nobody is there: it is said so, and it is sent once somebody is
    ann.press("5")
    ann.until(lambda: "Not kept yet!" in ann.said("kept"))
    assert ann.checked == ["2", "2", "5"] and len(server.rows()) == 8
    server.start()
    ann.until(lambda: ann.said("kept") == "kept")
    assert (len(server.rows()), ann.done, ann.reply) == (9, "2", reply)
    ann.press(Keys.ENTER)
    ann.until(lambda: ann.browser.current_url.endswith("place=3"))

    # Back, by its key, shows what was answered; a mind is changed
    ann.press(Keys.BACKSPACE)
    ann.until(lambda: ann.browser.current_url.endswith("place=2"))
    assert (ann.checked, ann.reply) == (["2", "2", "5"], reply)
    ann.rate("1")
    assert [row["value"] for row in server.rows()[-2:]] == [5, 1]

    # Bo's page was open all the while; unanswered questions are asked for
    bo.press("3", "3")
    bo.browser.find_element(By.ID, "next").click()
    bo.until(lambda: "Please answer Fluency" in bo.said("kept"))
    bo.press("4", Keys.ENTER)
    bo.until(lambda: bo.done == "2" and bo.browser.current_url.endswith("place=3"))

    # who comes back under the same name goes on where they stopped
    bo.browser.get(server.address)
    bo.browser.find_element(By.ID, "name").send_keys("bo" + Keys.ENTER)
    bo.until(lambda: "who was here before" in bo.browser.page_source)
    bo.press(Keys.ENTER)
    bo.until(lambda: bo.browser.current_url.endswith("place=3"))
    for rater in raters:
        rater.rate("234")
        rater.rate("345")
        assert "All done. Thank you" in rater.browser.page_source
        assert not [entry for entry in rater.browser.get_log("browser") if "ERR_CONNECTION" not in entry["message"]]

    rows = server.rows()
    assert len({(row["rater"].lower(), row["item"], row["system"], row["question"]) for row in rows}) == 24
    assert len(rows) == 25, "24 answers and one change of mind"
    command = [sys.executable, "-m", "alignkit", "rate", "--summary", "ratings"]
    subprocess.run(command, cwd=server.folder, check=True, capture_output=True)
    summary = json.loads((server.folder / "ratings" / "summary.json").read_text(encoding="utf-8"))
    assert summary["raters"] == [{"answers": 12, "of": 12}] * 2
    assert {figures["ratings"] for system in summary["systems"].values() for figures in system.values()} == {4}


def test_a_page_of_another_study_is_refused_and_one_without_its_script_is_not(server, raters):
    ann, _ = raters
    ann.browser.execute_script("document.querySelector('[name=study]').value = 'another'")
    ann.press("1")
    ann.until(lambda: "Not kept! This page is of another study" in ann.said("kept"))
    assert server.rows() == []
    ann.browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    ann.browser.refresh()
    for name in (0, 1, 2):
        ann.browser.find_element(By.CSS_SELECTOR, f"input[name='answer-0-{name}'][value='4']").click()
    ann.browser.find_element(By.ID, "next").click()
    ann.until(lambda: ann.browser.current_url.endswith("place=2"))
    assert [row["value"] for row in server.rows()] == [4, 4, 4]
