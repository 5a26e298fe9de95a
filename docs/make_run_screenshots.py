"""Takes the pictures of a run in the Prefect UI: `docs/run*.png`.

python docs/make_run_screenshots.py

Over scikit-image's pictures and one broken file, in a store of its own; needs a Chromium. The run
is cut into small batches, so that there is something to see of so few pictures.
"""

import json
import os
from pathlib import Path
from typing import Any

import httpx
from make_screenshots import PICTURES, chromium, homes, pictures, shoot
from playwright.sync_api import Browser, Page, expect

SPEC = "squeezenet"
WIDTH = 1280
HEIGHTS = {"summary": 1250, "failures": 480, "contact-sheet": 680, "throughput": 480}


def main() -> None:
    """Ingests, and takes each picture from the local Prefect server that is left running."""
    os.environ["PATCHSTORE_BATCH_IMAGES"] = "2"
    with homes.temporary_home() as home, pictures(), chromium() as browser:
        options = homes.SpecOptions(patch_size=96, stride=48)
        homes.run_command(home, "spec", "add", SPEC, *options.arguments())
        (PICTURES / "broken.jpg").write_bytes(b"not a picture")
        homes.run_command(home, "ingest", str(PICTURES), "--spec", SPEC)
        _take(browser, prefect_url(home))


def prefect_url(home: Path) -> str:
    """Where the local Prefect server of a home answers."""
    port = json.loads((home / "prefect" / "server.json").read_text())["port"]
    return f"http://127.0.0.1:{port}"


def _take(browser: Browser, url: str) -> None:
    (run,) = _ask(url, "flow_runs", {})
    page = browser.new_page(viewport={"width": WIDTH, "height": 1220})
    _open(page, f"{url}/runs/flow-run/{run['id']}", "Beginning flow run")
    shoot(page, "run-log.png")
    page.get_by_text("Artifacts", exact=True).click()
    expect(page.get_by_text("ingest-summary")).to_be_visible()
    page.set_viewport_size({"width": WIDTH, "height": 1020})
    shoot(page, "run.png")
    for artifact in _ask(url, "artifacts", {}):
        key = str(artifact["key"]).removeprefix("ingest-")
        if key in HEIGHTS:
            page.set_viewport_size({"width": WIDTH, "height": HEIGHTS[key]})
            _open(page, f"{url}/artifacts/artifact/{artifact['id']}", str(artifact["key"]))
            shoot(page, f"run-{key}.png")


def _ask(url: str, what: str, question: dict[str, Any]) -> list[dict[str, Any]]:
    answer = httpx.post(f"{url}/api/{what}/filter", json=question)
    answer.raise_for_status()
    found: list[dict[str, Any]] = answer.json()
    return found


def _open(page: Page, url: str, expected: str) -> None:
    page.goto(url)
    expect(page.get_by_text(expected).first).to_be_visible(timeout=30_000)
    page.wait_for_load_state("networkidle")


if __name__ == "__main__":
    main()
