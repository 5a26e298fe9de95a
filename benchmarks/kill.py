"""`kill -9` at random moments, then one undisturbed run: exactly the rows of an undisturbed run.

First an undisturbed run over all images in a database of its own: the reference, and the pace.
Then, in another database, round by round: the folder gets its next share of the images, the
command starts, and it alone is killed at a random moment (seeded): one in four while it starts up,
the others between the flow's start and the end to be expected. Every second picture has another
content at first and its own from the next round on, so that replacing is disturbed too. After every
kill the ledger and the rows must agree. One undisturbed run and a prune of all end it.

Compared are all (uri, box, scale) with their vectors (to 1e-3), the rows of the partition, and the
ledger: found = done + failed, nothing leased. Prefect servers must not pile up. Exits with 1 on any
difference.

    python -m benchmarks.kill --rounds 20
    python -m benchmarks.kill --rounds 20 --images FOLDER --backbone NAME --weights FILE

Tests call `run_rounds`, or `compare` for all of it.
"""

import argparse
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psycopg
from numpy.typing import NDArray
from pgvector import Vector
from pgvector.psycopg import register_vector
from PIL import Image

from patchstore.bench import home as homes
from patchstore.bench.report import machine, table

TOLERANCE = 1e-3
STARTUP_KILLS = 0.25  # share of the kills that fall into the start-up
POLL_S = 0.02

PatchKey = tuple[str, int, int, int, int, float]


@dataclass(frozen=True)
class Pace:
    """How fast an undisturbed run goes, in seconds."""

    startup_s: float
    image_s: float


@dataclass(frozen=True)
class Ledger:
    """Where the live images of a store stand.

    Attributes:
        found: live locations with a content.
        rows: patches in the partition, of whatever image.
        wrong: images whose rows are not as many as their ledger entry says.
    """

    found: int
    done: int
    failed: int
    pending: int
    leased: int
    rows: int
    wrong: int

    def troubles(self) -> list[str]:
        """What must hold at any moment and does not, in words."""
        troubles = []
        if self.done + self.failed + self.pending + self.leased != self.found:
            troubles.append(f"the counts do not add up: {self}")
        if self.wrong:
            troubles.append(f"{self.wrong} images have other rows than their entry says")
        return troubles


@dataclass(frozen=True)
class Round:
    """One kill and what it left.

    Attributes:
        number: from 1.
        moment_s: after the flow's start, or after the command's where it died while starting.
        phase: `start-up`, `work`, or `had ended` where the run was faster than the kill.
        ledger: right after.
        servers: Prefect servers of this home that are alive; one is shared by all runs.
    """

    number: int
    moment_s: float
    phase: str
    ledger: Ledger
    servers: int

    def troubles(self) -> list[str]:
        """What must hold after a kill and does not, in words."""
        troubles = self.ledger.troubles()
        if self.servers > 1:
            troubles.append(f"{self.servers} Prefect servers are alive")
        return [f"round {self.number}: {text}" for text in troubles]


@dataclass(frozen=True)
class Snapshot:
    """All that searches can see of a store, and its ledger."""

    patches: dict[PatchKey, NDArray[np.float32]]
    repeated: int
    ledger: Ledger


