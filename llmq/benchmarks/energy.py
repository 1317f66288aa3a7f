"""Energy of the processor's packages, where the kernel exposes RAPL and lets this user read it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["EnergyMeter"]

_POWERCAP: Final = Path("/sys/class/powercap")


class EnergyMeter:
    """Joules since it was made, or None where nothing can be read.

    Parameters
    ----------
    root : Path
        Folder of the kernel's power zones.
    """

    def __init__(self, root: Path = _POWERCAP) -> None:
        # Zones within a package, and the platform's own, count what the packages count already.
        zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if zone.name.count(":") == 1]
        self._zones = [zone for zone in zones if (_text(zone / "name") or "").startswith("package")]
        self._last = [_microjoules(zone / "energy_uj") for zone in self._zones]
        self._total = 0

    def joules(self) -> float | None:
        """Energy so far. Counters wrap after some minutes of work: ask more often than that."""
        for i, zone in enumerate(self._zones):
            now, before = _microjoules(zone / "energy_uj"), self._last[i]
            if now is None or before is None:
                return None
            wrapped = (_microjoules(zone / "max_energy_range_uj") or 0) if now < before else 0
            self._total += now - before + wrapped
            self._last[i] = now
        return self._total / 1e6 if self._zones else None


def _microjoules(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.isdigit() else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
