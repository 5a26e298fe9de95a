"""The doctor finds what is broken on purpose, says what to do, and never falls over itself."""

import json
import shutil
import tempfile
from collections import namedtuple
from pathlib import Path

import psutil
import pytest
import torch
from torchvision.models import squeezenet1_1

from db import checkup
from db.catalog import open_source
from db.engine import make_engine
from db.index import build_index, index_name
from db.ledger import start_run
from db.specs import NewSpec, add_spec
from extractor.backbone import resolve
from extractor.spec import Recipe
from flows.environment import configured_api
from patchstore.cli.doctor import doctor
from patchstore.doctor import database, host
from patchstore.doctor.finding import ok, problem, run
from patchstore.settings import invalid_variables, unknown_variables
from patchstore.store import register

Usage = namedtuple("Usage", "total used free")
Mount = namedtuple("Mount", "mountpoint fstype")


def found(checks, *about, name=None):
    """The findings of a check as (level, text)."""
    findings = run(checks if isinstance(checks, tuple) else (checks,), *about)
    return [(f.level, f.text) for f in findings if name in (None, f.check)]


@pytest.fixture
def spec(store, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    recipe = {"backbone": "resnet18", "weights": "IMAGENET1K_V1"}
    return add_spec(store, NewSpec("tiny", "d", recipe, 3, "cosine", "IMAGENET1K_V1"))


def test_a_healthy_installation_has_no_problem(store, spec):
    findings = run((*database.REACH, *database.SERVER_CHECKS, *database.STORE_CHECKS), store)
    assert {f.level for f in findings} <= {"ok", "warning"}
    assert {f.check for f in findings} == {
        *("postgres", "pgvector", "schema", "clock", "rights", "reader", "memory"),
        *("index of tiny", "weights of tiny", "leases", "runs"),
    }
    assert all(f.advice for f in findings if f.level != "ok")


def test_what_is_installed_is_what_is_asked_for():
    ((level, text),) = found(host.check_versions)
    assert level == "ok"
    assert "prefect 3.8" in text


def test_a_check_that_fails_is_a_problem_and_the_others_go_on():
    def check_the_moon():
        raise RuntimeError("too far\naway")

    def check_here():
        yield ok("here", "fine")

    findings = run((check_the_moon, check_here))
    assert findings[0] == problem("the moon", "cannot be checked: too far away", "")
    assert findings[1].level == "ok"


def test_a_misspelt_setting_is_named_with_the_one_it_may_be(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATCHSTORE_DEVISE", "cpu")
    (tmp_path / ".env").write_text("PATCHSTORE_WINDOWS=3\nPATCHSTORE_SOMETHING_ELSE=1\n")
    assert unknown_variables() == {
        "PATCHSTORE_DEVISE": "PATCHSTORE_DEVICE",
        "PATCHSTORE_SOMETHING_ELSE": None,
        "PATCHSTORE_WINDOWS": "PATCHSTORE_WINDOW",
    }
    assert ("warning", "PATCHSTORE_DEVISE is no setting and does nothing") in found(
        host.check_settings
    )


def test_a_refused_setting_is_named_without_its_value(monkeypatch):
    monkeypatch.setenv("PATCHSTORE_BATCH_SIZE", "hidden-word")
    assert list(invalid_variables()) == ["PATCHSTORE_BATCH_SIZE"]
    assert "hidden-word" not in str(found(host.check_settings))


@pytest.mark.parametrize(
    ("free", "level"), [(10**8, "problem"), (5 * 10**9, "warning"), (10**12, "ok")]
)
def test_a_full_disk_is_found(monkeypatch, free, level):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**13, 0, free))
    assert found(host.check_disk)[0][0] == level


@pytest.mark.parametrize(
    ("pixels", "free", "kind", "level", "said"),
    [
        (10**8, 10**9, "tmpfs", "ok", "1.0 GB free"),
        (10**8, 8 * 10**8, "ext4", "warning", "3 pictures of 100,000,000 pixels take 0.9 GB"),
        (10**9, 10**10, "tmpfs", "warning", "which is memory"),
        (10**9, 10**10, "ext4", "ok", "10.0 GB free"),
    ],
)
def test_little_room_for_large_pictures_is_found(monkeypatch, pixels, free, kind, level, said):
    mounts = [Mount("/", "ext4"), Mount(tempfile.gettempdir(), kind)]
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**13, 0, free))
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: mounts)
    monkeypatch.setenv("PATCHSTORE_MAX_PIXELS", str(pixels))
    ((found_level, text),) = found(host.check_temporary_files)
    assert (found_level, said in text) == (level, True)


def test_a_device_that_is_not_there_is_found(monkeypatch):
    monkeypatch.setenv("PATCHSTORE_DEVICE", "cuda:99")
    assert found(host.check_device)[0][0] == "problem"


def test_another_schema_is_found(store):
    with store.begin() as connection:
        connection.exec_driver_sql("UPDATE patchstore.alembic_version SET version_num = '0001'")
    ((level, text),) = found(database.check_schema, store)
    assert level == "problem"
    assert text.startswith("revision 0001, this patchstore needs ")


