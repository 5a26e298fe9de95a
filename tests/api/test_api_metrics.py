"""What Prometheus is told of the store, and that dashboard and alerts ask for what there is."""

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from db.engine import make_engine
from db.errors import StoreTimeout
from db.gauges import read_gauges
from db.index import build_index
from patchstore.api import store_metrics

ROOT = Path(__file__).parents[2]
OPS = ROOT / "ops"
ALERTS = [
    rule
    for group in yaml.safe_load((OPS / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARD = json.loads((OPS / "grafana-dashboard.json").read_text())
# What Prometheus itself adds to a scrape.
OF_PROMETHEUS = {"up": {"job", "instance"}}
ADDED = {"job", "instance"}

WORDS = {"and", "or", "unless", "bool", "offset"}
GROUPING = r"\b(?:by|without|on|ignoring)"
STRING = r'"(?:[^"\\]|\\.)*"'


def scrape(url: str) -> dict[str, list]:
    answer = httpx.get(f"{url}/metrics", timeout=60)
    assert answer.status_code == 200
    families = list(text_string_to_metric_families(answer.text))
    assert len({family.name for family in families}) == len(families)
    return {family.name: family.samples for family in families}


def value(families: dict[str, list], family: str, **labels: str) -> float:
    (sample,) = [s for s in families[family] if labels.items() <= s.labels.items()]
    return sample.value


@pytest.fixture(autouse=True, scope="module")
def fresh():
    """Every scrape reads the database."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_metrics, "KEPT_S", 0.0)
        patch.setattr(store_metrics, "SHARE", 1e9)
        yield


@contextmanager
def building(shelf) -> Iterator[None]:
    """An index build that stands still in the middle."""
    engine = make_engine(shelf.engine.url)
    with engine.connect() as blocker, ThreadPoolExecutor(1) as pool:
        blocker.exec_driver_sql(f"LOCK TABLE {shelf.spec.partition} IN ROW EXCLUSIVE MODE")
        built = pool.submit(build_index, engine, shelf.spec, threshold=0, memory_mb=16)
        while not read_gauges(shelf.engine).builds:
            assert not built.done()
        yield
        blocker.rollback()
        assert built.result()
    engine.dispose()


@pytest.fixture(scope="module")
def told(module_shelf, serve) -> dict[str, list]:
    """A scrape of a service that has searched, over a store that was audited and is indexed now."""
    with module_shelf.engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO patchstore.audit (spec_id, recall, sampled, report) VALUES (1, 1, 9, '{}')"
        )
    with serve(module_shelf.engine) as url, building(module_shelf):
        assert httpx.post(f"{url}/v1/search", json={"patch_id": 1}).status_code == 200
        return scrape(url)


def test_the_store_is_told_from_the_database(told, module_shelf) -> None:
    where = {"source": str(module_shelf.folder), "spec": "tiny"}
    assert value(told, "patchstore_up") == 1
    assert value(told, "patchstore_backlog_images", **where) == 0
    assert value(told, "patchstore_last_run_state", **where, state="completed") == 1
    assert value(told, "patchstore_last_run_state", **where, state="running") == 0
    assert 0 <= value(told, "patchstore_index_build_ratio", spec="tiny") <= 1
    assert value(told, "patchstore_invalid_indexes", spec="tiny") == 0
    assert value(told, "patchstore_stored_patches", spec="tiny") == 36
    assert value(told, "patchstore_patches_written") == 36
    assert value(told, "patchstore_failed_images", spec="tiny", reason="corrupt") == 0
    assert value(told, "patchstore_audit_recall_ratio", spec="tiny") == 1


def test_names_follow_the_rules_of_prometheus(told) -> None:
    for name, samples in told.items():
        assert re.fullmatch(r"patchstore_[a-z_]*[a-z]", name)
        assert not re.search(r"(milli|micro|minutes|hours|percent|_ms|kilobytes|megabytes)", name)
        assert not name.endswith(("_total", "_count", "_sum", "_bucket", "_gauge"))
        assert {label for s in samples for label in s.labels} <= {
            *("source", "spec", "state", "reason", "phase"),
            *("method", "route", "status", "question", "by", "le"),
        }


def test_the_service_is_told_while_the_database_is_away(own_shelf, serve, allow) -> None:
    with serve(own_shelf.engine) as url:
        allow(False)
        away = scrape(url)
        allow(True)
        back = scrape(url)
    assert value(away, "patchstore_up") == 0
    assert value(away, "patchstore_http_requests", route="/readyz", status="200") > 0
    assert "patchstore_backlog_images" not in away
    assert value(back, "patchstore_up") == 1
    assert "patchstore_backlog_images" in back


def test_a_store_that_is_locked_is_down_and_keeps_nobody_waiting(
    own_shelf, serve, monkeypatch
) -> None:
    monkeypatch.setattr(store_metrics, "TIMEOUT_S", 0.2)
    with serve(own_shelf.engine) as url, own_shelf.engine.connect() as blocker:
        blocker.exec_driver_sql("LOCK TABLE patchstore.extraction")
        assert value(scrape(url), "patchstore_up") == 0


def test_a_store_whose_numbers_take_long_is_not_down(own_shelf, serve, monkeypatch) -> None:
    monkeypatch.setattr(store_metrics, "KEPT_S", 0.0)
    monkeypatch.setattr(store_metrics, "SHARE", 1e9)
    with serve(own_shelf.engine) as url:
        before = value(scrape(url), "patchstore_stored_images", spec=own_shelf.spec.name)

        def late(_engine: object) -> None:
            raise StoreTimeout("canceling statement due to statement timeout")

        monkeypatch.setattr(store_metrics, "read_gauges", late)
        told = scrape(url)
    assert value(told, "patchstore_up") == 1
    assert value(told, "patchstore_stored_images", spec=own_shelf.spec.name) == before > 0


def test_a_database_that_is_frozen_is_down_within_a_scrape(own_shelf, serve, monkeypatch) -> None:
    """It does not even end its own statements; afterwards it is asked again soon."""
    frozen = threading.Event()
    monkeypatch.setattr(store_metrics, "ANSWER_S", 0.2)
    monkeypatch.setattr(store_metrics, "KEPT_S", 0.0)
    monkeypatch.setattr(store_metrics, "SHARE", 1e9)

    def read(engine: object) -> object:
        assert frozen.wait(30)
        return read_gauges(engine)

    monkeypatch.setattr(store_metrics, "read_gauges", read)
    with serve(own_shelf.engine) as url:
        for _ in range(2):
            assert value(scrape(url), "patchstore_up") == 0
        frozen.set()
        assert any(value(scrape(url), "patchstore_up") == 1 for _ in range(50))


def test_scrapes_close_together_read_the_database_once(shelf, serve, monkeypatch) -> None:
    monkeypatch.setattr(store_metrics, "KEPT_S", 3600.0)
    read = []
    monkeypatch.setattr(
        store_metrics,
        "read_gauges",
        lambda engine, real=store_metrics.read_gauges: read.append(1) or real(engine),
    )
    with serve(shelf.engine) as url:
        assert scrape(url)["patchstore_stored_patches"] == scrape(url)["patchstore_stored_patches"]
    assert len(read) == 1


def asked(expression: str) -> list[tuple[str, set[str]]]:
    """The metrics that an expression of PromQL reads, each with the labels of its matchers."""
    expression = re.sub(r"\$\w+", "x", expression)
    found = re.findall(
        rf"\b([a-zA-Z_:][\w:]*)\b(?!\s*\()\s*(?:\{{((?:[^{{}}\"]|{STRING})*)\}})?",
        re.sub(
            r"\[[^\]]*\]", "", re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", "", expression)
        ),
    )
    return [
        (name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", re.sub(STRING, '""', matchers))))
        for name, matchers in found
        if name not in WORDS
    ]


def grouped(expression: str) -> set[str]:
    """The labels that an expression groups by."""
    groups = re.findall(rf"{GROUPING}\s*\(([^)]*)\)", expression)
    return {label.strip() for group in groups for label in group.split(",")}


def shown(text: str) -> set[str]:
    """The labels that a text of Grafana or of an alert shows."""
    return set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", text))


def expressions() -> list[tuple[str, str, str]]:
    """What is asked, by whom, and the text that shows the answer."""
    alerts = [
        (rule["alert"], rule["expr"], " ".join(rule["annotations"].values())) for rule in ALERTS
    ]
    panels = [
        (panel["title"], target["expr"], target["legendFormat"])
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
    ]
    variables = [
        (variable["name"], *re.findall(r"label_values\((\w+), (\w+)\)", variable["definition"])[0])
        for variable in DASHBOARD["templating"]["list"]
        if variable["type"] == "query"
    ]
    lists = [(name, metric, f"{{{{{label}}}}}") for name, metric, label in variables]
    return [*alerts, *panels, *lists]


@pytest.mark.parametrize(
    ("expression", "read"),
    [
        ('up{job="a"} == 0', [("up", {"job"})]),
        ("sum by (le) (rate(a_b_bucket[5m])) > 1", [("a_b_bucket", set())]),
        ('time() - a{x=~"$y", z!="{}"} > 6 * 3600 and b', [("a", {"x", "z"}), ("b", set())]),
    ],
)
def test_the_metrics_of_an_expression_are_found(expression, read) -> None:
    assert asked(expression) == read


@pytest.mark.parametrize(("who", "expression", "text"), expressions(), ids=lambda part: part[:40])
def test_dashboard_and_alerts_ask_for_what_a_scrape_has(told, who, expression, text) -> None:
    labels = {name: set(ADDED) for family in told.values() for name in {s.name for s in family}}
    for family in told.values():
        for sample in family:
            labels[sample.name] |= set(sample.labels)
    labels |= OF_PROMETHEUS
    read = asked(expression)
    assert read
    everywhere = set.intersection(*(labels[name] for name, _ in read))
    for name, matched in read:
        assert matched <= labels[name], name
    assert grouped(expression) <= everywhere
    assert shown(text) - {"value"} <= everywhere
    by = grouped(expression)
    assert not by or shown(text) <= by


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_says_what_it_means_and_what_to_do(rule) -> None:
    notes = rule["annotations"]
    assert notes["summary"].endswith(".")
    assert notes["description"].endswith(".")
    page, _, anchor = notes["runbook_url"].partition("#")
    headings = re.findall(r"^#### (\w+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor == rule["alert"].lower()
    assert rule["alert"] in headings


def test_every_metric_of_the_store_is_documented(told) -> None:
    documented = re.findall(r"`(patchstore_\w+)`", (ROOT / "docs/operate.md").read_text())
    names = {re.sub(r"_created$", "", name) for name in told}
    assert {name.removesuffix("_total") for name in documented} >= names - {
        "patchstore_http_requests_in_progress"
    }


def test_the_example_configuration_finds_the_rules_and_the_metrics() -> None:
    config = yaml.safe_load((OPS / "prometheus.yml").read_text())
    assert all((OPS / name).is_file() for name in config["rule_files"])
    (job,) = config["scrape_configs"]
    assert (job["job_name"], job["metrics_path"]) == ("patchstore", "/metrics")
    assert job["authorization"]["type"] == "Bearer"