def main() -> None:
    """Runs it and prints; exits with 1 on any difference."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="patchstore-kill-") as folder:
        pool = Path(folder, "pool")
        pool.mkdir()
        if arguments.images:
            copy_images(arguments.images, arguments.count, pool)
        else:
            make_images(arguments.count, pool, arguments.seed)
        rounds, differences, line = compare(
            pool,
            Path(folder, "watched"),
            homes.spec_options(arguments),
            rounds=arguments.rounds,
            seed=arguments.seed,
            precision=arguments.precision,
            timeout_s=arguments.timeout_s,
        )
    print(table(_COLUMNS, [_row(found) for found in rounds]))
    killed = sum(found.phase != "had ended" for found in rounds)
    print(f"\n{killed} of {len(rounds)} runs were killed, seed {arguments.seed}.")
    print("\n".join(differences) or "The rows are exactly those of an undisturbed run.")
    print(line)
    raise SystemExit(bool(differences))


def compare(
    pool: Path,
    watched: Path,
    options: homes.SpecOptions,
    *,
    rounds: int,
    seed: int,
    precision: str = "float32",
    timeout_s: float = 600.0,
) -> tuple[list[Round], list[str], str]:
    """Undisturbed run, killed rounds, last run, comparison.

    Args:
        pool: folder with the images, flat, each a content of its own.
        watched: a folder that does not exist yet; what is ingested.
        options: the spec.
        rounds: how many runs are killed.
        seed: of the moments.
        precision: of the runs; a low one would blur the comparison.
        timeout_s: that an undisturbed run may take.

    Returns:
        The rounds, the differences (none is good), and the line about the machine.
    """
    with ExitStack() as stack:
        calm, torn = (stack.enter_context(homes.temporary_home()) for _ in range(2))
        shutil.copytree(pool, watched)
        calm_url = homes.add_spec(calm, options)
        run = homes.ingest(calm, watched, precision)
        pace = Pace(run.startup_s, run.summary["seconds"] / run.summary["found"])
        expected = snapshot(calm_url)
        shutil.rmtree(watched)
        watched.mkdir()
        torn_url = homes.add_spec(torn, options)
        done = run_rounds(torn, sorted(pool.iterdir()), watched, rounds, seed, pace, precision)
        last = homes.start_command(torn, *_arguments_of_ingest(watched, precision))
        last.communicate(timeout=timeout_s)
        troubles = [text for found in done for text in found.troubles()]
        if last.returncode not in (0, homes.SOME_IMAGES_FAILED):
            troubles.append(f"the last run ended with {last.returncode}")
        homes.run_command(torn, "prune", "--keep-days", "0")
        troubles += differences(expected, snapshot(torn_url))
        return done, troubles, machine(torn_url)


def run_rounds(
    home: Path,
    images: Sequence[Path],
    watched: Path,
    rounds: int,
    seed: int,
    pace: Pace,
    precision: str = "float32",
) -> list[Round]:
    """Kills `rounds` runs over a folder that grows to all of `images`.

    Args:
        home: of a store with the spec, see `patchstore.bench.home.add_spec`.
        images: what the folder holds in the end.
        watched: the folder, empty.
        rounds: how many.
        seed: of the moments.
        pace: of an undisturbed run.
        precision: of the runs.
    """
    url = homes.database_url(home)
    chance = random.Random(seed)
    done = []
    for number in range(1, rounds + 1):
        share = (len(images) * (number - 1) // rounds, len(images) * number // rounds)
        unfinished = disguise(images[share[0] : share[1]], watched)
        reveal(images[: share[0]], watched)
        ledger = read_ledger(url)
        left = unfinished + ledger.pending + ledger.leased
        starting = chance.random() < STARTUP_KILLS
        moment = chance.uniform(0, pace.startup_s if starting else pace.image_s * left)
        phase = kill_after(home, url, watched, precision, moment, starting=starting)
        servers = len(homes.prefect_servers(home))
        done.append(Round(number, moment, phase, read_ledger(url), servers))
    reveal(images, watched)
    return done


def disguise(images: Sequence[Path], watched: Path) -> int:
    """Puts images into the folder, every second one with another content; returns how many."""
    for number, image in enumerate(images):
        if number % 2:
            with Image.open(image) as picture:
                turned = picture.convert("RGB").transpose(Image.Transpose.ROTATE_180)
            turned.save(watched / image.name, format="PNG")  # the name is only a name
        else:
            shutil.copyfile(image, watched / image.name)
    return len(images)


def reveal(images: Sequence[Path], watched: Path) -> None:
    """Gives images their own content where they had another, by a rename as careful writers do."""
    for image in images:
        target = watched / image.name
        if not target.exists() or target.read_bytes() != image.read_bytes():
            part = watched / f".{image.name}.part"
            shutil.copyfile(image, part)
            part.replace(target)


def kill_after(
    home: Path, url: str, watched: Path, precision: str, moment_s: float, *, starting: bool
) -> str:
    """Starts the command and kills it, and only it; returns the phase, see `Round`.

    Raises:
        RuntimeError: it ended by itself with an error.
    """
    before = last_run(url)
    process = homes.start_command(home, *_arguments_of_ingest(watched, precision))
    if not starting:
        while process.poll() is None and last_run(url) == before:
            time.sleep(POLL_S)
    try:
        process.communicate(timeout=moment_s)
    except subprocess.TimeoutExpired:
        begun = last_run(url) != before
        process.kill()
        process.communicate()
        return "work" if begun else "start-up"
    if process.returncode not in (0, homes.SOME_IMAGES_FAILED):
        log = (home / "command.log").read_text()[-2000:]
        raise RuntimeError(f"the run ended by itself with {process.returncode}:\n{log}")
    return "had ended"


def last_run(url: str) -> int:
    """The number of the latest run that has begun; 0 before the first."""
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT coalesce(max(id), 0) FROM patchstore.ingest_run")
        (number,) = row.fetchone() or (0,)
    return int(number)


def read_ledger(url: str) -> Ledger:
    """Where the images of a store with one spec stand, in one snapshot of the database."""
    with psycopg.connect(url) as connection:
        row = connection.execute(_LEDGER).fetchone()
    assert row is not None
    return Ledger(*row)


def snapshot(url: str) -> Snapshot:
    """Reads every visible patch of a store with one spec."""
    patches: dict[PatchKey, NDArray[np.float32]] = {}
    rows = 0
    with psycopg.connect(url) as connection:
        register_vector(connection)
        cursor = connection.cursor(binary=True)
        for uri, x, y, width, height, scale, vector in cursor.execute(_PATCHES):
            rows += 1
            values = vector.to_numpy() if isinstance(vector, Vector) else vector
            patches[uri, x, y, width, height, scale] = np.asarray(values, np.float32)
    return Snapshot(patches, rows - len(patches), read_ledger(url))


def differences(expected: Snapshot, found: Snapshot) -> list[str]:
    """What is not as after an undisturbed run, in words; nothing where all is well."""
    troubles = found.ledger.troubles()
    missing = expected.patches.keys() - found.patches.keys()
    surplus = found.patches.keys() - expected.patches.keys()
    for name, keys in (("missing", missing), ("too many", surplus)):
        if keys:
            troubles.append(f"{len(keys)} patches are {name}, first: {min(keys)}")
    if found.repeated:
        troubles.append(f"{found.repeated} patches are there twice")
    if found.ledger != expected.ledger:
        troubles.append(f"the ledger is {found.ledger}, undisturbed {expected.ledger}")
    if found.ledger.leased or found.ledger.pending:
        troubles.append(f"not everything has an outcome: {found.ledger}")
    common = expected.patches.keys() & found.patches.keys()
    largest = max(
        (float(np.abs(expected.patches[key] - found.patches[key]).max()) for key in common),
        default=0.0,
    )
    if largest > TOLERANCE:
        troubles.append(f"vectors differ by up to {largest:g}")
    return troubles


def copy_images(source: Path, count: int, folder: Path) -> None:
    """Copies `count` images with different contents into one flat folder."""
    contents = {file.read_bytes(): file.suffix for file in homes.image_files(source)}
    for number, content in enumerate(list(contents)[:: max(1, len(contents) // count)][:count]):
        (folder / f"{number:05}{contents[content]}").write_bytes(content)


def make_images(count: int, folder: Path, seed: int) -> None:
    """Writes `count` JPEGs of coloured noise, 300 to 420 pixels wide."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        coarse = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        size = (300 + 40 * (number % 4), 280 + 30 * (number % 3))
        picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:05}.jpg", quality=90)


