"""A real browser, and what a page does in it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

from llmq.report import Contents


@dataclass
class Opened:
    """A page with what it said and asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def chromium():
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if found is None:
        pytest.fail("no Chromium found: `make browser` installs Debian's", pytrace=False)
    # Chromium does not start as root with its sandbox on.
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """Open a file; keywords are those of a browser's context, such as `viewport` and `color_scheme`."""
    contexts = []

    def run(path, **options):
        context = chromium.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        contexts.append(context)
        opened = Opened(context.new_page())
        opened.page.on("console", lambda message: opened.complaints.append(message.text))
        opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.page.on("dialog", lambda dialog: (opened.complaints.append(dialog.message), dialog.dismiss()))
        opened.page.on("request", lambda request: opened.requests.append(request.url))
        opened.page.goto(path.as_uri())
        return opened

    yield run
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def hostile():
    """A name that tries to leave every place where it may stand."""
    return "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}\x1b[2J.weight"


@pytest.fixture(scope="session")
def contents():
    """Make what a page of one weight shows."""

    def make(name="model.layers.0.mlp.up_proj.weight"):
        row = {
            "name": name,
            "shape": [2, 3],
            "elements": 6,
            "quantized": True,
            "bits": 4,
            "nmse": 0.01,
            "sqnr_db": 20.0,
        }
        picture = {"first": -2.0, "width": 1.0, "counts": [1, 2], "below": 0, "above": 0, "usage": [1, 2]}
        return Contents("a title", [("what", "much")], [row], {name: picture})

    return make
