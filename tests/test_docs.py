"""The documentation is true: its examples run, its lists are complete, its links lead somewhere."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import psycopg
import pytest
from sqlalchemy import URL, Engine

from db.catalog import SeenFile, open_source, record_files, start_scan
from db.ledger import LeaseLimits, lease_batch, start_run
from db.specs import NewSpec, add_spec
from db.writer import ImagePatches, replace_patches
from patchstore.cli.ingest import SUMMARY_KEYS
from patchstore.settings import OF_COMPOSE, known_variables

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SQL_PAGE = ROOT / "docs" / "sql.md"
GO_PATH = Path("/usr/share/gocode")
ASKED, OTHERS = "/photos/motorcycle_left.png", ("/photos/a.jpg", "/photos/b.jpg")
BOXES = np.array([(0, 0, 224, 224), (336, 224, 224, 224)], dtype=np.int32)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What a link into a page may name: its headings, as forges write them."""
    outside = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", outside, re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


@pytest.fixture
def url(database: URL, engine: Engine) -> str:
    """A store with the spec and the picture of the examples, and two pictures more."""
    recipe = {"backbone": "tiny"}
    spec = add_spec(engine, NewSpec("demo-resnet18", "0" * 64, recipe, 3, "cosine", "nowhere"))
    source, started = open_source(engine, "/photos"), start_scan(engine)
    files = [
        SeenFile(uri, 1, "mark", hashlib.sha256(uri.encode()).digest(), 741, 500)
        for uri in (ASKED, *OTHERS)
    ]
    record_files(engine, source, spec, files, started)
    run = start_run(engine, source, spec)
    for lease in lease_batch(engine, spec, source, run, LeaseLimits(10, 10**9, 60.0)):
        vectors = np.random.default_rng(lease.image_id).normal(size=(2, 3)).astype(np.float32)
        patches = ImagePatches(lease, BOXES, np.ones(2, np.float32), vectors)
        replace_patches(engine, spec, [patches])
    return database.set(drivername="postgresql").render_as_string(hide_password=False)


def test_every_sql_block_runs_and_answers(url: str) -> None:
    with psycopg.connect(url) as connection:  # never committed: roles belong to the whole cluster
        for block in blocks(SQL_PAGE, "sql"):
            for statement in filter(str.strip, block.split(";\n")):
                cursor = connection.execute(statement)
                assert cursor.description is None or cursor.fetchall(), statement
        connection.rollback()


def test_a_reader_may_run_every_query_and_write_nothing(url: str) -> None:
    queries = [block for block in blocks(SQL_PAGE, "sql") if block.startswith("SELECT")]
    assert len(queries) >= 4
    with psycopg.connect(url) as connection:
        connection.execute("SET ROLE patchstore_reader")
        for query in queries:
            assert connection.execute(query).fetchall(), query
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DELETE FROM patchstore.patch_feature")


def test_the_python_example_prints_hits_of_other_pictures(url: str) -> None:
    (example,) = blocks(SQL_PAGE, "python")
    prints_hits_of_other_pictures([sys.executable, "-c", example], url)


def test_the_go_example_prints_hits_of_other_pictures(url: str, tmp_path: Path) -> None:
    go = shutil.which("go")
    if go is None or not (GO_PATH / "src/github.com/lib/pq").is_dir():
        pytest.skip("no Go, or no lib/pq of the system's")
    (example,) = blocks(SQL_PAGE, "go")
    (tmp_path / "main.go").write_text(example)
    # As the system's packages are laid out: no module is fetched.
    settings = {"GO111MODULE": "off", "GOPATH": str(GO_PATH), "GOCACHE": str(tmp_path / "cache")}
    prints_hits_of_other_pictures([go, "run", str(tmp_path / "main.go")], url, **settings)


def test_the_node_example_prints_hits_of_other_pictures(url: str) -> None:
    node = shutil.which("node")
    resolves = "require.resolve('pg'); require.resolve('pgvector/pg')"
    if node is None or subprocess.run([node, "-e", resolves], capture_output=True).returncode:
        pytest.skip("no Node, or no pg and pgvector on its NODE_PATH")
    (example,) = blocks(SQL_PAGE, "js")
    prints_hits_of_other_pictures([node, "-e", example], url)


def prints_hits_of_other_pictures(command: list[str], url: str, **settings: str) -> None:
    done = subprocess.run(
        command,
        env={**os.environ, "DATABASE_URL": url, **settings},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert all(line.endswith(OTHERS) for line in lines)


@pytest.mark.parametrize(
    ("state", "question"),
    [
        ("P0002", "'unknown', '[1,2,3]'"),
        ("22023", "'demo-resnet18', NULL"),
        ("22023", "'demo-resnet18', '[1,2]'"),
        ("22023", "'demo-resnet18', '[0,0,0]'"),
        ("22023", "'demo-resnet18', '[1,2,3]', 0"),
        ("22023", "'demo-resnet18', '[1,2,3]', 10001"),
        ("22000", "'demo-resnet18', array_fill('NaN'::float4, ARRAY[3])::vector"),
    ],
)
def test_a_wrong_question_has_the_documented_sqlstate(url: str, state: str, question: str) -> None:
    assert f"| `{state}` " in SQL_PAGE.read_text()
    with psycopg.connect(url) as connection, pytest.raises(psycopg.Error) as raised:
        connection.execute(f"SELECT * FROM patchstore.similar_patches({question})")
    assert raised.value.sqlstate == state


def test_every_column_of_the_interface_is_documented(url: str) -> None:
    documented = set(re.findall(r"`(\w+)`", SQL_PAGE.read_text()))
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT attname FROM pg_attribute WHERE attnum > 0 AND attrelid = ANY (ARRAY["
            "'patchstore.hit', 'patchstore.patches', 'patchstore.images', 'patchstore.specs'"
            "]::regclass[])"
        )
        assert {name for (name,) in rows} <= documented


def test_the_page_of_commands_is_current() -> None:
    checked = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate_cli.py", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


def test_every_command_is_in_the_readme() -> None:
    described = re.findall(r"^## (patchstore .+)$", (ROOT / "docs/cli.md").read_text(), re.M)
    assert len(described) > 10
    text = README.read_text()
    groups = {c for c in described if any(other.startswith(f"{c} ") for other in described)}
    assert [c for c in described if c not in groups and c not in text] == []


def test_the_readme_lists_every_setting_and_no_other() -> None:
    fields = known_variables()
    assert set(re.findall(r"^\| `(PATCHSTORE_\w+)`", README.read_text(), re.M)) == fields
    of_compose = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    for page in PAGES:
        named = set(re.findall(r"PATCHSTORE_[A-Z_]*[A-Z]", page.read_text()))
        assert named <= fields | of_compose, page
    assert {name for name in of_compose if name.startswith("PATCHSTORE_")} == OF_COMPOSE


def test_the_readme_lists_the_summary_keys_in_order() -> None:
    assert ", ".join(f"`{key}`" for key in SUMMARY_KEYS) in README.read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_the_house_fits_in_a_head() -> None:
    assert len((ROOT / "docs/architecture.md").read_text().splitlines()) < 100
