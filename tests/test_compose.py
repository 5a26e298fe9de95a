"""What the files of the production set-up promise, told without a Docker engine."""

import json
import os
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from sqlalchemy import make_url
from typer.testing import CliRunner

from db.settings import StoreSettings
from extractor.settings import ExtractorSettings
from flows.environment import DEFAULTS
from flows.settings import FlowSettings
from patchstore.api.auth import parse_tokens
from patchstore.api.settings import ServeSettings
from patchstore.cli.main import app

ROOT = Path(__file__).parent.parent
DOCKERFILE = ROOT / "Dockerfile"
# Of Docker Compose 2.40 (github.com/compose-spec/compose-go 2.9.1, schema/compose-spec.json),
# under the Apache License 2.0.
SCHEMA = Path(__file__).parent / "data" / "compose-spec.json"
OURS = {
    f"PATCHSTORE_{name.upper()}"
    for kind in (StoreSettings, FlowSettings, ExtractorSettings, ServeSettings)
    for name in kind.model_fields
}
KNOWN_ELSEWHERE = {"PATCHSTORE_SECRETS_DIR", "POSTGRES_PASSWORD_FILE", "DO_NOT_TRACK", "TMPDIR"}
SECRET = re.compile(r"(PASSWORD|TOKENS?|AUTH_STRING|DATABASE_URL|CONNECTION_URL|KEY)$")
ONE_SHOT = {"secrets", "migrate"}

Services = dict[str, dict[str, Any]]


@pytest.fixture
def services(compose: dict[str, Any]) -> Services:
    """The services of the file, by name."""
    found: Services = compose["services"]
    return found


def environment(service: dict[str, Any]) -> dict[str, str]:
    """The variables that the file itself sets."""
    return service.get("environment", {})


def volumes(service: dict[str, Any]) -> dict[str, str]:
    """What is mounted where, with `:ro` behind the place where it cannot be written."""
    mounts = {}
    for mount in service["volumes"]:
        if isinstance(mount, str):
            source, place = mount.split(":", 1)
        else:
            source, place = mount["source"], mount["target"] + ":ro" * mount["read_only"]
        mounts[source] = place
    return mounts


def test_the_file_is_what_the_compose_specification_allows(compose: dict[str, Any]) -> None:
    jsonschema.Draft7Validator(json.loads(SCHEMA.read_text())).validate(compose)


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    found = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout + found.stderr) == (0, "")


