"""Section `hostile` of `make torture`: every malformed checkpoint of the table, and files that change meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tortures.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["child_environment", "rows", "run"]

_QUICK_EVERY: Final = 60
"""Of the cases, in the quick tier; the rest is like its neighbours."""


def run(scratch: Path, *, quick: bool, tell: Callable[[str], None]) -> list[Tally]:
    """Try everything, and count by kind.

    Parameters
    ----------
    scratch : Path
        An empty folder.
    quick : bool
        Take a part of the table only.
    tell : callable
        Is told how far it is.
    """
    groups: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows(scratch, *(("--quick", "--every", str(_QUICK_EVERY)) if quick else ())):
        group = row["name"].partition(":")[0]
        if group not in groups:
            tell(f"hostile: {group}")
        groups[group].append(row)
    return [_tally(group, found) for group, found in groups.items()]


def rows(scratch: Path, *flags: str) -> Iterator[dict[str, Any]]:
    """What came of each case, as it comes.

    Raises
    ------
    RuntimeError
        The process that tries them ended by itself.
    """
    command = [sys.executable, "-m", "tortures.hostile_child", str(scratch), *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=child_environment(), text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode:
        raise RuntimeError(f"the process that tries hostile checkpoints ended with {process.returncode}")


def child_environment() -> dict[str, str]:
    """An environment in which Python finds these modules, and forks are of one thread."""
    import os

    paths = [str(Path(__file__).parents[1]), *filter(None, sys.path)]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }


def _tally(group: str, found: list[dict[str, Any]]) -> Tally:
    wrong = [row for row in found if row["wrong"]]
    runs = sum(row["runs"] for row in found)
    refused = sum(1 for row in found if row["code"] in (2, 3, 4))
    detail = f"{refused} refused" if len(found) == runs else "; ".join(filter(None, (r.get("detail") for r in found)))
    if wrong:
        first = wrong[0]
        detail = f"{first['name']} ({first['command']}): {first['wrong']}"
    return Tally(f"hostile: {group}", runs, len(wrong), detail)