def test_an_old_pgvector_is_found(store):
    with store.begin() as connection:
        connection.exec_driver_sql("UPDATE pg_extension SET extversion = '0.8.3'")
    assert ("problem", "0.8.3 is older than 0.8.4") in found(database.check_pgvector, store)


def test_a_clock_that_is_off_is_found(store, monkeypatch):
    monkeypatch.setattr(database.checkup, "clock_ahead_s", lambda _engine: -90.0)
    ((level, text),) = found(database.check_clock, store)
    assert (level, text) == ("warning", "the database's clock is 90.0 s behind")


def test_an_invalid_index_is_found(store, spec):
    build_index(store, spec, threshold=-1, memory_mb=16)
    assert found(database.check_indexes, store)[0][0] == "ok"
    with store.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE pg_index SET indisvalid = false "
            f"WHERE indexrelid = 'patchstore.{index_name(spec)}'::regclass"
        )
    assert found(database.check_indexes, store)[0] == (
        "warning",
        "invalid, left of a build that was stopped: 1",
    )


def count_patches(store, spec, patches: int) -> None:
    """Lets the ledger say that a spec has so many."""
    with store.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO patchstore.image (sha256, size_bytes) VALUES (sha256('a'), 1)"
        )
        connection.exec_driver_sql(
            "INSERT INTO patchstore.extraction (spec_id, image_id, state, patch_count) "
            f"SELECT {spec.id}, max(id), 'done', {patches} FROM patchstore.image"
        )


def test_an_index_that_is_due_and_the_memory_it_takes_are_told(store, spec, monkeypatch):
    monkeypatch.setenv("PATCHSTORE_INDEX_THRESHOLD", "10")
    monkeypatch.setenv("PATCHSTORE_MAINTENANCE_WORK_MEM_MB", "1")
    count_patches(store, spec, 100_000)
    assert found((database.check_indexes, database.check_index_memory), store) == [
        ("warning", "none over 100000 patches: every search compares with all of them"),
        ("warning", "building the index fast takes 81 MiB, it may use 1"),
    ]


def test_an_index_that_is_larger_than_the_buffers_is_found(store, spec, monkeypatch):
    build_index(store, spec, threshold=-1, memory_mb=16)
    tiny = checkup.Memory(1, 1, 0, "posix")
    monkeypatch.setattr(database.checkup, "memory", lambda _engine: tiny)
    ((level, text),) = found(database.check_index_memory, store)
    assert level == "warning"
    assert text.endswith("shared_buffers 0.0 GB")


def test_shared_memory_that_is_too_small_for_the_largest_index_is_found(store, spec, monkeypatch):
    count_patches(store, spec, 100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(64, 0, 64 * 1024 * 1024))
    ((level, text),) = found(database.check_memory, store)
    assert level == "warning"
    assert text.endswith("of which one takes 96 in /dev/shm, with 64 free")


def test_shared_memory_is_no_matter_where_no_build_takes_workers(store, spec, monkeypatch):
    count_patches(store, spec, 1_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(1, 0, 1024 * 1024))
    ((level, _text),) = found(database.check_memory, store)
    assert level == "ok"


def weights_file(path, seed):
    torch.manual_seed(seed)
    torch.save(squeezenet1_1(weights=None).state_dict(), path)
    return path


def test_weights_that_are_not_here_are_found_and_not_downloaded(store, spec, tmp_path):
    recipe = {"backbone": "resnet18", "weights": "gone.pth"}
    add_spec(store, NewSpec("own", "own", recipe, 3, "cosine", "/gone.pth"))
    there = weights_file(tmp_path / "there.pth", 0)
    for name, weights in (("moved", str(there)), ("seeded", "random:0")):
        small = Recipe(backbone="squeezenet1_1", weights=weights, patch_size=48, stride=24)
        register(store, name, resolve(small))
    elsewhere = tmp_path / "hub" / "checkpoints" / "there.pth"
    elsewhere.parent.mkdir(parents=True)
    there.rename(elsewhere)
    missing, gone, moved, seeded = found(database.check_weights, store)
    assert missing[0] == "warning"
    assert missing[1].endswith("resnet18-f37072fd.pth is not there yet")
    assert gone == ("problem", "/gone.pth is not on this machine")
    assert moved == ("ok", str(elsewhere))  # where loading looks for it, too
    assert seeded == ("ok", "random:0")
    assert list(elsewhere.parent.iterdir()) == [elsewhere]  # nothing was downloaded


def test_weights_that_have_changed_are_found(store, tmp_path):
    file = weights_file(tmp_path / "own.pth", 0)
    small = Recipe(backbone="squeezenet1_1", weights=str(file), patch_size=48, stride=24)
    register(store, "own", resolve(small))
    weights_file(file, 1)
    (changed,) = run((database.check_weights,), store)
    assert (changed.level, changed.text) == ("problem", f"{file} is not what it was")
    assert "other tensors under the same name" in changed.advice
    file.write_bytes(b"")
    (broken,) = run((database.check_weights,), store)
    assert "is corrupt or no state dict" in broken.advice


