"""The search page in a real browser: what a person does with it, and what they see."""

import hashlib
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import psycopg
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Response, expect, sync_playwright
from sqlalchemy import Engine

from db.aliases import promote, remove_alias
from db.catalog import SeenFile, open_source, record_files, start_scan
from db.engine import make_engine, parse_url
from db.ledger import LeaseLimits, lease_batch, start_run
from db.specs import get_spec
from db.writer import ImagePatches, replace_patches
from extractor.arrays import DecodedImage, PatchFeatures
from extractor.backbone import load_backbone, resolve
from extractor.features import FeatureExtractor
from extractor.grid import spec_grid
from extractor.images import read_image
from extractor.spec import Recipe
from patchstore.api.app import PAGE, create_app
from patchstore.api.server import make_server
from patchstore.api.settings import ServeSettings
from patchstore.cli.serve import listen
from patchstore.store import register

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
HOSTILE = "<img src=x onerror=alert(1)>.png"
TOKEN = "a-token-of-some-length"
TIMEOUT_MS = 15_000
ORIGIN = "http://127.0.0.1"

# The contrast (WCAG 2) of every text that is seen, the worst first. Colours are painted to be read:
# a computed one may be in any notation.
CONTRASTS = """() => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const painted = (colours) => {
    context.clearRect(0, 0, 1, 1);
    for (const colour of colours) { context.fillStyle = colour; context.fillRect(0, 0, 1, 1); }
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (rgb) => rgb
    .map((value) => value / 255)
    .map((value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
  const contrasts = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].filter((node) => node.nodeType === 3 && node.data.trim());
    if (!text.length || !element.checkVisibility()) continue;
    if (element.matches("option, :disabled, :disabled + span, :disabled label span")) continue;
    const under = [];
    for (let at = element; at; at = at.parentElement) {
      under.unshift(getComputedStyle(at).backgroundColor);
    }
    const ground = ["white", ...under];
    const pair = [painted(ground), painted([...ground, getComputedStyle(element).color])];
    const [dark, light] = pair.map(luminance).sort((a, b) => a - b);
    contrasts.push([(light + 0.05) / (dark + 0.05), text[0].data.trim()]);
  }
  return contrasts.sort((a, b) => a[0] - b[0]);
}"""
# Controls that are seen but have no name, or are too small to be touched.
UNNAMED = """() => [...document.querySelectorAll("input, select, button, summary")]
  .filter((one) => one.checkVisibility())
  .filter((one) => ![one.ariaLabel, one.labels?.[0]?.textContent, one.textContent]
    .some((name) => name?.trim()))
  .map((one) => one.outerHTML)"""
SMALL = """() => [...document.querySelectorAll("input, select, button, summary, .button")]
  .filter((one) => one.checkVisibility() && !one.matches(".open, .hidden"))
  .filter((one) => one.getBoundingClientRect().height < 40)
  .map((one) => one.outerHTML)"""
# Whether what has the focus, or what stands for it, is outlined.
OUTLINED = """() => {
  const focused = document.activeElement;
  return [focused, focused.nextElementSibling, focused.closest("figure")].some((one) => {
    const style = one && getComputedStyle(one);
    return style && style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
  });
}"""
OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
COLOURS = """(canvas) => {
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  return new Set(new Uint32Array(data.buffer)).size;
}"""


@dataclass(frozen=True)
class Shop:
    """A store of pictures of seeded noise, each of 96 x 80 pixels, under three specs.

    Attributes:
        folder: `0.png`, `1.png`, `2.png` and one with a hostile name.
        url: of the service.
    """

    engine: Engine
    folder: Path
    url: str


@pytest.fixture(scope="module")
def chromium() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)}")
    return found