def test_an_image_holds_every_package_and_the_migrations() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {*project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"], "migrations"}
    copied = re.findall(r"^COPY (\w+) /app/\1$", DOCKERFILE.read_text(), re.MULTILINE)
    sent = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert set(copied) == packages
    assert set(sent) == {*packages, "pyproject.toml", "constraints.txt"}


def test_an_image_ends_as_an_ordinary_user_and_checks_its_own_health(services: Services) -> None:
    (last,) = re.findall(r"^USER (.+)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert int(last) > 0
    (check,) = re.findall(r"^HEALTHCHECK .*CMD (\[.+\])$", DOCKERFILE.read_text(), re.MULTILINE)
    assert ["CMD", *json.loads(check)] == services["serve"]["healthcheck"]["test"]
    (command,) = re.findall(r"^CMD (\[.+\])$", DOCKERFILE.read_text(), re.MULTILINE)
    assert json.loads(command) == services["serve"]["command"]


def test_images_of_others_are_pinned_to_a_version(services: Services) -> None:
    built = {service["image"] for service in services.values() if "build" in service}
    others = {service["image"] for service in services.values()} - built
    bases = re.findall(r"^FROM (\S+:\S+)", DOCKERFILE.read_text(), re.MULTILINE)
    assert others
    assert bases
    for image in [*others, *bases]:
        assert re.search(r":\d+\.\d+\.\d+", image), image


def test_no_secret_is_in_the_image_or_in_the_file(services: Services) -> None:
    baked = re.findall(r"^(?:ARG|ENV| +)\s*(\w+)=", DOCKERFILE.read_text(), re.MULTILINE)
    named = [name for service in services.values() for name in environment(service)]
    assert baked
    assert named
    assert [name for name in [*baked, *named] if SECRET.search(name)] == []
    for file in ("docker-compose.yml", "Dockerfile", "docker/databases.sql", "docker/secrets.sh"):
        assert not re.search(r"://\w+:\w+@", (ROOT / file).read_text()), file


def test_secrets_are_made_once_and_are_what_their_readers_take(tmp_path: Path) -> None:
    folders = ("postgres", "prefect", "migrate", "worker", "serve")
    for folder in folders:
        (tmp_path / folder).mkdir()

    def make() -> dict[str, str]:
        subprocess.run(["sh", ROOT / "docker" / "secrets.sh", tmp_path], check=True, timeout=60)
        return {
            str(path.relative_to(tmp_path)): path.read_text().strip()
            for path in sorted(tmp_path.rglob("*"))
            if path.is_file()
        }

    made = make()
    assert make() == made
    passwords = [value for name, value in made.items() if name.startswith("postgres/")]
    assert len({*passwords, made["serve/read_token"], made["serve/admin_token"]}) == 5
    assert all(len(password) == 64 for password in passwords)
    for name in ("migrate", "worker", "serve"):
        url = make_url(made[f"{name}/patchstore_database_url"])
        assert url.password == made["postgres/patchstore_password"]
    scopes = [token.scope for token in parse_tokens(made["serve/patchstore_api_tokens"])]
    assert scopes == ["read", "admin"]
    server = tomllib.loads(made["prefect/profiles.toml"])["profiles"]["compose"]
    worker = tomllib.loads(made["worker/profiles.toml"])["profiles"]["compose"]
    assert server["PREFECT_SERVER_API_AUTH_STRING"] == worker["PREFECT_API_AUTH_STRING"]
    records = make_url(server["PREFECT_SERVER_DATABASE_CONNECTION_URL"])
    assert (records.drivername, records.database) == ("postgresql+asyncpg", "prefect")
    assert records.password == made["postgres/prefect_password"]


def test_a_service_sees_its_own_secrets_and_cannot_change_them(services: Services) -> None:
    for name, service in services.items():
        if name != "secrets":
            own = f"secrets-{name.removesuffix('-gpu')}"
            seen = {at: place for at, place in volumes(service).items() if "secrets" in at}
            assert seen == {own: "/run/secrets:ro"}


def test_a_service_has_no_more_rights_than_it_needs(services: Services) -> None:
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"privileged", "cap_add", "pid", "ipc", "devices"} & set(service), name
        ours = [place for source, place in volumes(service).items() if source.startswith("./")]
        assert all(place.endswith(":ro") for place in ours), name
    # Volumes that nobody has written belong to root: it makes the secrets, and reaches no network.
    roots = [name for name, service in services.items() if runs_as_root(service)]
    assert roots == ["secrets"]
    assert services["secrets"]["network_mode"] == "none"


def runs_as_root(service: dict[str, Any]) -> bool:
    return not service["image"].startswith("patchstore:") and "user" not in service


def test_a_service_is_bounded_and_comes_back(services: Services) -> None:
    for name, service in services.items():
        assert service["deploy"]["resources"]["limits"]["memory"], name
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}, name
        assert service["init"], name
        assert service["restart"] == ("no" if name in ONE_SHOT else "unless-stopped"), name
        assert ("test" in service.get("healthcheck", {})) == (name not in ONE_SHOT), name
    index_gb = StoreSettings.model_fields["maintenance_work_mem_mb"].default / 1024
    assert int(services["postgres"]["shm_size"].removesuffix("gb")) > index_gb


def test_only_the_search_and_on_this_machine_prefects_page_can_be_reached(
    compose: dict[str, Any], services: Services
) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {"prefect": ["127.0.0.1:4200:4200"], "serve": ["8080:8080"]}
    assert compose["networks"]["store"] == {"internal": True}
    assert services["postgres"]["networks"] == ["store"]


