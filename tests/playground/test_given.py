"""A picture to begin with: chosen, dropped, pasted, dragged over; edits and variations of it, and what goes wrong."""

from __future__ import annotations

import io
import shlex
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import requests
from playwright.sync_api import Locator, Page, expect

from dalle_server.web.jobs.current import EXTENSION as JOBS
from dalle_server.web.jobs.storage.rows import Query
from tests.playground.conftest import Witness
from tests.playground.pictures import Array, carried, choose, drawing, give, pixels_of, png
from tests.playground.server import Server
from tests.playground.test_drawing import draw
from tests.playground.test_gallery import Kept
from tests.playground.test_look import PHONE
from tests.web.waits import until


def paint(page: Page, part: str) -> None:
    page.locator("#given-paint").click()
    page.locator("#editor").get_by_role("button", name=part).click()
    page.get_by_role("button", name="Use this mask").click()
    expect(page.locator("#given-what")).to_contain_text("% anew")


def results(server: Server, number: int = 0) -> list[Array]:
    """The pictures of a job, the newest first."""
    store = server.app.extensions[JOBS].store
    return [pixels_of(store.read(picture)) for picture in store.rows.find("", Query())[number].pictures]


def open_card(card: Locator) -> None:
    expect(card).to_have_attribute("data-status", "done")
    card.get_by_role("button", name="Open picture 1").click()


@pytest.mark.parametrize("way", ["choose", "drop", "paste"])
def test_a_picture_comes_in(page: Page, way: str) -> None:
    file = png(drawing())
    if way == "choose":
        choose(page, file)
    elif way == "drop":
        files = carried(page, file)
        page.dispatch_event("#feed", "dragover", {"dataTransfer": files})
        expect(page.locator(".drop-here")).to_be_visible()
        page.dispatch_event("#feed", "drop", {"dataTransfer": files})
        expect(page.locator(".drop-here")).to_be_hidden()
    else:
        page.evaluate(
            """(clipboardData) => document.getElementById("prompt").dispatchEvent(
            new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }))""",
            carried(page, file),
        )
    expect(page.locator("#given-title")).to_have_text("mine.png")
    expect(page.locator("#given-what")).to_have_text("64 × 64 px · all of it may change")
    expect(page.locator("#given-image")).to_have_js_property("naturalWidth", 64)
    expect(page.locator("#prompt")).to_be_focused()
    page.get_by_role("button", name="Remove the picture").click()
    expect(page.locator("#given")).to_be_hidden()


def test_outside_the_mask_nothing_changes(page: Page, server: Server) -> None:
    given = drawing()
    give(page, png(given))
    paint(page, "Bottom right quarter")
    card = draw(page, "a new corner", 2)
    expect(card.locator(".origin")).to_have_text("Edit")
    expect(card).to_have_attribute("data-status", "done")
    for result in results(server):
        changed = (result != given).any(axis=-1)
        assert changed[40:, 40:].any()
        changed[32:, 32:] = False
        assert not changed.any()


def test_strength_0_gives_the_picture_back_and_1_another(page: Page, server: Server) -> None:
    given = drawing()
    give(page, png(given))
    for strength, same in (("0", True), ("1", False)):
        page.locator("#strength").fill(strength)
        card = draw(page, f"of strength {strength}")
        expect(card.locator(".origin")).to_have_text("Variation")
        expect(card).to_have_attribute("data-status", "done")
        assert (results(server)[0] == given).all() == same


def test_what_the_sliders_show_is_sent(page: Page) -> None:
    give(page, png(drawing()))
    page.locator("#strength").fill("0.35")
    page.locator("#candidates").fill("3")
    expect(page.locator("#strength-text")).to_have_text("35 %")
    with page.expect_response("**/v1/jobs") as answered:
        draw(page, "changed")
    over = answered.value.json()["over"]
    assert (over["strength"], over["candidates"], over["width_px"]) == (0.35, 3, 64)


def test_a_picture_needs_no_words(page: Page) -> None:
    give(page, png(drawing()))
    page.press("#prompt", "Enter")
    card = page.locator("article.card")
    expect(card).to_have_attribute("data-status", "done")
    expect(card.locator(".card-prompt")).to_have_text("Without words")


def test_a_gallery_picture_is_dragged_onto_the_composer(page: Page) -> None:
    card = draw(page, "from the gallery", 2)
    expect(card).to_have_attribute("data-status", "done")
    page.fill("#prompt", "")
    page.drag_and_drop(".cell >> nth=1", "#composer")
    expect(page.locator("#given-title")).to_have_text("“from the gallery”")
    expect(page.locator("#prompt")).to_have_value("from the gallery")
    with page.expect_request("**/v1/jobs") as sent:
        page.press("#prompt", "Enter")
    assert sent.value.post_data_json["image"]["index"] == 1  # its place, not its bytes
    expect(page.locator('article[data-status="done"] .origin')).to_have_text("Variation")


