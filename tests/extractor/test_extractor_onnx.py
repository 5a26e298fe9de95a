"""A network is exported once for every runtime, and what is kept of that is never believed."""

import copy
import logging
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from threading import Event

import numpy as np
import pytest
import torch
from torch import nn

from extractor import onnx, sessions
from extractor.device import EXPORTED, MNN, ONNX, OPENVINO, TORCH
from extractor.errors import DeviceError
from extractor.network import DenseNetwork
from extractor.onnx import ExportedNetwork, export_folder, is_exported

SIDE = 8
EXPORT = onnx.export
NOISE = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made = nn.Sequential(nn.Conv2d(3, 64, 5), nn.ReLU(), nn.Flatten()).eval()
    made.seed = seed
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The exports of the networks of two seeds."""
    folders = {}
    for seed in (0, 1):
        folders[seed] = tmp_path_factory.mktemp("made")
        onnx.export(network(seed), SIDE, folders[seed] / "network.onnx")
    return folders


@pytest.fixture(autouse=True)
def exports(monkeypatch, made):
    """How often networks are exported; each export is copied, for making one takes seconds."""
    done = []

    def export(exported, _side, file):
        done.append(exported)
        shutil.copytree(made[exported.seed], file.parent, dirs_exist_ok=True)

    monkeypatch.setattr(onnx, "export", export)
    return done


@pytest.fixture
def kept(tmp_path):
    return tmp_path / "networks" / "one"


def same(ours, theirs=None, tolerance=1e-5):
    expected = (theirs or network())(NOISE).detach().numpy()
    np.testing.assert_allclose(ours(NOISE).numpy(), expected, atol=tolerance)


def test_another_process_and_another_runtime_find_the_export(kept, exports):
    assert not is_exported(kept)
    for _ in range(2):
        same(ExportedNetwork(network(), SIDE, ONNX, kept))
        same(ExportedNetwork(network(), SIDE, OPENVINO, kept), tolerance=2**-6)
    assert len(exports) == 1 and is_exported(kept)


@pytest.mark.parametrize("runtime", EXPORTED)
@pytest.mark.parametrize("keep", [0, 100, -100])
def test_a_file_that_was_cut_off_is_made_again(keep, runtime, kept, exports):
    ExportedNetwork(network(), SIDE, runtime, kept)
    for file in kept.iterdir():
        file.write_bytes(file.read_bytes()[:keep])
    same(ExportedNetwork(network(), SIDE, runtime, kept), tolerance=2**-6)
    ExportedNetwork(network(), SIDE, runtime, kept)
    assert len(exports) == 2


def test_an_export_that_gives_other_vectors_is_made_again(kept, exports):
    ExportedNetwork(network(0), SIDE, ONNX, kept)
    same(ExportedNetwork(network(1), SIDE, ONNX, kept), network(1))
    assert len(exports) == 2


@pytest.mark.parametrize("runtime", EXPORTED)
def test_a_fresh_export_that_gives_other_vectors_is_refused(runtime):
    other = network(0)
    other.seed = 1
    with pytest.raises(DeviceError, match=f"{runtime} cannot run .*its vectors differ by"):
        ExportedNetwork(other, SIDE, runtime)


@pytest.mark.parametrize("runtime", EXPORTED)
def test_a_session_whose_maps_are_of_another_size_is_refused(runtime, monkeypatch):
    ends = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.MaxPool2d(3, 2, ceil_mode=True))
    dense = DenseNetwork(ends, nn.Identity()).eval()
    monkeypatch.setattr(onnx, "export", EXPORT)
    assert ExportedNetwork(dense, 16, runtime)(NOISE).shape == dense.features(NOISE).shape
    floor = DenseNetwork(copy.deepcopy(ends), nn.Identity()).eval()
    floor.trunk[1].ceil_mode = False
    monkeypatch.setattr(onnx, "export", lambda _network, *args: EXPORT(floor, *args))
    with pytest.raises(DeviceError, match=r"its maps are of \(1, 4, .*, not \(1, 4, "):
        ExportedNetwork(dense, 16, runtime)


@pytest.fixture(params=EXPORTED)
def exported(request):
    return ExportedNetwork(network(), SIDE, request.param)


def test_passes_side_by_side_give_what_one_after_the_other_gives(exported):
    parts = list(torch.randn(24, 2, 3, SIDE, SIDE))
    found = list(exported.map(lambda part: part * 2, parts))
    for ours, part in zip(found, parts, strict=True):
        torch.testing.assert_close(ours, exported(part * 2), rtol=0, atol=0)


def test_no_more_passes_are_begun_than_keep_the_streams_at_work(exported):
    asked = []
    passes = exported.map(lambda _part: NOISE, (asked.append(i) or i for i in range(100)))
    for done in range(1, 4):
        next(passes)
        assert len(asked) == done + 2 * exported.streams


def test_what_goes_wrong_in_a_pass_comes_out_and_the_next_ones_run(exported):
    with pytest.raises(ZeroDivisionError):
        list(exported.map(lambda part: NOISE / (1 // part), [1, 0, 1]))
    assert len(list(exported.map(lambda _part: NOISE, range(9)))) == 9


def test_several_threads_may_share_a_network(exported):
    def ask(number):
        return list(exported.map(lambda part: NOISE + part, range(number, number + 8)))

    with ThreadPoolExecutor(4) as threads:
        for number, found in enumerate(threads.map(ask, range(4))):
            for i, ours in enumerate(found):
                torch.testing.assert_close(ours, exported(NOISE + (number + i)), rtol=0, atol=0)


def test_torch_computes_in_one_thread_beside_a_pass_and_in_all_of_them_elsewhere(exported):
    before = torch.get_num_threads()
    inside = []
    list(exported.map(lambda _part: inside.append(torch.get_num_threads()) or NOISE, range(8)))
    assert set(inside) == {1}
    with ThreadPoolExecutor(1) as another:
        assert another.submit(torch.get_num_threads).result() == before == torch.get_num_threads()


def fails(_vectors):
    raise RuntimeError("Failed to allocate 99 bytes\nof memory")


@pytest.mark.parametrize("gives", [fails, lambda vectors: vectors[:3]], ids=["error", "stale"])
def test_a_session_that_failed_is_never_used_again(gives):
    breaks = ExportedNetwork(network(), SIDE, ONNX)
    whole, passes = breaks._session, []

    def run(rows):
        passes.append(len(rows))
        return gives(whole.run(rows)) if 9 in passes else whole.run(rows)

    breaks._session = sessions.Session(run)
    same(breaks)
    with pytest.raises(DeviceError, match=f"a pass of {ONNX} failed: out of memory"):
        breaks(torch.zeros(9, 3, SIDE, SIDE))
    same(breaks)
    assert passes == [3, 9]


def test_what_a_session_gives_that_broke_meanwhile_does_not_count():
    slow, inside, go_on = ExportedNetwork(network(), SIDE, ONNX), Event(), Event()
    whole = slow._session

    def run(rows):
        if len(rows) == 9:
            fails(rows)
        inside.set()
        go_on.wait()
        return whole.run(rows)

    slow._session = sessions.Session(run)
    with ThreadPoolExecutor(1) as thread:
        beside = thread.submit(slow, NOISE)
        inside.wait()
        with pytest.raises(DeviceError):
            slow(torch.zeros(9, 3, SIDE, SIDE))
        go_on.set()
        with pytest.raises(DeviceError, match="out of memory"):
            beside.result()
    same(slow)


def test_maps_of_another_size_than_asked_for_do_not_count():
    dense = DenseNetwork(nn.Conv2d(3, 4, 3), nn.Identity()).eval()
    dense.seed = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx, "export", EXPORT)
        exported = ExportedNetwork(dense, SIDE, ONNX, cells=lambda side: side - 2)
    whole = exported._session
    assert exported(NOISE).shape == (3, 4, SIDE - 2, SIDE - 2)
    exported._session = sessions.Session(lambda rows: whole.run(rows[:, :, 1:]))
    with pytest.raises(DeviceError, match="out of memory"):
        exported(NOISE)


WITHOUT_MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from torch import nn
from extractor.arrays import DecodedImage
from extractor.backbone import Backbone
from extractor.device import EXPORTED
from extractor.features import FeatureExtractor
from extractor.grid import spec_grid
from extractor.spec import FeatureSpec

runtime, folder = sys.argv[1:]
spec = FeatureSpec(
    backbone="small", weights="random:0", weights_sha256="0" * 64, patch_size=64, stride=64, dim=64,
    mean=(0.5,) * 3, std=(1.0,) * 3,
)
layers = nn.Conv2d(3, 64, 5), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
network = nn.Sequential(*layers).eval()
backbone = Backbone(network, 64, "0" * 64, export_folder=Path(folder))
pixels = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
image = DecodedImage(pixels, spec_grid(spec, 1024, 1024))
(expected,) = FeatureExtractor(spec, backbone, device="cpu", batch_size=8).extract([image])
extractor = FeatureExtractor(
    spec, backbone, device="cpu", runtime=runtime, precision=EXPORTED.get(runtime, "float32"),
    batch_size=256,
)
status = open("/proc/self/status").read()
used = int(status.split("VmSize:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + (150 << 20), resource.RLIM_INFINITY))
begun = [extractor.begin([image]) for _ in range(3)]
off = max(np.abs(results()[0].vectors - expected.vectors).max() for results in begun)
print(extractor.batch_size < 256, off < 0.01)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the memory as Linux does")
@pytest.mark.parametrize("runtime", [TORCH, *EXPORTED])
def test_where_memory_runs_out_the_batch_is_halved_and_no_vector_is_another(runtime, kept):
    told = subprocess.run(
        [sys.executable, "-c", WITHOUT_MEMORY, runtime, kept], capture_output=True, text=True
    )
    assert told.stdout == "True True\n", told.stderr


@pytest.mark.parametrize(
    ("patches", "streams", "share"), [(32, 1, 32), (32, 2, 16), (32, 16, 8), (5, 2, 5)]
)
def test_a_streams_share_is_large_enough_to_be_fast(exported, patches, streams, share, monkeypatch):
    monkeypatch.setattr(exported, "streams", streams)
    assert exported.share(patches) == share


def test_an_export_says_nothing_of_what_torch_tries(tmp_path, monkeypatch):
    """As of a dense GoogLeNet, whose export takes long."""
    shapes, told = logging.getLogger("torch.fx.experimental.symbolic_shapes"), []
    export = torch.onnx.export

    def loud(*arguments, **options):
        shapes.warning("Failed to reduce inequalities")
        return export(*arguments, **options)

    monkeypatch.setattr(torch.onnx, "export", loud)
    monkeypatch.setattr(shapes, "callHandlers", told.append)
    EXPORT(network(), SIDE, tmp_path / "network.onnx")
    assert told == []
    shapes.warning("of somebody else")
    assert len(told) == 1


def test_openvino_tells_nobody_that_it_is_used(tmp_path):
    code = (
        "import sys; from extractor.sessions import load_openvino; load_openvino().Core(); "
        "print(sys.modules['openvino.tools.ovc.telemetry_utils'].tm.__name__)"
    )
    home = {**os.environ, "HOME": str(tmp_path)}
    told = subprocess.run([sys.executable, "-c", code], env=home, capture_output=True, text=True)
    assert told.stdout.strip() == "openvino.tools.ovc.telemetry_stub", told.stderr
    assert not (tmp_path / "intel").exists()


OPEN_BY_MNN = """
import sys
from pathlib import Path
from extractor.sessions import open_session
for file in sys.argv[1:]:
    try:
        open_session("mnn", Path(file), threads=1)
    except Exception:
        print("refused")
    else:
        print("opened", [name for name in sys.modules if name.startswith("MNN.tools")])