@pytest.fixture(scope="module")
def shop(
    chromium: str, server: str, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    for seed, name in enumerate(["0.png", "1.png", "2.png", HOSTILE]):
        pixels = np.random.default_rng(seed).integers(0, 255, (80, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE page_shop TEMPLATE {template}")
        engine = make_engine(parse_url(server).set(database="page_shop"))
        ingest(engine, folder, "tiny", 48)
        ingest(engine, folder, "wee", 32)
        ingest(engine, folder, "zoom", 32, scales=(1.0, 0.5))
        with serving(engine, ServeSettings()) as url:
            yield Shop(engine, folder, url)
        engine.dispose()
        admin.execute("DROP DATABASE page_shop WITH (FORCE)")


def ingest(
    engine: Engine, folder: Path, name: str, size: int, *, scales: tuple[float, ...] = (1.0,)
) -> None:
    """Stores real vectors of a folder's pictures, without the run around it."""
    sizes = {"patch_size": size, "stride": size // 2, "scales": scales}
    resolved = resolve(Recipe("squeezenet1_1", "random:0", **sizes))
    spec = register(engine, name, resolved)
    source, started = open_source(engine, str(folder)), start_scan(engine)
    record_files(engine, source, spec, [see(path) for path in sorted(folder.iterdir())], started)
    backbone = load_backbone(resolved.spec, resolved.weights_source)
    extractor = FeatureExtractor(resolved.spec, backbone, device="cpu", precision="float32")
    run = start_run(engine, source, spec)
    for lease in lease_batch(engine, spec, source, run, LeaseLimits(99, 10**9, 60.0)):
        pixels = read_image(Path(lease.uri))
        (result,) = extractor.extract([DecodedImage(pixels, spec_grid(resolved.spec, 96, 80))])
        assert isinstance(result, PatchFeatures)
        patches = ImagePatches(lease, result.boxes, result.scales, result.vectors)
        replace_patches(engine, spec, [patches])


def see(path: Path) -> SeenFile:
    content = path.read_bytes()
    return SeenFile(str(path), len(content), "mark", hashlib.sha256(content).digest(), 96, 80)


@contextmanager
def serving(engine: Engine, settings: ServeSettings) -> Iterator[str]:
    """The URL of a service that runs, or is about to: its socket listens already."""
    listener = listen("127.0.0.1", 0)
    service = make_server(create_app(engine, settings))
    thread = threading.Thread(target=service.run, args=([listener],))
    thread.start()
    yield f"{ORIGIN}:{listener.getsockname()[1]}"
    service.should_exit = True
    thread.join()
    listener.close()


@pytest.fixture(scope="module")
def browser(chromium: str, shop: Shop) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Seen:
    """What went on behind a page."""

    errors: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)
    refused: list[int] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda line: self.errors.append(line.text) if _wrong(line) else None)
        page.on("dialog", lambda dialog: self.errors.append(dialog.message))
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).hostname or ""))
        page.on("response", self._answered)

    def _answered(self, response: Response) -> None:
        if response.status >= 400:
            self.refused.append(response.status)


def _wrong(line: Any) -> bool:
    # The browser's own line about a refusal: those are counted by their status.
    return line.type in ("error", "warning") and "Failed to load resource" not in line.text


@pytest.fixture
def seen(shop: Shop) -> Iterator[Seen]:
    """No page logs an error or asks another host; a test says which refusals it expects."""
    seen = Seen()
    yield seen
    assert not seen.errors
    assert seen.hosts - {""} == {"127.0.0.1"}
    assert not seen.refused


@pytest.fixture
def page(browser: Browser, shop: Shop, seen: Seen) -> Iterator[Page]:
    """The page as it opens on a desk."""
    with opened(browser, shop.url, seen) as page:
        yield page


@contextmanager
def opened(browser: Browser, url: str, seen: Seen, **settings: Any) -> Iterator[Page]:
    context = browser.new_context(reduced_motion="reduce", **settings)
    context.set_default_timeout(TIMEOUT_MS)
    expect.set_options(timeout=TIMEOUT_MS)
    page = context.new_page()
    seen.watch(page)
    page.goto(url)
    yield page
    page.wait_for_load_state("networkidle")
    context.close()


def hits(page: Page) -> Locator:
    return page.locator("#hits .hit")


def choose(page: Page, path: Path) -> None:
    """Chooses a picture of one's own, and waits for the answer."""
    page.get_by_label("Choose a picture").set_input_files(path)
    expect(hits(page).first).to_be_visible()


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drags over the question's picture, from and to parts of its width and height."""
    page.locator("#stage").scroll_into_view_if_needed()
    box = page.locator("#stage").bounding_box()
    assert box is not None
    for step, (x, y) in enumerate((start, end)):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
        (page.mouse.up if step else page.mouse.down)()