def test_a_gallery_picture_is_used_by_keyboard_and_painted_over(page: Page, server: Server) -> None:
    open_card(draw(page, "first"))
    page.get_by_role("button", name="Use this picture").press("Enter")
    expect(page.locator("#given")).to_be_visible()
    open_card(page.locator("article.card"))
    page.get_by_role("button", name="Paint over it").press("Enter")
    expect(page.locator("#editor-box")).to_be_focused()
    page.keyboard.press("Space")
    page.get_by_role("button", name="Use this mask").press("Enter")
    expect(page.locator("#given-what")).to_contain_text("% anew")
    expect(draw(page, "second").locator(".origin")).to_have_text("Edit")
    expect(page.locator('article[data-status="done"]')).to_have_count(2)
    assert (results(server)[0] != results(server, 1)[0]).any()


def test_by_touch_alone(server: Server, make_page: Callable[..., Page]) -> None:
    page = make_page(server, **PHONE)
    card = draw(page, "touched")
    expect(card).to_have_attribute("data-status", "done")
    card.get_by_role("button", name="Open picture 1").tap()
    page.get_by_role("button", name="Paint over it").tap()
    page.get_by_role("button", name="Top half").tap()
    page.get_by_role("button", name="Use this mask").tap()
    page.locator("#submit").tap()
    expect(page.locator('article[data-status="done"] .origin')).to_have_text("Edit")


def test_a_reload_finds_the_edit_again(slow_server: Server, make_page: Callable[..., Page]) -> None:
    page = make_page(slow_server)
    give(page, png(drawing()))
    paint(page, "Bottom half")
    card = draw(page, "long edit")
    expect(card).to_have_attribute("data-status", "running")
    expect(card.locator(".under")).to_be_visible()  # the given picture, until its own is there
    page.reload()
    slow_server.runner.step_s = 0
    card = page.locator("article.card", has_text="long edit")
    expect(card).to_have_attribute("data-status", "done")
    expect(card.locator(".origin")).to_have_text("Edit")
    expect(card.locator(".under")).to_have_count(0)
    assert (results(slow_server)[0][:32] == drawing()[:32]).all()


def test_best_of_waits_while_a_picture_is_given(page: Page) -> None:
    page.locator("#more summary").click()
    page.fill("#best_of", "4")
    give(page, png(drawing()))
    expect(page.locator("#best_of")).to_be_disabled()
    with page.expect_response("**/v1/jobs") as answered:
        draw(page, "an edit")
    assert answered.value.json()["best_of"] is None
    page.get_by_role("button", name="Remove the picture").click()
    expect(page.locator("#best_of")).to_be_enabled()
    expect(page.locator("#best_of")).to_have_value("4")


def test_an_edit_is_made_again_from_its_card(page: Page, server: Server) -> None:
    give(page, png(drawing()))
    paint(page, "Left half")
    card = draw(page, "an edit")
    expect(card).to_have_attribute("data-status", "done")
    page.get_by_role("button", name="Remove the picture").click()
    card.hover()
    card.get_by_role("button", name="Use these settings").click()
    expect(page.locator("#given-title")).to_have_text("Given for “an edit”")
    expect(page.locator("#given-what")).to_contain_text("50 % anew")
    page.press("#prompt", "Enter")
    expect(page.locator('article[data-status="done"]')).to_have_count(2)
    again, first = (results(server, number) for number in (0, 1))
    assert np.array_equal(again, first)


def test_a_cancelled_edit_is_tried_again_with_its_picture(slow_server: Server, make_page: Callable[..., Page]) -> None:
    page = make_page(slow_server)
    give(page, png(drawing()))
    paint(page, "Right half")
    card = draw(page, "stopped")
    expect(card).to_have_attribute("data-status", "running")
    card.get_by_role("button", name="Cancel").click()
    slow_server.runner.step_s = 0
    page.get_by_role("button", name="Remove the picture").click()
    card.get_by_role("button", name="Try again").click()
    expect(page.locator('article[data-status="done"]')).to_have_count(1)
    assert (results(slow_server)[0][:, :32] == drawing()[:, :32]).all()


@pytest.mark.parametrize(
    ("name", "kind", "file", "told"),
    [
        ("notes.txt", "text/plain", b"words", "notes.txt is not a picture"),
        ("torn.png", "image/png", png(drawing())[:60], "torn.png cannot be read as a picture"),
        ("large.png", "image/png", b"large", "large.png has"),
        ("vast.png", "image/png", b"vast", "50 million in all are the most"),
    ],
)
def test_what_is_no_picture_is_told(
    start_server: Callable[..., Server], make_page: Callable[..., Page], name: str, kind: str, file: bytes, told: str
) -> None:
    if file == b"large":
        file = png(np.random.default_rng(1).integers(0, 256, (400, 400, 3), dtype=np.uint8))
    elif file == b"vast":
        file = png(np.zeros((7_500, 7_000, 3), np.uint8))
    page = make_page(start_server(max_upload_bytes=640 * 1024))
    expect(page.locator("#model-line")).to_contain_text("fake")
    give(page, png(drawing()))
    expect(page.locator("#given-title")).to_have_text("mine.png")
    choose(page, file, name, kind)
    expect(page.locator("#form-error")).to_contain_text(told)
    expect(page.locator("#given-title")).to_have_text("mine.png")  # the one before is still there
    choose(page, png(drawing(8)), "other.png")
    expect(page.locator("#form-error")).to_be_hidden()


