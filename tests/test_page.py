"""The page in a real browser: writing, chatting, comparing, watching, and an engine that is killed meanwhile."""

from collections.abc import Iterator

import pytest

from loaders.adapters import save_adapter
from tests.browser import Browser, browsing, is_there
from tests.engines import random_adapter, tiny_model
from tests.http_world import Pace, ScriptedBackend, Served, events_of, served, tiny_backend

pytestmark = pytest.mark.skipif(not is_there(), reason="needs Debian's chromium and chromium-driver")

CONTROL, ENTER, ESCAPE, RIGHT = "\ue009", "\ue007", "\ue00c", "\ue014"
NOTHING_RUNS = "fetch('/v1/system').then(r => r.json()).then(s => s.running.length === 0)"
VIEWS = ("write", "chat", "compare", "live")


@pytest.fixture(scope="module")
def engine() -> Pace:
    return Pace()


@pytest.fixture(scope="module")
def door(engine: Pace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("first", "second")):
        save_adapter(folder / name, random_adapter(tiny_model(), seed=seed))
    with served(tiny_backend(folder, context=1024, pace=engine, ends=False, num_blocks=400)) as opened:
        yield opened


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as opened:
        yield opened


@pytest.fixture
def page(browser: Browser, engine: Pace, door: Served) -> Iterator[Browser]:
    browser.go("about:blank")
    browser.complaints(), browser.requested()
    browser.go(f"{door.url}/")
    browser.wait("document.querySelector('#status .label').textContent === 'tiny'")
    browser.wait(NOTHING_RUNS)  # what an earlier page left has a lease, and would take this one's steps
    yield browser
    engine.allow()
    assert browser.complaints() == []


def show(page: Browser, view: str) -> None:
    page.run("location.hash = arguments[0]", view)
    page.wait(f"!document.querySelector('#{view}').hidden")


def test_posts_are_written_side_by_side_each_with_its_length_and_speed(page: Browser) -> None:
    page.fill("#write input[name=count]", "3")
    page.fill("#write input[name=tokens]", "40")
    page.click("#write button.primary")
    page.wait("document.querySelectorAll('#write .card .text').length === 3")
    page.wait("!document.querySelector('#write .writing')")
    cards = page.run(
        "return [...document.querySelectorAll('#write .card')]"
        ".map(card => [card.querySelector('.text').textContent, card.textContent])"
    )
    assert len({text for text, _ in cards}) == 3
    for text, whole in cards:
        assert f"{len(text)} characters" in whole and "tokens/s" in whole and "Copy" in whole


def test_a_cards_speed_is_in_tokens_however_many_come_at_once(page: Browser) -> None:
    said = page.wait(
        """import("/page/card.js").then(({ Card }) => {
          const [card, clock] = [new Card(), performance.now];
          let now = 1000;
          performance.now = () => now;
          card.add({ role: "assistant" }, null, 0);
          card.add({ content: "a" }, null, 1);
          now += 2000;
          card.add({ content: "bcd" }, null, 41);
          performance.now = clock;
          return card.told.textContent;
        })"""
    )
    assert said == "4 characters · 41 tokens · 20 tokens/s"


def test_a_card_is_copied(page: Browser, door: Served) -> None:
    page.share_clipboard(door.url)
    page.fill("#write input[name=count]", "1")
    page.fill("#write input[name=tokens]", "10")
    page.click("#write button.primary")
    page.wait("document.querySelector('#write .card .text')?.textContent && !document.querySelector('#write .writing')")
    page.click("#write .card button")
    page.wait("document.querySelector('#write .card button').textContent === 'Copied'")
    assert page.wait("navigator.clipboard.readText()") == page.text("#write .card .text")
    page.wait("document.querySelector('#write .card button').textContent === 'Copy'")


def test_writing_can_be_stopped_and_the_engine_is_free_again(page: Browser, engine: Pace) -> None:
    engine.allow(20)
    page.fill("#write input[name=tokens]", "700")
    page.click("#write button.primary")
    page.wait("document.querySelector('#write .card .text')?.textContent.length > 5")
    page.press(ESCAPE)
    page.wait("document.querySelector('#write button[name=stop]').hidden")
    page.wait("!document.querySelector('#write .writing')")
    engine.allow()
    page.wait(NOTHING_RUNS)


