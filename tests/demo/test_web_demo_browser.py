# SPDX-License-Identifier: Apache-2.0
"""The web demo's page in a real browser, without a window: load, upload, slide, compare.

It needs chromium and its driver (Debian: apt-get install chromium chromium-driver) and is skipped
without.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from sparse_refine.data.synthetic import generate_field

# of gradio 6.31 with pandas 3
pytestmark = pytest.mark.filterwarnings("ignore:.*(silent_downcasting|copy keyword)")


class Page:
    """The page in a browser; texts are read by a script, whole, since gradio redraws elements."""

    def __init__(self, driver, url: str):
        self.driver = driver
        driver.get(url)

    def text(self, element: str) -> str:
        script = "return document.getElementById(arguments[0])?.innerText ?? ''"
        return self.driver.execute_script(script, element)

    def wait(self, found, what: str, seconds: float = 60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := found():
                return value
            time.sleep(0.1)
        raise AssertionError(f"{what} did not come; the page says: {self.text('message')!r}")

    def wait_for_text(self, element: str, text: str) -> str:
        self.wait(lambda: text in self.text(element), f"{text!r} in {element}")
        return self.text(element)

    def find(self, selector: str):
        found = self.driver.find_elements
        return self.wait(lambda: found("css selector", selector), selector)[0]

    def drag(self, selector: str, pixels: int) -> None:
        from selenium.webdriver import ActionChains

        element = self.find(selector)
        chain = ActionChains(self.driver).click_and_hold(element)
        chain.move_by_offset(pixels, 0).release().perform()

    def upload(self, path: Path) -> None:
        """What dropping a file does, after the one before was taken away."""
        for button in self.driver.find_elements("css selector", '#drop button[aria-label="Clear"]'):
            button.click()
        self.find("#drop input[type=file]").send_keys(str(path))

    def images(self, element: str) -> list[str]:
        """Addresses of the element's pictures that the browser has and could decode."""
        return self.driver.execute_script(
            "return [...document.querySelectorAll(`#${arguments[0]} img`)]"
            ".filter(image => image.complete && image.naturalWidth > 0).map(image => image.src)",
            element,
        )

    def problems(self) -> list[str]:
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] == "SEVERE"
        ]

    def addresses(self) -> set[str]:
        """Of everything that the page asked for."""
        events = (json.loads(e["message"])["message"] for e in self.driver.get_log("performance"))
        return {
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        }


@pytest.fixture
def page(web):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    program = shutil.which("chromedriver")
    if browser is None or program is None:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    folder = tempfile.mkdtemp(prefix="web_")  # pytest's are too deep for the browser's sockets
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in (
        "--headless=new",
        "--no-sandbox",  # which root cannot have
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--no-first-run",
        "--lang=en",
        "--window-size=1500,1000",
        f"--user-data-dir={folder}/profile",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(program, env={**os.environ, "TMPDIR": folder})
    try:
        driver = webdriver.Chrome(options=options, service=service)
        try:
            yield Page(driver, web.url)
        finally:
            driver.quit()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_load_upload_slide_and_compare(page, web, tmp_path):
    page.wait_for_text("numbers", "128 x 96")  # the example comes by itself
    assert "crop <b>" in page.text("legend")  # text, not a tag

    photograph = tmp_path / "photograph.png"
    Image.fromarray(generate_field(180, 200, 7)[0]).save(photograph)
    page.upload(photograph)
    first = page.wait_for_text("numbers", "200 x 180")
    assert "25.0 %" in first and "kept" not in first
    for element, count in {"whole": 2, "close": 2, "entropy": 1, "selected": 1}.items():
        page.wait(lambda e=element, n=count: len(page.images(e)) == n, f"pictures of {element}")

    base = web.runner.predictors["tiny"].model.coarse.base.base
    before, runs = set(page.images("whole")), len(base.calls)
    page.drag("#budget input[type=range]", -25)
    second = page.wait_for_text("numbers", "kept of an earlier run")
    assert "25.0 %" not in second and len(base.calls) == runs
    page.wait(lambda: set(page.images("whole")) - before, "another refined picture")

    from selenium.webdriver import Keys

    page.find("#budget input[type=range]").send_keys(Keys.HOME)
    page.wait_for_text("numbers", "0.00 Mpx")
    number = page.find("#budget input[type=number]")
    number.send_keys(Keys.CONTROL, "a")
    number.send_keys("5", Keys.ENTER)
    page.wait_for_text("numbers", "5.0 %")

    def cut() -> str:  # how much of the picture on top is hidden
        style = page.find("#whole img.fixed").get_attribute("style")
        return re.search(r"inset\(([^)]*)\)", style)[1]

    middle = cut()
    page.drag("#whole [data-testid=slider]", 120)
    assert cut() != middle

    shot = tmp_path / "page.png"
    page.driver.save_screenshot(str(shot))
    assert np.asarray(Image.open(shot).convert("L")).std() > 20

    (tmp_path / "broken.png").write_bytes(photograph.read_bytes()[:4000])
    page.upload(tmp_path / "broken.png")
    page.wait_for_text("message", "broken.png cannot be read, it is damaged or cut short")
    assert not page.images("whole") and not page.text("numbers")
    page.find("#examples button").click()
    page.wait_for_text("numbers", "128 x 96")
    assert not page.text("message")

    assert page.problems() == []
    places = {urlsplit(address).netloc for address in page.addresses() if address[:4] == "http"}
    assert places == {urlsplit(web.url).netloc}


@pytest.mark.slow
def test_file_over_the_limit_is_refused_in_the_page(page, tmp_path):
    page.wait_for_text("numbers", "128 x 96")
    (tmp_path / "large.png").write_bytes(bytes(600_000))
    page.upload(tmp_path / "large.png")
    page.wait(lambda: "maximum" in page.driver.find_element("css selector", "body").text, "reason")
    page.find("#examples button").click()
    assert "128 x 96" in page.text("numbers")