def _arguments_of_ingest(watched: Path, precision: str) -> list[str]:
    return ["ingest", str(watched), "--spec", homes.SPEC, "--precision", precision, "--json"]


_LEDGER = """
WITH live AS (
    SELECT e.state, l.image_id FROM patchstore.image_location l
      LEFT JOIN patchstore.extraction e ON e.image_id = l.image_id
     WHERE l.vanished_at IS NULL AND l.image_id IS NOT NULL),
stored AS (SELECT image_id, count(*) AS rows FROM patchstore.patch_feature GROUP BY image_id)
SELECT (SELECT count(*) FROM live),
       (SELECT count(*) FROM live WHERE state = 'done'),
       (SELECT count(*) FROM live WHERE state = 'failed'),
       (SELECT count(*) FROM live WHERE state = 'pending'),
       (SELECT count(*) FROM live WHERE state = 'leased'),
       (SELECT coalesce(sum(rows), 0)::bigint FROM stored),
       (SELECT count(*) FROM patchstore.extraction e FULL JOIN stored s USING (image_id)
         WHERE coalesce(e.patch_count, 0) <> coalesce(s.rows, 0))
"""

_PATCHES = """
SELECT l.uri, p.x, p.y, p.width, p.height, p.scale, p.embedding
  FROM patchstore.patches p
  JOIN patchstore.image_location l ON l.image_id = p.image_id AND l.vanished_at IS NULL
"""

_COLUMNS = (
    "round",
    "killed in",
    "after, s",
    "found",
    "done",
    "pending",
    "leased",
    "rows",
    "Prefect servers",
)


def _row(done: Round) -> list[str]:
    ledger = done.ledger
    values = (ledger.found, ledger.done, ledger.pending, ledger.leased, ledger.rows, done.servers)
    moment = f"{done.moment_s:.1f}"
    return [str(done.number), done.phase, moment, *(f"{value:,}" for value in values)]


def _arguments() -> argparse.Namespace:
    parser = homes.parser(__doc__, images_required=False)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--count", type=int, default=200, help="images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--timeout-s", type=float, default=600.0, help="of the last run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