def test_tokens_that_serve_refuses_or_that_open_nothing_are_found(monkeypatch):
    good = "read:0123456789abcdef"
    for tokens, expected in (
        ("", ("ok", "none: serve is for this machine only")),
        (good, ("ok", "1")),
        ("read:short", ("problem", "entry 1 of PATCHSTORE_API_TOKENS has a token of 5 characters")),
        (f"{good}@2020-01-31", ("warning", "entry 1 of PATCHSTORE_API_TOKENS opens nothing")),
    ):
        monkeypatch.setenv("PATCHSTORE_API_TOKENS", tokens)
        ((level, text),) = found(host.check_tokens)
        assert (level, text[: len(expected[1])]) == expected
        assert "0123456789abcdef" not in text


def test_a_run_that_died_and_its_leases_are_found(store, spec):
    start_run(store, open_source(store, "/photos"), spec)
    with store.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE patchstore.ingest_run SET started_at = now() - interval '1 hour'"
        )
        connection.exec_driver_sql(
            "INSERT INTO patchstore.image (sha256, size_bytes) VALUES (sha256('a'), 1)"
        )
        connection.exec_driver_sql(
            "INSERT INTO patchstore.extraction (spec_id, image_id, state, leased_until, run_id) "
            "SELECT s.id, i.id, 'leased', now() + interval '1 hour', r.id "
            "  FROM patchstore.feature_spec s, patchstore.image i, patchstore.ingest_run r"
        )
    assert found(database.check_runs, store) == [
        ("warning", "the last one over /photos (tiny) has crashed")
    ]
    assert found(database.check_leases, store) == [
        ("warning", "claimed by a run that is dead: 1 images of tiny")
    ]


def test_a_role_without_rights_is_found(store, server):
    with store.begin() as connection:
        connection.exec_driver_sql("CREATE ROLE visitor LOGIN")
        connection.exec_driver_sql("GRANT USAGE ON SCHEMA patchstore TO visitor")
    visitor = make_engine(store.url.set(username="visitor"), vectors=False)
    try:
        ((level, text),) = found(database.check_rights, visitor)
        assert level == "problem"
        assert "extraction" in text
    finally:
        visitor.dispose()
        with store.begin() as connection:
            connection.exec_driver_sql("DROP OWNED BY visitor")
            connection.exec_driver_sql("DROP ROLE visitor")


def test_a_reader_that_may_not_search_is_found(store):
    assert found(database.check_reader, store)[0][0] == "ok"
    with store.begin() as connection:
        connection.exec_driver_sql("REVOKE SELECT ON patchstore.images FROM patchstore_reader")
    assert found(database.check_reader, store) == [("warning", "patchstore_reader may not search")]


def report(capsys, **options):
    code = 0
    try:
        doctor(**options)
    except SystemExit as end:
        code = end.code
    return code, capsys.readouterr().out


def test_a_database_that_is_away_is_one_problem_and_one_line(monkeypatch, capfd):
    monkeypatch.setenv("PATCHSTORE_DATABASE_URL", "postgresql://me:hidden-word@127.0.0.1:9/none")
    code, text = report(capfd)
    problems = [line for line in text.splitlines() if line.startswith("problem")]
    assert code == 1
    assert len(problems) == 1
    assert "postgres" in problems[0]
    assert "hidden-word" not in text


def test_a_refused_setting_leaves_the_rest_of_the_report(monkeypatch, capfd):
    monkeypatch.setenv("PATCHSTORE_LEASE_S", "long")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    code, text = report(capfd)
    assert code == 1
    assert "problem  settings: PATCHSTORE_LEASE_S: " in text
    assert "ok       device: " in text


def test_warnings_alone_end_well_and_json_has_it_all(store, spec, monkeypatch, capfd):
    monkeypatch.setenv("PATCHSTORE_DEVISE", "cpu")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    code, text = report(capfd, as_json=True)
    findings = json.loads(text)
    assert code == 0
    assert all(set(finding) == {"check", "level", "text", "advice"} for finding in findings)
    assert {f["check"] for f in findings} > {"versions", "settings", "disk", "device", "prefect"}


def test_a_home_without_a_store_is_left_alone(monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("PATCHSTORE_HOME", str(tmp_path / "new"))
    monkeypatch.delenv("PATCHSTORE_DATABASE_URL", raising=False)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    code, text = report(capfd)
    assert code == 0
    assert "none yet" in text
    assert not Path(tmp_path / "new").exists()


def test_a_prefect_api_that_a_file_names_is_the_configured_one(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFECT_API_URL", "")  # so that what the file sets is taken back
    monkeypatch.delenv("PREFECT_API_URL")
    (tmp_path / ".env").write_text("PREFECT_API_URL=http://127.0.0.1:9/api\n")
    monkeypatch.chdir(tmp_path)
    assert configured_api() == "http://127.0.0.1:9/api"


def test_a_prefect_api_that_answers_is_looked_at(prefect_api, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("PATCHSTORE_HOME", str(tmp_path / "new"))
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    _, text = report(capfd)
    (line,) = [line for line in text.splitlines() if " prefect: " in line]
    assert line.startswith(f"ok       prefect: {prefect_api} answers, version ")
