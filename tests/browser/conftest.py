from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.browser import Browser, Page, browser, find_browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    path = find_browser()
    if path is None:
        pytest.skip("NO HEADLESS BROWSER: the page of `journal html` is untested here (.ci/browser installs one)")
    with browser(path) as running:
        yield running


@pytest.fixture
def page(chromium: Browser) -> Page:
    tab = chromium.page()
    tab.look()
    return tab
