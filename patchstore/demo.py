"""`make demo`: the whole way over the real pictures that scikit-image carries, then one search.

Nothing but this falls back by itself where pretrained weights cannot be had.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# A store of its own: nobody wants these pictures among theirs.
HOME = Path("demo/store").resolve()
RESULT = Path("demo/result.html")
# The engine as the left eye sees it: the right eye's picture holds the answer.
QUERY = ("motorcycle_left.png", "336,224")
HITS = 12


def main() -> None:
    """Runs the demo; ends with the exit code of what failed."""
    arguments = _arguments()
    pictures = _pictures()
    os.environ |= {"PATCHSTORE_HOME": str(HOME), "PATCHSTORE_DATABASE_URL": ""}
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    print(f"patchstore demo: pictures from {pictures}, store in {HOME}")
    spec = _add_spec(arguments.backbone, arguments.weights)
    print(f"\n$ patchstore ingest {pictures} --spec {spec}")
    summary = _run_ingest(pictures, spec)
    _patchstore("spec", "promote", spec, "--as", "default")
    query = f"{pictures / QUERY[0]}@{QUERY[1]}"
    print(
        f"\n$ patchstore search --patch {query} --spec {spec} --other-images "
        f"--k {HITS} --html {RESULT}"
    )
    begun = time.monotonic()
    _patchstore(
        *("search", "--patch", query, "--spec", spec, "--other-images"),
        *("--k", str(HITS), "--html", str(RESULT)),
    )
    _closing(summary, time.monotonic() - begun)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", default="", help="a file, an enum name or random:SEED")
    return parser.parse_args()


def _pictures() -> Path:
    found = find_spec("skimage")
    if found is None or not found.submodule_search_locations:
        sys.exit("error: the demo needs scikit-image; run: pip install -e '.[demo]'")
    return Path(found.submodule_search_locations[0]) / "data"


def _add_spec(backbone: str, weights: str) -> str:
    """Registers the demo's spec; untrained where the pretrained weights cannot be had."""
    if weights:
        spec = f"demo-{backbone}-{Path(weights).stem.replace(':', '-')}"
        _patchstore("spec", "add", spec, "--backbone", backbone, "--weights", weights)
        return spec
    spec = f"demo-{backbone}"
    tried = subprocess.run(
        [*_command(), "spec", "add", spec, "--backbone", backbone, "--weights", "DEFAULT"],
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode == 0:
        return spec
    reason = tried.stderr.strip().removeprefix("error: ")
    if "weights" not in reason.lower():
        sys.exit(tried.stderr.strip())
    print(
        f"no pretrained weights: {reason}. Going on with untrained ones, which know textures but "
        "not things; for better hits put that file there, or: "
        f"make demo BACKBONE={backbone} WEIGHTS=FILE"
    )
    spec += "-untrained"
    _patchstore("spec", "add", spec, "--backbone", backbone, "--weights", "random:0")
    return spec


def _run_ingest(pictures: Path, spec: str) -> dict[str, Any]:
    begun = time.monotonic()
    done = subprocess.run(
        [*_command(), "ingest", str(pictures), "--spec", spec, "--json"],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 3):
        sys.exit(done.returncode)
    summary: dict[str, Any] = json.loads(done.stdout)
    start = time.monotonic() - begun - summary["seconds"]
    print(
        f"found {summary['found']} pictures: {summary['new']} new, {summary['changed']} changed, "
        f"{summary['unchanged']} unchanged; {summary['failed']} failed\n"
        f"{summary['patches']} patches in {summary['seconds']:.1f} s, "
        f"{summary['patches_per_second']} patches/s (and {start:.1f} s to start and stop)"
    )
    if not summary["patches"]:
        print("nothing to compute: every vector was there already")
    return summary


def _closing(summary: dict[str, Any], seconds: float) -> None:
    print(
        f"\n{summary['done']} pictures searched in {seconds:.1f} s, command start included."
        f"\nOpen the answer: {RESULT.resolve()}"
        "\n\nLook around in it (. .venv/bin/activate first):"
        f"\n  export PATCHSTORE_HOME={HOME}"
        "\n  patchstore serve     # a page to click through: http://127.0.0.1:8080"
        "\n  patchstore failures  # files without vectors, and why"
        '\n  psql "$(patchstore db url)" -c "SELECT * FROM patchstore.specs"'
        "\n  patchstore stop      # stops the embedded Postgres that is kept running"
        "\n\nNext, with your own pictures, in a store of your own:"
        "\n  unset PATCHSTORE_HOME"
        "\n  patchstore ingest YOUR/FOLDER"
        "\n  patchstore search --image A/PICTURE.jpg --region 0,0,224,224"
    )


def _patchstore(*arguments: str) -> None:
    done = subprocess.run([*_command(), *arguments], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def _command() -> list[str]:
    return [sys.executable, "-m", "patchstore"]


if __name__ == "__main__":
    main()
