"""What `patchstore bench` makes of measurements; the story itself is in tests/acceptance."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from extractor.device import Way, choose_device
from extractor.errors import ImageError
from flows.request import Precision
from patchstore.bench import cases, energy, run
from patchstore.bench.bare import cores_to_use, run_alone
from patchstore.bench.cases import Row
from patchstore.bench.energy import Energy
from patchstore.bench.home import SpecOptions, environment, temporary_home
from patchstore.bench.measure import apart, communicate, peak_mib
from patchstore.bench.pictures import Pictures, copied, cut_out, made_up
from patchstore.bench.tiles import pixeltable_home
from patchstore.cli import ingest as cli
from patchstore.errors import BenchError, CaseFailed, PatchstoreError

OPTIONS = SpecOptions(patch_size=64, stride=32)
CORES = float(cores_to_use(choose_device()))
PLAIN = Row("bare forward pass, as torchvision has it", "float32", 1000, 10.0, 500.0, cores=CORES)
BARE = Row("bare forward pass", "float32 by onnxruntime", 1500, 10.0, 500.0, cores=CORES)
EXACT = Row(
    *("patchstore exact, stride 32", "float32 by onnxruntime", 1200, 10.0, 600.0),
    **{"decoded_mb": 30.0, "stored": True, "stride": 32},
)
DENSE = replace(EXACT, what="patchstore dense, stride 32", way="float32", patches=4800)


@pytest.fixture
def bench() -> run.Bench:
    tutorial = Row("the tutorial's way", "float32", 300, 10.0, 400.0, 30.0, True)
    return run.Bench(
        OPTIONS, [PLAIN, PLAIN], [BARE], [tutorial], [EXACT], [DENSE], machine="a machine"
    )


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    return made_up(3, tmp_path)


def test_a_benchmark_finds_no_store_of_a_persons_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HOME", "DATABASE_URL", "SECRETS_DIR"):
        monkeypatch.setenv(f"PATCHSTORE_{name}", str(tmp_path / "own"))
    found = environment(tmp_path / "home")
    ours = {name: value for name, value in found.items() if value.startswith(str(tmp_path))}
    assert ours == {"PATCHSTORE_HOME": str(tmp_path / "home")}


def test_the_report_compares_with_the_fastest_bare_pass_and_the_tutorial(bench: run.Bench) -> None:
    said = run.report(bench)
    assert "120.0 patches/s, 0.80 of the fastest bare pass, 4.0 times the tutorial's way" in said
    assert "Dense to exact, patches a second: 4.0 at a stride of 32." in said


def test_dense_goes_the_fastest_exact_way_that_is_open_to_it(bench: run.Bench) -> None:
    compiled = replace(EXACT, way="float32 by torch.compile", patches=2 * EXACT.patches)
    bench.exact.append(compiled)
    assert bench.best == compiled and bench.dense_way == EXACT.way
    assert run.Bench(OPTIONS).dense_way == "auto"


def test_every_row_of_the_table_has_as_many_cells_as_columns(bench: run.Bench) -> None:
    lines = [line for line in run.report(bench).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(bench.rows)
    assert len({line.count("|") for line in lines}) == 1


def test_energy_is_a_column_only_where_the_machine_tells(bench: run.Bench) -> None:
    assert "J a patch" not in run.report(bench)
    bench.exact = [replace(EXACT, joules=600.0)]
    assert "J a patch" in run.report(bench) and "| 0.50 |" in run.report(bench)


def test_a_case_that_did_not_work_is_said_with_its_reason(bench: run.Bench) -> None:
    bench.missing.append("Pixeltable: No module named 'pixeltable'")
    assert "Not measured: Pixeltable: No module named 'pixeltable'" in run.report(bench)


def test_an_undisturbed_run_leaves_no_doubt(bench: run.Bench) -> None:
    assert run.doubts(bench) == []


@pytest.mark.parametrize(
    ("changed", "doubt"),
    [
        ({"plain": [PLAIN, replace(PLAIN, patches=800)]}, "ran at 80.0 and at 100.0 patches/s"),
        ({"plain": [replace(PLAIN, cores=0.5 * CORES)]}, f"of {CORES:.0f} cores"),
        ({"exact": [replace(EXACT, patches=1600)]}, "faster than the pass that it contains"),
    ],
)
def test_a_disturbed_run_is_no_figure(
    bench: run.Bench, changed: dict[str, list[Row]], doubt: str
) -> None:
    if not CORES:
        pytest.skip("a GPU computes: cores say nothing")
    for name, rows in changed.items():
        setattr(bench, name, rows)
    assert any(doubt in said for said in run.doubts(bench))


def test_curves_are_drawn_the_same_each_time(
    bench: run.Bench, pictures: Pictures, tmp_path: Path
) -> None:
    bench.small = [replace(EXACT, patches=100), replace(EXACT, patches=1000)]
    files = run.plots(bench, pictures, tmp_path)
    before = [file.read_bytes() for file in files]
    assert [ElementTree.fromstring(content).tag[-3:] for content in before] == ["svg", "svg"]
    run.plots(bench, pictures, tmp_path)
    assert [file.read_bytes() for file in files] == before


def test_pictures_that_cannot_be_read_and_second_copies_are_left_out(tmp_path: Path) -> None:
    originals = tmp_path / "originals"
    originals.mkdir()
    (originals / "broken.jpg").write_bytes(b"no picture")
    for name in ("good.png", "same.png"):
        Image.new("RGB", (70, 40)).save(originals / name)
    found = copied(originals, 10, tmp_path)
    assert found.sizes == [(70, 40)]
    assert found.decoded_mb == pytest.approx(70 * 40 * 3 / 1e6)


def test_a_folder_without_a_readable_picture_is_refused(tmp_path: Path) -> None:
    originals = tmp_path / "originals"
    originals.mkdir()
    (originals / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(BenchError, match="no image of it can be read"):
        copied(originals, 10, tmp_path)


def test_cut_out_pictures_differ_and_have_the_size_of_a_patch(
    pictures: Pictures, tmp_path: Path
) -> None:
    some = cut_out(pictures, 64, 40, tmp_path)
    assert set(some.sizes) == {(64, 64)}
    assert len({file.read_bytes() for file in some.files}) == 40


def test_the_bare_pass_tells_its_share_of_the_peak(pictures: Pictures) -> None:
    found = run_alone(pictures.files, OPTIONS, "float32", True, 0.1)
    assert found.done.patches > 0
    assert found.done.rate * found.done.seconds == pytest.approx(found.done.patches)
    assert 0 < found.of_peak < 4  # some convolutions need fewer operations than are counted


def test_a_patch_larger_than_every_picture_is_said(pictures: Pictures) -> None:
    with pytest.raises(ImageError, match="no patch of 900 x 900 pixels"):
        run_alone(pictures.files, SpecOptions(patch_size=900), "float32", True, 0.1)


def test_a_function_runs_in_a_process_of_its_own_and_tells_its_memory() -> None:
    process, peak = apart(os.getpid)
    assert process != os.getpid()
    assert peak > 1


def test_a_function_that_raises_is_a_case_that_failed() -> None:
    with pytest.raises(CaseFailed, match="invalid literal"):
        apart(int, "no number")


def test_a_process_that_dies_is_a_case_that_failed() -> None:
    with pytest.raises(CaseFailed, match="ended with 9"):
        apart(os._exit, 9)


def test_the_peak_of_another_process_is_watched() -> None:
    allocate = "block = bytearray(80 << 20); print(len(block)); import time; time.sleep(3)"
    process = subprocess.Popen([sys.executable, "-c", allocate], stdout=subprocess.PIPE, text=True)
    output, peak = communicate(process)
    assert output.strip() == str(80 << 20)
    assert peak > 80
    assert peak_mib(process.pid) == 0


def test_energy_counts_on_where_a_counter_wraps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "max_energy_range_uj").write_text("10000000")
    (zone / "energy_uj").write_text("9000000")
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    spent = Energy()
    (zone / "energy_uj").write_text("2000000")
    assert spent.joules() == pytest.approx(3.0)


def test_a_machine_that_tells_no_energy_gives_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    assert Energy().joules() is None


def test_the_postgres_that_pixeltable_leaves_ends_with_its_folder() -> None:
    server = (
        "import pathlib, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGQUIT]); "
        "print(flush=True); signal.sigwait([signal.SIGQUIT]); pathlib.Path(sys.argv[1]).unlink()"
    )
    with pixeltable_home() as home:
        lock = home / "pgdata" / "postmaster.pid"
        lock.parent.mkdir()
        process = subprocess.Popen([sys.executable, "-c", server, lock], stdout=subprocess.PIPE)
        lock.write_text(f"{process.pid}\n{home}\n")
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
    assert process.wait(10) == 0
    assert not home.exists()


def test_a_command_that_nobody_has_a_handle_on_ends_with_its_home() -> None:
    with suppress(KeyboardInterrupt), temporary_home() as home:
        started = [sys.executable, "-c", "print(flush=True); import time; time.sleep(60)"]
        command = subprocess.Popen(started, env=environment(home), stdout=subprocess.PIPE)
        assert command.stdout is not None
        command.stdout.readline()
        command.stdout.close()
        raise KeyboardInterrupt
    command.wait(10)
    assert not home.exists()


def test_noise_is_no_part_of_made_up_pictures(pictures: Pictures) -> None:
    pixels = np.asarray(Image.open(pictures.files[0])).astype(int)
    assert np.abs(np.diff(pixels, axis=1)).mean() < 10


def test_every_way_that_is_measured_can_be_asked_for() -> None:
    assert {str(way) for way in run.ways()} <= set(get_args(Precision))


def test_the_command_takes_the_precisions_that_a_run_takes() -> None:
    assert {choice.value for choice in cli.Precision} == set(get_args(Precision))


@pytest.mark.parametrize("name", get_args(Precision)[1:])
def test_a_precision_is_the_name_of_a_way(name: str) -> None:
    assert str(Way.parse(name)) == name


def test_a_way_that_finds_no_patch_was_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = SimpleNamespace(patches=0, seconds=1.0)
    monkeypatch.setattr(cases, "apart", lambda *_: (nothing, 1.0))
    pictures = SimpleNamespace(files=[], decoded_mb=1.0)
    with pytest.raises(CaseFailed, match="no patch"):
        cases.tutorial(pictures, OPTIONS, "postgresql://")  # type: ignore[arg-type]


def test_plots_that_cannot_be_drawn_are_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PatchstoreError, match="pip install"):
        run.check_plots()