def click_at(locator: Locator, x: float, y: float) -> None:
    """Clicks at a part of an element's width and height."""
    box = locator.bounding_box()
    assert box is not None
    locator.click(position={"x": x * box["width"], "y": y * box["height"]})


def pick_stored(page: Page, name: str) -> None:
    page.get_by_role("link", name=name, exact=True).click()
    expect(page.locator("#stage")).to_have_class(re.compile("pickable"))


def rectangle(page: Page) -> list[str]:
    fields = page.get_by_role("group", name="Rectangle").get_by_role("spinbutton")
    return [field.input_value() for field in fields.all()]


def test_from_a_picture_to_a_part_of_it_to_images_to_a_hit_and_on(page: Page, shop: Shop) -> None:
    choose(page, shop.folder / "0.png")
    expect(page).to_have_title("Like 0.png · patchstore")
    expect(page.get_by_text("The whole picture is asked about")).to_be_visible()

    drag(page, (0.25, 0.3), (0.75, 0.9))  # the patch at 24,24
    expect(hits(page).first.locator(".distance")).to_have_text("0.0000")
    expect(hits(page).first.locator(".box")).to_have_text("x 24, y 24, 48 × 48")
    expect(hits(page).first.locator(".name")).to_have_text("0.png")
    assert rectangle(page) == ["24", "24", "48", "48"]
    expect(page.locator("#status")).to_have_text(
        re.compile(r"^24 patches · cosine distance · exact · \d+ ms$")
    )

    page.get_by_role("radio", name="Images").check()
    expect(page.get_by_role("heading", name="Nearest images")).to_be_visible()
    expect(hits(page)).to_have_count(4)

    hits(page).nth(1).locator(".open").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("2 of 4")).to_be_visible()
    expect(dialog.locator(".hit-box")).to_be_visible()
    heat = dialog.locator("canvas.heat")
    expect(heat).to_be_visible()
    assert heat.evaluate(COLOURS) > 2
    expect(dialog.get_by_text("nearest place 0.")).to_be_visible()

    dialog.get_by_role("link", name="Search from here").click()
    expect(dialog).to_be_hidden()
    expect(page).to_have_url(re.compile("#patch=.*by=image"))
    expect(hits(page).first.locator(".distance")).not_to_have_text("")
    expect(page.locator("#numbers")).to_be_hidden()

    page.go_back()
    expect(page.locator("#asked")).to_have_text("0.png")
    expect(page.locator("#stage .region")).to_be_visible()
    assert rectangle(page) == ["24", "24", "48", "48"]
    expect(page.get_by_role("radio", name="Images")).to_be_checked()


def test_a_picture_can_be_dropped_anywhere(page: Page, shop: Shop) -> None:
    content = list((shop.folder / "1.png").read_bytes())
    transfer = page.evaluate_handle(
        """(content) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(content)], "1.png", { type: "image/png" }));
          return transfer;
        }""",
        content,
    )
    page.dispatch_event("body", "dragover", {"dataTransfer": transfer})
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    expect(page.locator("#asked")).to_have_text("1.png")
    expect(hits(page).first).to_be_visible()


def test_the_rectangle_is_moved_resized_typed_and_cleared(page: Page, shop: Shop) -> None:
    choose(page, shop.folder / "0.png")
    drag(page, (0.25, 0.3), (0.75, 0.9))
    drag(page, (0.5, 0.6), (0.25, 0.3))
    assert rectangle(page) == ["0", "0", "48", "48"]
    drag(page, (0.5, 0.6), (1.0, 0.9))  # by the corner
    assert rectangle(page) == ["0", "0", "96", "72"]
    page.get_by_label("width").fill("48")
    page.get_by_label("height").fill("48")
    page.get_by_label("height").press("Tab")
    expect(page).to_have_url(re.compile("region=0,0,48,48"))
    expect(hits(page).first.locator(".distance")).to_have_text("0.0000")
    page.get_by_label("x", exact=True).fill("60")
    page.get_by_label("x", exact=True).press("Tab")
    assert rectangle(page) == ["60", "0", "36", "48"]  # the width reached beyond the picture
    page.get_by_label("width").fill("20")
    page.get_by_label("width").press("Tab")
    assert rectangle(page) == ["60", "0", "20", "48"]
    page.get_by_role("button", name="Whole picture").click()
    expect(page).not_to_have_url(re.compile("region"))
    assert rectangle(page) == ["", "", "", ""]


