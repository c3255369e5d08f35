"""The page in a real browser: choose, recommend, explain, chat, an error shown; a phone, the dark, the keyboard."""

import pytest

from benchmarks.model import BenchModel
from benchmarks.serving.ranker import Ranker
from tests.benchmarks.browser import browser, chromium
from tests.benchmarks.serving import TITLES, library_of, service_of, serving, threaded, write_run

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium is here (Debian: apt-get install chromium)")

COLUMNS = "document.querySelectorAll('.columns .items').length"
WRITTEN = "!document.getElementById('textBox').hidden && document.getElementById('text').className === 'text'"
ANSWERED = "document.getElementById('stop').hidden && document.querySelector('#talk .turn:not(.mine) p.text')"


@pytest.fixture(scope="module")
def tab():
    with browser() as tab:
        yield tab


@pytest.fixture(scope="module")
def library(tmp_path_factory, tiny_checkpoint):
    return library_of(write_run(tmp_path_factory.mktemp("run"), tiny_checkpoint).parents[2])


@pytest.fixture(scope="module")
def url(tiny_checkpoint, library):
    model = BenchModel(tiny_checkpoint)
    engines = [threaded(name, model, Ranker(model, library.data)) for name in ("sft", "stage2")]
    with serving(service_of(engines[0], library, engines[1])) as client:
        yield str(client.base_url)


def texts(tab, selector):
    return tab.run(f"[...document.querySelectorAll({selector!r})].map((one) => one.textContent)")


def click(tab, selector):
    tab.run(f"document.querySelector({selector!r}).click()")


def test_a_user_is_chosen_and_models_stand_side_by_side(tab, url):
    tab.open(url)
    tab.wait(f"{COLUMNS} === 3")
    assert texts(tab, ".columns h3") == ["sft", "transitions (baseline)", "stage2"]
    assert len(texts(tab, "#history li")) == 1 and texts(tab, "#taken li")  # user 0 has one item
    tab.run("document.getElementById('user').value = '5'")
    click(tab, "#go")
    tab.wait(f"{COLUMNS} === 3 && document.querySelectorAll('#history li').length === 6")
    first = texts(tab, ".columns section:first-child .title b")
    assert len(first) == 10 and set(first) <= set(TITLES)  # with its <b> as text
    assert tab.run("document.querySelectorAll('.columns b b').length") == 0
    assert texts(tab, ".columns section:first-child header .soft")[0].endswith("of 10 hits")
    assert tab.problems == []


def test_a_history_is_composed_by_keyboard(tab, url):
    tab.open(url, 390, dark=True)
    tab.wait(f"{COLUMNS} === 3")
    assert tab.run("document.documentElement.scrollWidth") <= 390
    assert tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 28)"
    click(tab, "[value=own]")
    for words in ("title 7", "title 3"):
        tab.run("document.getElementById('search').focus()")
        tab.type(words)
        tab.wait("document.querySelector('#found li')")
        tab.press("ArrowDown")
        tab.press("Enter")
    tab.wait("document.querySelectorAll('#history li').length === 2")
    tab.press("Enter")  # in the empty search: asks
    tab.wait(f"{COLUMNS} === 3 && document.getElementById('takenBox').hidden")
    click(tab, "#history li button")
    assert [text.rstrip("×") for text in texts(tab, "#history li")] == [TITLES[3]]
    assert tab.problems == []


def test_tasks_explanations_and_both_languages(tab, url):
    tab.open(url)
    tab.wait(f"{COLUMNS} === 3")
    click(tab, ".items .below button")  # why?
    tab.wait(WRITTEN)
    assert texts(tab, "#textHead")[0].startswith("Why? title") and texts(tab, "#text")[0]
    click(tab, "#lang")
    assert texts(tab, "#go") == ["推荐"] and tab.run("document.documentElement.lang") == "zh"
    tab.run("const s = document.getElementById('task'); s.value = 'interactive'; s.dispatchEvent(new Event('change'))")
    assert texts(tab, "#choiceLabel") == ["关键词"]
    tab.run("document.getElementById('user').value = '1'; document.getElementById('thinking').checked = true")
    click(tab, "#go")
    tab.wait(f"{COLUMNS} === 2 && !document.getElementById('thought').hidden")
    assert texts(tab, "#thoughtText")[0] and "no training users" in texts(tab, ".columns section:nth-child(2) p")[0]
    click(tab, "#lang")
    assert tab.problems == []


def test_it_chats_and_shows_what_is_wrong(tab, url):
    tab.open(url)
    assert tab.run("""parsed('{"pid":-1234567890123456789}').pid""") == "-1234567890123456789"  # to the last digit
    tab.wait(f"{COLUMNS} === 3")
    tab.run("document.getElementById('words').focus()")
    tab.type("看过什么 <img src=x>")
    tab.press("Enter")
    tab.wait(ANSWERED)
    assert texts(tab, "#talk .mine") == ["看过什么 <img src=x>"] and texts(tab, "#talk .turn:not(.mine) p.text")[-1]
    assert tab.run("document.getElementById('error').hidden")
    tab.run("document.getElementById('user').value = 'nobody'")
    click(tab, "#go")
    tab.wait("!document.getElementById('error').hidden")
    assert "'nobody' is in no test row" in texts(tab, "#error")[0]
    tab.run("document.getElementById('user').value = '2'")
    click(tab, "#go")
    tab.wait(f"{COLUMNS} === 3 && document.getElementById('error').hidden")
    assert tab.problems == []
