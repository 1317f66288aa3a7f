"""The table of malformed checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tortures.attacks import configs, folders, headers, packed, texts

if TYPE_CHECKING:
    from tortures.attacks.case import Case

__all__ = ["all_cases"]


def all_cases() -> list[Case]:
    """Every case, by name."""
    found = [case for module in (headers, folders, configs, packed, texts) for case in module.cases()]
    names = [case.name for case in found]
    assert len(set(names)) == len(names), "two cases have the same name"
    return found