def test_a_model_without_an_encoder_takes_its_own_pictures_alone(
    start_server: Callable[..., Server], make_page: Callable[..., Page]
) -> None:
    page = make_page(start_server(features=("logprobs",)))
    expect(page.locator("#model-line")).to_contain_text("fake")
    choose(page, png(drawing()))
    expect(page.locator("#form-error")).to_contain_text("cannot take pictures from outside")
    open_card(draw(page, "its own"))
    page.get_by_role("button", name="Paint over it").click()
    page.locator("#editor").get_by_role("button", name="Left half").click()
    page.get_by_role("button", name="Use this mask").click()
    page.press("#prompt", "Enter")
    expect(page.locator('article[data-status="done"] .origin')).to_have_text("Edit")


def test_what_the_server_says_of_a_picture_is_shown(page: Page, witness: Witness) -> None:
    give(page, png(drawing()))
    page.locator("#candidates").fill("16")
    page.fill("#num_images", "16")
    page.fill("#prompt", "too many")
    page.press("#prompt", "Enter")
    expect(page.locator("#form-error")).to_contain_text("candidates")
    expect(page.locator("#candidates")).to_be_focused()
    assert any("400" in line for line in witness.console)
    witness.console.clear()


def test_a_large_file_goes_as_it_is(page: Page) -> None:
    """As a form: in JSON it would be a third larger, and a picture near the limit would not pass."""
    sent: list[dict[str, Any]] = []
    page.on("request", lambda request: sent.append(request.headers) if request.method == "POST" else None)
    give(page, png(drawing()))
    draw(page, "in a form")
    assert sent[0]["content-type"].startswith("multipart/form-data")


def test_the_code_of_an_edit_fetches_and_sends_its_picture(page: Page, server: Server) -> None:
    """The Python one, run as it is copied, makes the same picture."""
    give(page, png(drawing()))
    paint(page, "Left half")
    open_card(draw(page, "it's an edit"))
    page.get_by_role("tab", name="curl").click()
    words = shlex.split(page.locator("#snippet-text").inner_text().replace("\\\n", " "))
    assert {"image=@image.png", "mask=@mask.png", "prompt=it's an edit", "strength=1"} <= set(words)
    page.get_by_role("tab", name="openai").click()
    compile(page.locator("#snippet-text").inner_text(), "snippet.py", "exec")
    page.get_by_role("tab", name="Python").click()
    exec(page.locator("#snippet-text").inner_text(), {"open": lambda *_: io.BytesIO()})
    again, first = (results(server, number) for number in (0, 1))
    assert np.array_equal(again, first)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the client's, of OpenAI's own variations
@pytest.mark.parametrize("language", ["curl", "Python", "openai"])
def test_a_program_draws_a_picture_without_words(page: Page, server: Server, language: str) -> None:
    give(page, png(drawing()))
    page.locator("#strength").fill("0.7")
    page.fill("#num_images", "2")
    page.press("#prompt", "Enter")
    open_card(page.locator("article.card"))
    wanted = results(server)
    page.get_by_role("tab", name=language).click()
    program = page.locator("#snippet-text").inner_text()
    files: list[io.BytesIO] = []
    if language == "curl":
        fetch, post = (shlex.split(line) for line in program.replace("\\\n", " ").splitlines())
        fields = dict(word.split("=", 1) for word in post[2:] if "=" in word)
        image = requests.get(fetch[-1], timeout=20).content
        assert fields.pop("image") == "@image.png" and fields["prompt"] == ""
        requests.post(post[1], data=fields, files={"image": image}, timeout=20).raise_for_status()
        until(lambda: len(results(server)) == 2)
    else:
        exec(program, {"open": lambda *_: files.append(Kept()) or files[-1]})
    again = [pixels_of(file.getvalue()) for file in files] or results(server)
    assert np.array_equal(again, wanted)


@pytest.mark.parametrize("with_mask", [True, False], ids=["a part", "all"])
def test_the_openai_program_does_not_send_an_empty_prompt(page: Page, with_mask: bool) -> None:
    """OpenAI's edits need one, and only they take a mask."""
    give(page, png(drawing()))
    if with_mask:
        paint(page, "Left half")
    page.fill("#num_images", "1")
    page.press("#prompt", "Enter")
    open_card(page.locator("article.card"))
    page.get_by_role("tab", name="openai").click()
    program = page.locator("#snippet-text").inner_text()
    compile(program, "snippet.py", "exec")
    assert "prompt=" not in program
    assert ("only with a prompt" in program) == with_mask
    assert ("create_variation" in program) != with_mask