def test_a_chat_has_turns_that_can_be_edited_and_asked_again(page: Browser, engine: Pace) -> None:
    show(page, "chat")
    engine.allow(20)
    page.fill("#chat textarea", "Hello there")
    page.press(ENTER)
    page.wait("document.querySelector('.turn.assistant .text')?.textContent.length > 3")
    page.click("#chat button[name=stop]")
    page.wait("document.querySelector('#chat button[name=stop]').hidden")
    assert page.text(".turn.user .text") == "Hello there"
    engine.allow(30)
    page.run("[...document.querySelectorAll('.turn.assistant button')].find(b => b.textContent === 'Again').click()")
    page.wait("document.querySelectorAll('.turn').length === 2")
    page.wait("document.querySelector('.turn.assistant .text')?.textContent.length > 3")
    page.click(".turn.user button")
    page.wait("document.querySelectorAll('.turn').length === 0")
    assert page.run("return document.querySelector('#chat textarea').value") == "Hello there"


def test_what_a_user_writes_is_shown_as_text(page: Browser) -> None:
    show(page, "chat")
    page.fill("#chat textarea", "<img src=x onerror='window.broken = 1'><b>bold</b>")
    page.press(ENTER)
    page.wait("document.querySelector('.turn.user .text')?.textContent.includes('<b>bold</b>')")
    page.click("#chat button[name=clear]")
    assert page.run("return window.broken === undefined && document.querySelector('.turns img') === null")


def test_what_a_model_writes_is_shown_as_text(page: Browser) -> None:
    text = "<img src=x onerror='window.broken = 1'><script>window.broken = 1</script><b>bold</b> & &amp;"
    with served(ScriptedBackend(text)) as other:
        page.go(f"{other.url}/")
        page.wait("document.querySelector('#status .label').textContent === 'scripted'")
        for view in ("write", "compare"):
            show(page, view)
            page.fill(f"#{view} input[name=tokens]", "200")
            page.wait("document.querySelectorAll('#compare .boxes input').length === 1")
            page.click(f"#{view} button.primary")
            page.wait(f"document.querySelector('#{view} .card') && !document.querySelector('#{view} .writing')")
            assert page.text(f"#{view} .card .text") == text
        show(page, "chat")
        page.fill("#chat textarea", "Hello")
        page.press(ENTER)
        page.wait("document.querySelector('.turn.assistant .text')?.textContent.endsWith('&amp;')")
        assert page.text(".turn.assistant .text") == text
        assert page.run("return window.broken === undefined && !document.querySelector('.text img, .text b')")
        page.go("about:blank")


def test_an_adapter_is_loaded_compared_and_unloaded(page: Browser, door: Served) -> None:
    show(page, "live")
    page.wait("document.querySelectorAll('form.load option').length === 2")
    page.choose("form.load select", "second")
    page.click("form.load button")
    page.wait("document.querySelector('.adapters').textContent.includes('second')")
    show(page, "compare")
    page.wait("document.querySelectorAll('#compare .boxes input').length === 2")
    page.fill("#compare input[name=temperature]", "0")
    page.fill("#compare input[name=tokens]", "30")
    page.click("#compare button.primary")
    page.wait(
        "document.querySelectorAll('#compare .card').length === 2 && !document.querySelector('#compare .writing')"
    )
    texts = page.run("return [...document.querySelectorAll('#compare .card .text')].map(p => p.textContent)")
    assert texts[0] != texts[1] and all(texts)
    show(page, "live")
    page.run("[...document.querySelectorAll('.adapters button')].at(-1).click()")
    page.wait("!document.querySelector('.adapters').textContent.includes('second')")
    assert door.client.get("/v1/models/second").status_code == 404


