"""Take docs/demo.png, the demo with search results. It needs selenium, chromium and chromedriver.

python -c "import albef_hf.data as d; [s['image'].save(f'scenes/{i:03}.png') for i, s in enumerate(d.Scenes(500))]"
albef index build scenes --model runs/scenes --index scenes.index
albef demo --index scenes.index &
python docs/figures/demo.py --address http://127.0.0.1:7860
"""

import argparse
import base64
import shutil
import time
from collections.abc import Callable
from typing import Any

from drawing import HERE
from selenium import webdriver

QUERY = "a red circle, a blue hexagon and a green ring"
SIZE = {"width": 1180, "height": 900, "deviceScaleFactor": 1, "mobile": False}
WAIT = 120  # seconds for results
SHOWN = """
    const items = [...document.querySelectorAll("#found .grid-container img")];
    return items.length && items.every(item => item.naturalWidth > 1) ? items.map(item => item.src).join() : "";
"""


def main() -> None:
    """Search in the page, and write the screen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="http://127.0.0.1:7860", help="where the demo is served")
    options = parser.parse_args()
    settings = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars"):
        settings.add_argument(argument)
    browser = webdriver.Chrome(settings, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", SIZE)
        browser.get(options.address)
        search(browser)
        bottom = browser.execute_script("return document.querySelector('footer').getBoundingClientRect().top")
        area = {"x": 0, "y": 0, "width": SIZE["width"], "height": bottom, "scale": 1}
        screen = browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": area, "captureBeyondViewport": True})
        (HERE.parent / "demo.png").write_bytes(base64.b64decode(screen["data"]))
    finally:
        browser.quit()


def search(browser: webdriver.Chrome) -> None:
    """Open the tab of the search, and find the images of the query."""
    (tab,) = wait(lambda: [tab for tab in browser.find_elements("css selector", "[role=tab]") if tab.text == "Search"])
    tab.click()
    before = wait(lambda: browser.execute_script(SHOWN))
    field = browser.find_element("css selector", "#query textarea, #query input")
    field.clear()
    field.send_keys(QUERY)
    browser.find_element("css selector", "#search").click()
    wait(lambda: browser.execute_script(SHOWN) not in ("", before))
    time.sleep(1)  # the progress bar fades


def wait(condition: Callable[[], Any]) -> Any:
    """Return the value of a condition as soon as it is true."""
    deadline = time.monotonic() + WAIT
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing appeared in {WAIT} seconds: is the page served with --index?")
        time.sleep(0.2)
    return value


if __name__ == "__main__":
    main()
