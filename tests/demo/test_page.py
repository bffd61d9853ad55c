"""The page, as a person uses it, in a headless browser."""

import re

import pytest
from playwright.sync_api import expect

DONE = re.compile("^done in")


@pytest.fixture
def visit(browser, address):
    """Opens the page as a new visitor; nothing may go wrong in it."""
    wrong, contexts = [], []

    def opened(**options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "console",
            lambda message: (
                wrong.append(message.text)
                if message.type == "error" and "status of 422" not in message.text
                else None
            ),
        )
        page.goto(address)
        expect(page.locator("#status")).to_have_text("ready", timeout=30_000)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def ask(page, words=None, targets=True):
    if words is not None:
        page.fill("#request", words)
    page.set_checked("#stated", targets)
    page.click("#run")
    expect(page.locator("#status")).to_have_text(DONE, timeout=90_000)


def test_a_request_runs_to_its_verdict(visit):
    page = visit()
    page.check("#rivals input[value=oracle]")
    ask(page)
    expect(page.locator("#verdict")).to_have_text(re.compile(r"targets met: R = -?\d\.\d+"))
    assert page.locator("#measured tbody tr").count() == 3
    assert page.text_content("#code").startswith("grid(num_prb=")
    assert {block.get_attribute("data-block") for block in page.locator("#blocks g").all()} >= {
        "encode",
        "modulate",
        "channel",
        "decode",
    }
    assert {row.get_attribute("data-rival") for row in page.locator("#others tbody tr").all()} == {
        "sturdiest",
        "rule",
        "oracle",
    }
    shades = page.locator("#tokens span").evaluate_all(
        "spans => new Set(spans.map(span => span.style.backgroundColor)).size"
    )
    assert shades > 3  # the tokens weigh differently
    inks = page.evaluate("""() => ['delay', 'constellation', 'channel', 'errors'].map(id => {
        const canvas = document.getElementById(id), {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        return new Set(new Uint32Array(data.buffer)).size; })""")  # noqa: E501
    assert min(inks) > 4, inks  # every chart shows something
    expect(page.locator("#counted")).to_have_text(re.compile(r"\d+ of \d+ blocks in error"))


def test_without_targets_it_says_what_it_infers(visit):
    page = visit()
    ask(page, targets=False)
    expect(page.locator("#intent")).to_have_text(re.compile("It infers: delay at most"))


def test_a_module_that_fails_changes_the_workflow(visit):
    page = visit()
    ask(page)
    before = page.text_content("#code")
    method = re.search(r'estimate\(method="([\w-]+)"\)', before)[1]
    page.click("details summary >> text=Modules")
    page.uncheck(f'#modules input[value="estimate.{method}"]')
    expect(page.locator("#missing")).to_have_text(re.compile(f"estimate.{method}"))
    ask(page)
    after = page.text_content("#code")
    assert after.startswith("grid(") and f'estimate(method="{method}")' not in after


def test_a_script_that_is_typed_stays_text(visit):
    page = visit()
    words = "<script>window.hurt = 1</script><img src=x onerror='window.hurt = 1'>"
    ask(page, words)
    assert words in page.text_content("#prompt")
    assert page.evaluate("window.hurt") is None
    assert page.locator("#out img, #out script").count() == 0


def test_two_visitors_do_not_meet(visit):
    one, other = visit(), visit()
    for page, words in (
        (one, "The first one asks for a film."),
        (other, "The second one asks for a call."),
    ):
        page.fill("#request", words)
        page.set_checked("#stated", True)
    one.click("#run")
    other.click("#run")
    for page, mine, theirs in (
        (one, "first one", "second one"),
        (other, "second one", "first one"),
    ):
        expect(page.locator("#status")).to_have_text(DONE, timeout=90_000)
        assert mine in page.text_content("#prompt") and theirs not in page.content()
        assert page.text_content("#tokens").count("Use ") == 1
    assert one.context.cookies()[0]["value"] != other.context.cookies()[0]["value"]


def test_it_works_with_the_keyboard_alone(visit):
    page = visit()
    page.focus("#request")
    page.keyboard.press("Control+A")
    page.keyboard.type("Serve a cloud gamer.")
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "run":
            break
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text(DONE, timeout=90_000)


def test_the_live_mode_draws_step_after_step_until_it_is_stopped(visit):
    page = visit()
    page.click("#live")
    expect(page.locator("#live-note")).to_have_text(re.compile(r" of 3 met"), timeout=120_000)
    page.click("#live")
    expect(page.locator("#live")).to_have_attribute("aria-pressed", "false")
    note = page.text_content("#live-note")
    page.wait_for_timeout(1500)
    assert page.text_content("#live-note") == note


def test_it_fits_a_phone_and_follows_the_dark(visit):
    page = visit(viewport={"width": 390, "height": 800}, color_scheme="dark")
    ask(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    red, green, blue = map(
        int,
        re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3],
    )
    assert max(red, green, blue) < 60


def test_a_wrong_value_is_told(visit):
    page = visit()
    page.evaluate("document.getElementById('form').noValidate = true")
    page.fill("#s-snr_db", "999")
    page.click("#run")
    expect(page.locator("#status")).to_have_text(re.compile(r"scenario\.snr_db"), timeout=10_000)
    page.fill("#s-snr_db", "20")
    ask(page)
