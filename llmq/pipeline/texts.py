"""Which text a run reads: to calibrate its method on, and to tell how much each weight matters."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmq.architectures import decoder_config
from llmq.errors import InputError, LlmqError, ResourceError, UnsupportedError, UsageError
from llmq.plan.calibrated import CALIBRATION_TOKENS, SHARE_TOKENS, shares_bytes

if TYPE_CHECKING:
    from llmq.checkpoint.source import Source
    from llmq.pipeline.calibration import Calibration
    from llmq.plan import Plan
    from llmq.spec import Recipe

__all__ = ["Text", "Texts", "choose_texts"]

_log = logging.getLogger("llmq")


@dataclass(frozen=True)
class Text:
    """A text to read.

    Parameters
    ----------
    path : Path or None
        None for the bundled one.
    tokens : int
        At most so many.
    """

    path: Path | None
    tokens: int

    def read(self, source: Source) -> Calibration:
        """Read it, as tokens of the model."""
        from llmq.pipeline.calibration import read_calibration

        return read_calibration(source.folder, decoder_config(source.config), self.path, self.tokens)


@dataclass(frozen=True)
class Texts:
    """What a run reads.

    Parameters
    ----------
    method : Text or None
        What the method is calibrated on.
    shares : Text or None
        What tells how much weights matter; None for priors.
    insists : bool
        Whether priors may not stand in for it.
    """

    method: Text | None
    shares: Text | None
    insists: bool

    def for_shares(
        self, source: Source, plan: Plan, max_memory: int | None, calibration: Calibration | None = None
    ) -> tuple[Calibration | None, Plan]:
        """Read the text that tells how much weights matter, and count the memory of taking it through the model.

        Where the method's was read, this is its beginning. None, with a notice, where that cannot be done and priors
        may stand in.

        Raises
        ------
        LlmqError
            It cannot be done, and was asked for.
        """
        if self.shares is None:
            return None, plan
        try:
            decoder = decoder_config(source.config)
            need = shares_bytes(plan, decoder, self.shares.tokens)
            if max_memory is not None and need > max_memory:
                raise ResourceError(
                    "memory limit too small to take a text through the model",
                    expected=f"{-(-need >> 20)} MiB",
                    found=f"{max_memory >> 20} MiB",
                    hint=f"--max-memory {-(-need >> 20)}MiB, or --importance priors",
                )
            read = self.shares.read(source) if calibration is None else calibration.first(self.shares.tokens)
            return read, replace(plan, predicted_peak_bytes=max(plan.predicted_peak_bytes, need))
        except (UnsupportedError, InputError, ResourceError) as error:
            if self.insists or _is_about(error, self.shares.path):
                raise
            _log.warning("how much each weight matters is told by fixed numbers (--importance priors): %s", error)
            return None, plan


def _is_about(error: LlmqError, path: Path | None) -> bool:
    """Whether the text that the user gave is at fault."""
    return path is not None and str(path) in str(error)


def choose_texts(recipe: Recipe, calibrate: str | Path | None, tokens: int | None, importance: str | None) -> Texts:
    """Tell what a run reads by its flags.

    Raises
    ------
    UsageError
        Flags that nothing uses.
    """
    from llmq.methods import METHODS

    if importance not in (None, "measured", "priors"):
        raise UsageError("unknown --importance", expected="measured/priors", found=importance)
    if importance is not None and recipe.goal is None:
        raise UsageError("--importance weighs what a target chooses", hint="--target-size, --target-bpw or --ram")
    if tokens is not None and tokens < 1:
        raise UsageError("--calibrate-tokens must be positive", found=tokens)
    path = None if calibrate is None else Path(calibrate)
    calibrated = METHODS[recipe.method].needs != "nothing"
    weighs = recipe.goal is not None and importance != "priors"
    if not calibrated and not weighs and (path is not None or tokens is not None):
        methods = "/".join(name for name, found in METHODS.items() if found.needs != "nothing")
        raise UsageError(f"--calibrate: {recipe.method} needs no data", hint=f"--method {methods}")
    return Texts(
        Text(path, tokens or CALIBRATION_TOKENS) if calibrated else None,
        Text(path, min(tokens or SHARE_TOKENS, SHARE_TOKENS)) if weighs else None,
        importance == "measured",
    )
