"""Joules, where the machine tells."""

from pathlib import Path

from extractor.device import choose_device
from extractor.settings import ExtractorSettings

RAPL = Path("/sys/class/powercap")


class Energy:
    """Joules since the beginning, of all that tells: RAPL's packages, or the GPU in use."""

    def __init__(self) -> None:
        """Begins."""
        self._begun = _counters()

    def joules(self) -> float | None:
        """Spent until now; None where nothing tells, as in most virtual machines."""
        now = _counters()
        if not now or now.keys() != self._begun.keys():
            return None
        spent = 0.0
        for name, (joules, wraps_at) in now.items():
            since = joules - self._begun[name][0]
            spent += since if since >= 0 else since + wraps_at
        return spent


def _counters() -> dict[str, tuple[float, float]]:
    """Joules and where the counter begins anew, by its name."""
    device = choose_device(ExtractorSettings().device)
    if device.type == "cuda":
        return _gpu_counter(device.index or 0)
    found = {}
    for zone in RAPL.glob("intel-rapl:?"):
        try:
            joules, wraps_at = (
                int((zone / name).read_text()) / 1e6
                for name in ("energy_uj", "max_energy_range_uj")
            )
        except (OSError, ValueError):  # only root may look
            continue
        found[zone.name] = (joules, wraps_at)
    return found


def _gpu_counter(index: int) -> dict[str, tuple[float, float]]:
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        return {"gpu": (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, 0.0)}
    except Exception:  # not installed, or a driver that does not tell
        return {}