def test_a_text_goes_on_while_the_engine_is_killed(page: Browser, engine: Pace, door: Served) -> None:
    show(page, "live")
    page.wait("document.querySelector('.tree .dot.running')")
    engine.allow(100)  # so the text is not at its end when the engine is killed
    page.click("#live button[name=start]")
    page.wait("document.querySelector('.demo').textContent.length > 50")
    page.click("#live button[name=kill]")
    page.wait("performance.getEntriesByName(`${location.origin}/v1/system/kill_engine`).length")
    engine.allow()
    page.wait("document.querySelector('.tree').textContent.includes('the last: killed')")
    page.wait("document.querySelector('#live button[name=start]').textContent === 'Start a text'")
    story = {
        "messages": [{"role": "user", "content": "Tell me a long story about a lighthouse keeper and the sea."}],
        **{"max_tokens": 512, "temperature": 0.7, "seed": 1, "ignore_eos": True, "stream": True},
    }
    chunks = events_of(door.post("/v1/chat/completions", story).text)
    undisturbed = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert page.text(".demo") == undisturbed


def test_suspending_holds_a_text_and_resuming_lets_it_go_on(page: Browser) -> None:
    show(page, "live")
    page.click("#live button[name=suspend]")
    page.wait("document.querySelector('#live button[name=suspend]').textContent === 'Resume'")
    assert "suspended" in page.text("#status")
    page.click("#live button[name=suspend]")
    page.wait("document.querySelector('#live button[name=suspend]').textContent === 'Suspend'")


def test_the_live_view_changes_while_a_text_is_written(page: Browser, engine: Pace) -> None:
    show(page, "live")
    shown = (
        "[...document.querySelectorAll('.batch tbody tr:not(.none)')]"
        ".map(row => [row.children[2].textContent, Number(row.children[4].textContent)])"
    )
    engine.allow(40)
    page.click("#live button[name=start]")
    page.wait(f"JSON.stringify({shown}.map(([state, count]) => [state, count > 20])) === '[[\"running\",true]]'")
    before, blocks = page.run(f"return {shown}")[0][1], page.text(".cache .legend dd")
    engine.allow(80)
    page.wait(f"{shown}[0][1] >= {before} + 60")
    assert int(page.text(".cache .legend dd")) > int(blocks) > 0
    engine.allow()
    page.click("#live button[name=start]")
    page.wait(f"{shown}.length === 0 && document.querySelector('.batch').textContent.includes('Nothing runs')")
    page.wait("Number(document.querySelector('.cache .legend dd').textContent) === 0")


def test_the_live_view_draws_the_last_minutes(page: Browser) -> None:
    show(page, "live")
    page.wait("document.querySelectorAll('.figure .curve').length === 4")
    assert page.run("return document.querySelector('.legend').textContent.includes('tokens')")


def test_the_keyboard_is_enough(page: Browser) -> None:
    page.run("document.querySelector('#tab-write').focus()")
    for view in (*VIEWS[1:], VIEWS[0]):
        page.press(RIGHT)
        page.wait(f"!document.querySelector('#{view}').hidden && document.activeElement.id === 'tab-{view}'")
    page.run("document.querySelector('#write textarea').focus()")
    page.fill("#write input[name=tokens]", "5")
    page.press(CONTROL, ENTER)
    page.wait("document.querySelector('#write .card')")
    page.wait("!document.querySelector('#write .writing')")


def test_every_field_has_a_name_that_is_read_aloud(page: Browser) -> None:
    nameless = page.run(
        "return [...document.querySelectorAll('input, select, textarea')]"
        ".filter(field => !field.labels?.length).map(field => field.name)"
    )
    assert nameless == []


@pytest.mark.parametrize("view", VIEWS)
def test_a_phone_needs_no_sideways_scrolling(page: Browser, view: str) -> None:
    page.size(360, 740)
    show(page, view)
    assert page.run("return document.documentElement.scrollWidth") <= 360
    page.size(1280, 900)


def test_it_is_light_and_dark(page: Browser) -> None:
    colours = []
    for is_dark in (False, True):
        page.light(is_dark=is_dark)
        colours.append(page.run("return getComputedStyle(document.documentElement).backgroundColor"))
    page.light(is_dark=False)
    assert len(set(colours)) == 2


def test_nothing_is_loaded_from_elsewhere(page: Browser, door: Served) -> None:
    for view in VIEWS:
        show(page, view)
    addresses = page.requested()
    assert len(addresses) > 8
    assert [address for address in addresses if not address.startswith((door.url, "about:"))] == []


def test_the_page_may_load_nothing_from_elsewhere(door: Served) -> None:
    policy = door.client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
