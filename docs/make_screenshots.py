"""Takes the pictures of the page: `docs/page.png`, `docs/page-heat.png`, `docs/page-narrow.png`.

python docs/make_screenshots.py --weights FILE [--backbone squeezenet1_1]

Over scikit-image's pictures, in a store of its own; needs a Chromium and the pretrained weights.
"""

import argparse
import io
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

sys.path.insert(0, str(Path(__file__).parent.parent))  # benchmarks are no part of what is installed

from benchmarks.service import running_service
from patchstore.bench import home as homes

DOCS = Path(__file__).parent
PICTURES = Path("/tmp/photos")  # as the pictures show it; must not exist
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
QUIET = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


def main() -> None:
    """Starts a store and a service, and takes each picture."""
    arguments = _arguments()
    with homes.temporary_home() as home, pictures():
        homes.add_spec(home, homes.SpecOptions(arguments.backbone, arguments.weights, 128, 64))
        homes.ingest(home, PICTURES)
        with running_service(home) as service, chromium() as browser:
            _take(browser, service.url)


@contextmanager
def pictures() -> Iterator[None]:
    """Scikit-image's pictures in `PICTURES`; afterwards they are gone."""
    found = find_spec("skimage")
    assert found is not None and found.submodule_search_locations
    shutil.copytree(Path(found.submodule_search_locations[0]) / "data", PICTURES)
    try:
        yield
    finally:
        shutil.rmtree(PICTURES)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium, with no window."""
    path = next(path for name in CHROMIUM if (path := shutil.which(name)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*QUIET])
        yield browser
        browser.close()


def _take(browser: Browser, url: str) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 860})
    _ask(page, url)
    shoot(page, "page.png")
    page.locator(".hits .open").nth(1).click()
    expect(page.locator("dialog[open] canvas").first).to_be_visible()
    page.wait_for_load_state("networkidle")
    shoot(page, "page-heat.png")
    narrow = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
    _ask(narrow, url)
    shoot(narrow, "page-narrow.png")


def _ask(page: Page, url: str) -> None:
    """Picks a picture, draws a rectangle around the engine, and waits for other images' hits."""
    page.goto(url)
    page.locator("input[type=file]").set_input_files(PICTURES / "motorcycle_left.png")
    expect(page.locator(".hits .open").first).to_be_visible()
    for label, value in (("x", 330), ("y", 220), ("width", 140), ("height", 140)):
        page.get_by_label(label, exact=True).fill(str(value))
    page.get_by_label("Other images only").check()
    page.wait_for_load_state("networkidle")
    expect(page.locator(".hits .open").first).to_be_visible()


def shoot(page: Page, name: str) -> None:
    """Writes what the page shows into `docs/`, in 256 colours: a third of the bytes."""
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        picture.convert("RGB").quantize(256).save(DOCS / name, optimize=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="squeezenet1_1")
    parser.add_argument("--weights", required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