def test_a_postgres_elsewhere_is_reached_by_all_that_ask_it(services: Services) -> None:
    asking = {name for name, each in services.items() if "PATCHSTORE" in str(environment(each))}
    assert {"migrate", "worker", "serve"} <= asking
    assert all("outside" in services[name]["networks"] for name in asking - ONE_SHOT | {"migrate"})


def test_everything_that_is_named_is_declared(compose: dict[str, Any], services: Services) -> None:
    mounted = {source for service in services.values() for source in volumes(service)}
    files = {source for source in mounted if source.startswith("./")}
    assert mounted - files == set(compose["volumes"])
    assert all((ROOT / file).exists() for file in files - {"./pictures"})
    joined = {network for service in services.values() for network in service.get("networks", ())}
    assert joined == set(compose["networks"])


def test_services_start_one_after_another(services: Services) -> None:
    waits = {name: service.get("depends_on", {}) for name, service in services.items()}
    order = list(TopologicalSorter(waits).static_order())  # raises where there is a circle
    assert set(order) == set(services)
    for needed in waits.values():
        for name, wait in needed.items():
            ends = "completed_successfully" if name in ONE_SHOT else "healthy"
            assert wait == {"condition": f"service_{ends}"}


def test_the_gpu_worker_is_there_when_asked_for(services: Services) -> None:
    assert [name for name, service in services.items() if "profiles" in service] == ["worker-gpu"]
    gpu, cpu = services["worker-gpu"], services["worker"]
    assert gpu["build"]["target"] == "cuda"
    assert gpu["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    for key in ("command", "environment", "volumes", "networks"):
        assert gpu[key] == cpu[key]


def test_every_variable_is_known_to_who_reads_it(services: Services) -> None:
    given = {k: v for service in services.values() for k, v in environment(service).items()}
    prefects = {name: value for name, value in given.items() if name.startswith("PREFECT_")}
    assert prefects
    assert given.keys() - prefects <= OURS | KNOWN_ELSEWHERE
    # In a process of its own: this one's Prefect must not be imported before it is set up.
    look = "import sys, prefect.settings as s; s.Settings(); [getattr(s, n) for n in sys.argv[1:]]"
    known = subprocess.run(
        [sys.executable, "-c", look, *prefects],
        env={**prefects, "PREFECT_PROFILES_PATH": os.devnull},
        capture_output=True,
        text=True,
        check=False,
    )
    assert known.returncode == 0, known.stderr


def test_prefect_records_as_fast_as_the_server_beside_the_command(services: Services) -> None:
    server = environment(services["prefect"])
    for name, value in DEFAULTS.items():
        if name.startswith("PREFECT_SERVER_"):
            assert server[name] == value


def test_every_command_of_ours_exists(services: Services) -> None:
    commands = [service["command"] for service in services.values() if "command" in service]
    page = (ROOT / "docs" / "operate.md").read_text()
    commands += [
        line.split() for line in re.findall(r"docker compose exec \w+ (patchstore .+)", page)
    ]
    ours = [words[1:] for words in commands if words[0] == "patchstore"]
    assert len(ours) > 4
    for words in ours:
        done = CliRunner().invoke(app, [*words, "--help"])
        assert done.exit_code == 0, (words, done.output)


def test_a_setting_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "patchstore_database_url").write_text("postgresql://me:secret@db/store\n")
    (tmp_path / "patchstore_api_tokens").write_text("read:0123456789abcdef\n")
    code = (
        "from db.settings import StoreSettings; from patchstore.api.settings import ServeSettings;"
        "print(StoreSettings().database_url.get_secret_value());"
        "print(ServeSettings().api_tokens.get_secret_value())"
    )
    for given, url in (
        ({}, "postgresql://me:secret@db/store"),
        ({"PATCHSTORE_DATABASE_URL": "x"}, "x"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PATCHSTORE_SECRETS_DIR": str(tmp_path), **given},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == [url, "read:0123456789abcdef"]