def test_a_number_being_typed_outlives_the_answer_to_the_last_rectangle(
    page: Page, shop: Shop
) -> None:
    choose(page, shop.folder / "0.png")
    drag(page, (0.25, 0.3), (0.75, 0.9))
    page.get_by_label("width").fill("96")  # and the field is not left
    expect(page).to_have_url(re.compile("region=24,24,48,48"))
    expect(page.locator("#answer")).to_have_attribute("aria-busy", "false")
    assert rectangle(page) == ["24", "24", "96", "48"]
    page.get_by_label("width").press("Tab")
    expect(page).to_have_url(re.compile("region=0,24,96,48"))


def test_everything_can_be_done_by_keyboard(page: Page, shop: Shop) -> None:
    choose(page, shop.folder / "0.png")
    stage = page.locator("#stage")
    expect(stage).to_be_focused()
    page.keyboard.press("ArrowLeft")  # begins with the middle
    assert rectangle(page) == ["24", "20", "48", "40"]
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Shift+ArrowDown")
    assert rectangle(page) == ["24", "18", "48", "42"]
    expect(page).to_have_url(re.compile("region=24,18,48,42"))
    page.keyboard.press("Escape")
    expect(page).not_to_have_url(re.compile("region"))
    expect(page.locator("#answer")).to_have_attribute("aria-busy", "false")

    while not page.evaluate("document.activeElement.matches('.open')"):
        page.keyboard.press("Tab")
        assert page.evaluate(OUTLINED), page.evaluate("document.activeElement.outerHTML")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("1 of 24")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(dialog.get_by_text("2 of 24")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    expect(dialog.get_by_text("1 of 24")).to_be_visible()

    page.locator("#hit-stage:not([aria-busy])").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(dialog.get_by_text("1 of 24")).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(hits(page).first.locator(".open")).to_be_focused()


def test_a_click_on_a_stored_picture_asks_about_its_patch_there(page: Page) -> None:
    pick_stored(page, "2.png")
    click_at(page.locator("#stage"), 0.95, 0.95)
    expect(hits(page).first.locator(".box")).to_have_text("x 48, y 32, 48 × 48")
    expect(hits(page).first.locator(".distance")).to_have_text("0.0000")
    expect(hits(page).first.locator(".name")).to_have_text("2.png")
    expect(page.get_by_label("Same arrangement")).to_be_disabled()

    page.reload()  # the address says it all
    expect(page.locator("#asked")).to_have_text("2.png")
    expect(hits(page).first.locator(".box")).to_have_text("x 48, y 32, 48 × 48")
    expect(page.locator("#stage .mark").first).to_be_visible()


def test_a_stored_patch_is_picked_by_keyboard(page: Page) -> None:
    pick_stored(page, "0.png")
    page.locator("#stage").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#hint")).to_have_text("Patch at x 24, y 0, 48 × 48. Enter asks about it.")
    page.keyboard.press("Enter")
    expect(hits(page).first.locator(".box")).to_have_text("x 24, y 0, 48 × 48")


def test_the_heat_map_shows_every_patch_of_an_image_that_has_more_than_one_answer_holds(
    page: Page,
) -> None:
    pictures = []
    for most in (10_000, 8):  # of the 9 patches here; nothing else of the page and service differs
        code = (PAGE / "search.js").read_text().replace("MOST = 10_000", f"MOST = {most}")
        page.route(
            "**/page/search.js",
            lambda route, _, code=code: route.fulfill(body=code, content_type="text/javascript"),
        )
        page.reload()
        pick_stored(page, "0.png")
        click_at(page.locator("#stage"), 0.05, 0.05)
        asked: list[str] = []
        page.on("request", lambda request, asked=asked: asked.append(request.post_data or ""))
        hits(page).nth(1).locator(".open").click()
        expect(page.locator("#hit-stage:not([aria-busy])")).to_be_visible()
        pictures.append(page.locator("canvas.heat").evaluate("(canvas) => canvas.toDataURL()"))
        assert any("touching" in each for each in asked) == (most == 8)
        page.keyboard.press("Escape")
        page.get_by_role("link", name="New question").click()
    assert pictures[0] == pictures[1]


def test_large_numbers_are_asked_for_and_shown_digit_by_digit(page: Page, shop: Shop) -> None:
    image = httpx.get(f"{shop.url}/v1/images").json()["images"][2]
    httpx.put(
        f"{shop.url}/v1/images/{image['image_id']}/metadata", json={"serial": 9007199254740993}
    )
    pick_stored(page, "0.png")
    click_at(page.locator("#stage"), 0.05, 0.05)
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Metadata contains").fill('{"serial": 9007199254740993}')
    expect(hits(page)).to_have_count(9)
    hits(page).first.locator(".open").click()
    expect(page.locator("#hit-facts")).to_contain_text("9007199254740993")
    page.keyboard.press("Escape")
    page.get_by_label("Metadata contains").fill('{"serial": 9007199254740992}')
    expect(hits(page)).to_have_count(0)


def test_a_new_answer_leaves_the_keyboard_where_it_was(page: Page, shop: Shop) -> None:
    choose(page, shop.folder / "0.png")
    old = hits(page).nth(1).locator(".open").element_handle()
    hits(page).nth(1).locator(".open").focus()
    page.evaluate("location.hash += '&merge=1'")
    page.wait_for_function("(button) => !button.isConnected", arg=old)
    expect(hits(page).nth(1).locator(".open")).to_be_focused()


def test_the_last_hit_is_left_again_by_keyboard(page: Page) -> None:
    pick_stored(page, "0.png")
    click_at(page.locator("#stage"), 0.05, 0.05)
    hits(page).nth(22).locator(".open").click()
    page.get_by_role("button", name="Next").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#position")).to_have_text("24 of 24")
    expect(page.get_by_role("button", name="Next")).to_be_disabled()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#position")).to_have_text("23 of 24")


def test_a_hit_that_cannot_be_compared_shows_no_other_hits_picture(page: Page) -> None:
    pick_stored(page, "0.png")
    click_at(page.locator("#stage"), 0.05, 0.05)
    hits(page).first.locator(".open").click()
    picture = page.locator("#hit-stage:not([aria-busy]) img")
    expect(picture).to_have_attribute("src", re.compile("."))
    page.route("**/v1/search", lambda route: route.abort())
    page.get_by_role("button", name="Next").click()
    expect(page.locator("#hit-problem")).to_contain_text("The service does not answer")
    expect(picture).not_to_have_attribute("src", re.compile("."))
    expect(page.locator("#near")).to_be_empty()


def test_another_place_of_a_hit_is_gone_on_from(page: Page) -> None:
    pick_stored(page, "0.png")
    click_at(page.locator("#stage"), 0.05, 0.05)
    hits(page).nth(1).locator(".open").click()
    stage = page.locator("#hit-stage:not([aria-busy])")
    click_at(stage, 0.95, 0.05)
    expect(page.locator("#hit-facts")).to_contain_text("x 48, y 0, 48 × 48")
    page.get_by_role("dialog").get_by_role("link", name="Search from here").click()
    expect(hits(page).first.locator(".box")).to_have_text("x 48, y 0, 48 × 48")


def test_another_spec_is_asked_about_the_same_place(page: Page) -> None:
    pick_stored(page, "0.png")
    click_at(page.locator("#stage"), 0.5, 0.6)
    expect(hits(page).first.locator(".box")).to_have_text("x 24, y 24, 48 × 48")
    page.get_by_label("Spec").select_option("wee")
    expect(hits(page).first.locator(".box")).to_have_text("x 32, y 32, 32 × 32")
    expect(hits(page).first.locator(".distance")).to_have_text("0.0000")
    expect(page).to_have_url(re.compile("#patch=.*spec=wee"))


def test_an_option_that_changes_while_a_search_runs_changes_that_search(page: Page) -> None:
    pick_stored(page, "0.png")
    click_at(page.locator("#stage"), 0.5, 0.6)
    expect(hits(page)).to_have_count(24)
    other = hits(page).filter(has_text="1.png").first
    expect(other).to_be_visible()
    held: list[Any] = []  # the first search, for good
    page.route("**/v1/search", lambda route: route.continue_() if held else held.append(route))
    other.locator(".onward").click()
    expect(page.locator("#answer")).to_have_attribute("aria-busy", "true")
    page.get_by_label("Spec").select_option("wee")
    expect(page).to_have_url(re.compile("spec=wee"))
    expect(page.locator("#answer")).to_have_attribute("aria-busy", "false")
    expect(page.locator("#asked")).to_have_text("1.png")
    expect(hits(page).first.locator(".name")).to_have_text("1.png")


def test_of_two_changes_of_the_spec_the_last_one_counts(page: Page) -> None:
    pick_stored(page, "0.png")
    click_at(page.locator("#stage"), 0.5, 0.6)
    expect(hits(page)).to_have_count(24)
    page.route("**/patches?spec=wee", lambda _held: None)
    with page.expect_request("**/patches?spec=wee"):
        page.get_by_label("Spec").select_option("wee")
    page.get_by_label("Spec").select_option("zoom")
    expect(page).to_have_url(re.compile("spec=zoom"))
    expect(page.locator("#problem")).to_be_hidden()
    expect(hits(page).first.locator(".name")).to_have_text("0.png")


def test_nothing_is_busy_once_a_search_is_gone_back_from(page: Page) -> None:
    pick_stored(page, "0.png")
    page.route("**/v1/search", lambda _held: None)
    click_at(page.locator("#stage"), 0.5, 0.6)
    expect(page.locator("#answer")).to_have_attribute("aria-busy", "true")
    page.go_back()
    expect(page.locator("#status")).to_contain_text("Click a place of the picture")
    expect(page.locator("#answer")).to_have_attribute("aria-busy", "false")


def test_patches_of_the_spec_before_cannot_be_picked_while_others_are_loaded(page: Page) -> None:
    pick_stored(page, "0.png")
    page.route("**/patches?spec=wee", lambda route: (page.wait_for_timeout(500), route.continue_()))
    page.get_by_label("Spec").select_option("wee")
    expect(page.locator("#stage")).not_to_have_class(re.compile("pickable"))
    expect(page.locator("#stage")).to_have_class(re.compile("pickable"))
    click_at(page.locator("#stage"), 0.5, 0.6)
    expect(hits(page).first.locator(".box")).to_have_text("x 32, y 32, 32 × 32")


def test_an_alias_is_asked_by_its_own_name(page: Page, shop: Shop) -> None:
    promote(shop.engine, get_spec(shop.engine, "wee"), "live")
    page.reload()
    pick_stored(page, "0.png")
    click_at(page.locator("#stage"), 0.5, 0.6)
    expect(hits(page).first.locator(".box")).to_have_text("x 24, y 24, 48 × 48")
    page.get_by_label("Spec").select_option(label="live (wee)")
    expect(hits(page).first.locator(".box")).to_have_text("x 32, y 32, 32 × 32")
    expect(page).to_have_url(re.compile("#patch=.*spec=live"))
    remove_alias(shop.engine, "live")


def test_under_an_alias_the_same_patch_is_asked_about_whatever_lies_in_its_middle(
    page: Page, shop: Shop
) -> None:
    promote(shop.engine, get_spec(shop.engine, "zoom"), "near")
    image = httpx.get(f"{shop.url}/v1/images").json()["images"][0]["image_id"]
    patches = httpx.get(f"{shop.url}/v1/images/{image}/patches?spec=near").json()["patches"]
    (large, *_) = (patch for patch in patches if patch["box"][2] == 64)
    page.goto(f"{shop.url}/#patch={large['patch_id']}&spec=near")
    page.reload()
    expect(hits(page).first.locator(".box")).to_have_text("x 0, y 0, 64 × 64")
    page.get_by_label("Merge overlapping").check()
    expect(page).to_have_url(re.compile(f"#patch={large['patch_id']}&.*merge=1"))
    expect(hits(page).first.locator(".box")).to_have_text("x 0, y 0, 64 × 64")
    remove_alias(shop.engine, "near")


def test_other_images_merged_and_arranged_hits(page: Page, shop: Shop) -> None:
    choose(page, shop.folder / "0.png")
    page.get_by_label("Merge overlapping").check()
    expect(page).to_have_url(re.compile("merge=1"))
    page.get_by_label("Same arrangement").check()
    expect(hits(page).first.locator(".matched")).to_have_text("9 patches agree")
    expect(page.get_by_label("Merge overlapping")).to_be_disabled()
    page.get_by_label("Same arrangement").uncheck()
    page.get_by_label("Other images only").check()
    expect(page.locator("#hits .name").filter(has_text="0.png")).to_have_count(0)
    expect(hits(page).first.locator(".name")).to_be_visible()


def test_a_filter_that_is_no_json_object_is_refused_beside_its_field(
    page: Page, shop: Shop
) -> None:
    choose(page, shop.folder / "0.png")
    image = httpx.get(f"{shop.url}/v1/images").json()["images"][1]
    httpx.put(f"{shop.url}/v1/images/{image['image_id']}/metadata", json={"shelf": 3})
    page.get_by_text("More", exact=True).click()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    field, error = page.get_by_label("Metadata contains"), page.locator("#filter-error")
    field.fill('{"shelf": ')
    expect(error).to_contain_text("This is not JSON yet")
    field.fill("[3]")
    expect(error).to_contain_text("A JSON object is wanted")
    expect(field).to_have_attribute("aria-invalid", "true")
    assert not asked
    field.fill('{"shelf": 3}')
    expect(error).to_be_hidden()
    expect(hits(page)).to_have_count(9)
    names = set(page.locator("#hits .name").all_text_contents())
    assert names == {Path(image["uri"]).name}
    page.get_by_label("Hits").fill("0")
    expect(page.locator("#k-error")).to_be_visible()


def test_what_is_no_picture_is_said_to_be_none(
    page: Page, shop: Shop, seen: Seen, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    page.get_by_label("Choose a picture").set_input_files(tmp_path / "notes.txt")
    expect(page.locator("#problem")).to_contain_text("Not an image that can be read: ")
    expect(page.get_by_text("This browser cannot show the format")).to_be_visible()
    expect(hits(page)).to_have_count(0)
    assert seen.refused == [415]
    seen.refused.clear()
    page.get_by_role("link", name="New question").click()
    expect(page.locator("#problem")).to_be_hidden()
    choose(page, shop.folder / "0.png")


def test_a_spec_without_any_vector_is_said_to_have_none(page: Page, shop: Shop) -> None:
    recipe = Recipe("squeezenet1_1", "random:3", patch_size=48, stride=24)
    register(shop.engine, "bare", resolve(recipe))
    page.reload()
    choose(page, shop.folder / "0.png")
    page.get_by_label("Spec").select_option("bare")
    expect(page.locator("#status")).to_have_text("No picture has patches of bare yet.")


def test_a_patch_that_is_gone_is_said_to_be_gone(page: Page, shop: Shop, seen: Seen) -> None:
    page.goto(f"{shop.url}/#patch=999999999")
    expect(page.locator("#problem")).to_contain_text("No such patch")
    assert seen.refused == [404]
    seen.refused.clear()


def test_the_heading_says_what_was_asked_for_whatever_the_address_holds(
    page: Page, shop: Shop, seen: Seen
) -> None:
    heading = page.locator("#answer-heading")
    patch = httpx.get(f"{shop.url}/v1/images/1/patches?spec=tiny").json()["patches"][0]
    page.goto(f"{shop.url}/#patch={patch['patch_id']}&consistent=1")  # which has no arrangement
    expect(hits(page).first).to_be_visible()
    expect(heading).to_have_text("Nearest patches")
    page.goto(f"{shop.url}/#patch={patch['patch_id']}&by=image")
    expect(heading).to_have_text("Nearest images")
    page.goto(f"{shop.url}/#patch=999999999")
    expect(page.locator("#problem")).to_contain_text("No such patch")
    expect(heading).to_have_text("Nearest patches")
    seen.refused.clear()


def test_stored_pictures_are_found_by_how_their_name_begins(page: Page, shop: Shop) -> None:
    stored = page.locator("#stored li")
    expect(stored).to_have_count(4)
    page.get_by_label("Beginning with").fill(str(shop.folder / "1"))
    expect(stored).to_have_count(1)
    page.get_by_label("Beginning with").fill("/nowhere")
    expect(page.get_by_text("No stored picture's path begins with /nowhere")).to_be_visible()


def test_a_hostile_file_name_is_text(page: Page) -> None:
    pick_stored(page, HOSTILE)
    click_at(page.locator("#stage"), 0.5, 0.5)
    expect(hits(page).first.locator(".name")).to_have_text(HOSTILE)
    hits(page).first.locator(".open").click()
    expect(page.get_by_role("dialog").get_by_role("heading")).to_have_text(HOSTILE)
    expect(page.locator("img[src='x']")).to_have_count(0)


def test_nothing_is_wider_than_a_narrow_screen(browser: Browser, shop: Shop, seen: Seen) -> None:
    with opened(browser, shop.url, seen, viewport={"width": 320, "height": 640}) as page:
        expect(page.locator("#stored li").first).to_be_visible()
        assert page.evaluate(OVERFLOW) <= 0
        choose(page, shop.folder / HOSTILE)
        page.get_by_text("More", exact=True).click()
        drag(page, (0.25, 0.3), (0.75, 0.9))
        expect(hits(page).first.locator(".distance")).to_have_text("0.0000")
        assert page.evaluate(OVERFLOW) <= 0
        hits(page).first.locator(".open").click()
        expect(page.locator("canvas.heat")).to_be_visible()
        dialog = page.get_by_role("dialog")
        assert page.evaluate(OVERFLOW) <= 0
        assert dialog.evaluate("(dialog) => dialog.scrollWidth <= dialog.clientWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_names_sizes_and_contrasts_are_fit_for_everybody(
    browser: Browser, shop: Shop, seen: Seen, scheme: str
) -> None:
    def check(page: Page) -> None:
        assert page.evaluate(UNNAMED) == []
        assert page.evaluate(SMALL) == []
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 5
        assert contrasts[0][0] >= 4.5, contrasts[0]

    with opened(browser, shop.url, seen, color_scheme=scheme) as page:
        expect(page.locator("#stored li").first).to_be_visible()
        check(page)
        choose(page, shop.folder / "0.png")
        page.get_by_text("More", exact=True).click()
        page.get_by_label("Metadata contains").fill("{")
        check(page)
        page.get_by_label("Metadata contains").fill("")
        hits(page).first.locator(".open").click()
        expect(page.locator("canvas.heat")).to_be_visible()
        check(page)


def test_dark_mode_has_colours_of_its_own(browser: Browser, shop: Shop, seen: Seen) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        with opened(browser, shop.url, seen, color_scheme=scheme) as page:
            grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    light, dark = (sum(map(int, re.findall(r"\d+", ground)[:3])) for ground in grounds)
    assert light > 600
    assert dark < 150


def test_a_service_with_tokens_is_asked_with_one(browser: Browser, shop: Shop, seen: Seen) -> None:
    settings = ServeSettings.model_validate({"api_tokens": f"read:{TOKEN}"})
    with serving(shop.engine, settings) as url, opened(browser, url, seen) as page:
        field = page.get_by_role("textbox", name="Access token")
        field.fill("a-token-that-is-wrong")
        page.get_by_role("button", name="Continue").click()
        expect(page.get_by_text("This token was refused.")).to_be_visible()
        field.fill(f"\u200b{TOKEN}\u201d")  # as it may be pasted
        field.press("Enter")
        expect(page.get_by_role("dialog")).to_be_hidden()
        expect(page.locator("#stored li")).to_have_count(4)
        # Pictures come with the token, too.
        expect(page.locator("#stored img").first).to_have_attribute("src", re.compile("^blob:"))
        pick_stored(page, "1.png")
        click_at(page.locator("#stage"), 0.5, 0.5)
        expect(hits(page).first.locator("img")).to_have_js_property("naturalWidth", 48)
        assert set(seen.refused) == {401}
        seen.refused.clear()


def test_whoever_gave_no_token_may_try_again(browser: Browser, shop: Shop, seen: Seen) -> None:
    settings = ServeSettings.model_validate({"api_tokens": f"read:{TOKEN}"})
    with serving(shop.engine, settings) as url, opened(browser, url, seen) as page:
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name="Try again").click()
        page.get_by_role("textbox", name="Access token").fill(TOKEN)
        page.get_by_role("button", name="Continue").click()
        expect(page.locator("#stored li")).to_have_count(4)
        expect(page.get_by_role("button", name="Try again")).to_be_hidden()
        seen.refused.clear()


def test_the_page_is_served_with_a_strict_policy(shop: Shop) -> None:
    answer = httpx.get(shop.url)
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "style=" not in answer.text
    assert "<script>" not in answer.text