"""


def test_mnn_says_nothing_on_standard_output_and_nothing_to_its_maker(kept):
    onnx.export(network(), SIDE, kept / "network.onnx")
    (kept / f"cut-{version('mnn')}.mnn").write_bytes(b"no network")
    told = subprocess.run(
        [sys.executable, "-c", OPEN_BY_MNN, kept / "network.onnx", kept / "cut.onnx"],
        capture_output=True,
        text=True,
    )
    assert told.stdout == "opened []\nrefused\n", told.stderr


@pytest.mark.parametrize("code", ["import os; os.abort()", "print('no such layer')"])
def test_a_network_that_mnn_does_not_convert_is_refused(code, monkeypatch):
    monkeypatch.setattr(sessions, "_CONVERT", code)
    with pytest.raises(DeviceError, match=f"{MNN} cannot run this network: its converter ended"):
        ExportedNetwork(network(), SIDE, MNN)


def test_a_converter_that_dies_leaves_nothing_beside_what_is_kept(kept, monkeypatch):
    ExportedNetwork(network(), SIDE, ONNX, kept)
    before = sorted(kept.iterdir())
    code = "import os, sys; open(sys.argv[2], 'w').write('half'); os.abort()"
    monkeypatch.setattr(sessions, "_CONVERT", code)
    with pytest.raises(DeviceError, match="its converter ended"):
        ExportedNetwork(network(), SIDE, MNN, kept)
    assert sorted(kept.iterdir()) == before


def test_where_nothing_can_be_kept_the_network_runs_all_the_same(tmp_path, exports):
    (tmp_path / "networks").write_text("a file")
    same(ExportedNetwork(network(), SIDE, ONNX, tmp_path / "networks" / "one"))
    assert len(exports) == 1


def test_what_was_not_used_for_longest_is_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "_KEPT", 2)
    for name in ("a", "b", "a", "c"):
        ExportedNetwork(network(), SIDE, ONNX, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c"]


def test_the_folder_is_of_the_spec_and_the_libraries(tmp_path, tiny_spec, monkeypatch):
    folder = export_folder(tmp_path, tiny_spec)
    assert folder == export_folder(tmp_path, tiny_spec) and folder.parent == tmp_path
    assert folder != export_folder(tmp_path, tiny_spec.model_copy(update={"layer": "features"}))
    monkeypatch.setattr(onnx, "version", lambda _library: "9")
    assert folder != export_folder(tmp_path, tiny_spec)
