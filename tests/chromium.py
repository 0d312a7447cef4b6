"""A headless Chromium for the tests that look at pages, without root: the one that an npm package holds.

python tests/chromium.py    # beside this Python; does nothing where one is on PATH, or npm is missing
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import npm

NAMES = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome", "google-chrome-stable")
FOLDER = Path(sys.prefix) / "chromium"
PACKAGE = "@sparticuz/chromium@147.0.0"
UNPACK = """
import fs from 'node:fs'; import zlib from 'node:zlib';
const [packed, unpacked] = process.argv.slice(1);
fs.writeFileSync(unpacked, zlib.brotliDecompressSync(fs.readFileSync(packed)), {mode: 0o755});
"""


def found() -> str | None:
    """The browser that OMENN_CHROMIUM names, one on PATH, or the one fetched for this Python."""
    own = FOLDER / "chromium"
    installed = next(filter(None, map(shutil.which, NAMES)), None)
    return os.environ.get("OMENN_CHROMIUM") or installed or (str(own) if own.exists() else None)


def install(folder: Path) -> bool:
    """Fetch the package and unpack its browser; whether it starts here (it needs libnss3 and libexpat1)."""
    from playwright.sync_api import Error, sync_playwright

    npm.fetch(folder, PACKAGE)
    packed = folder / "node_modules" / "@sparticuz" / "chromium" / "bin" / "chromium.br"
    browser = (folder / "chromium").absolute()
    subprocess.run(["node", "--input-type=module", "-e", UNPACK, str(packed), str(browser)], check=True)
    try:
        with sync_playwright() as playwright:
            playwright.chromium.launch(executable_path=str(browser), timeout=60_000).new_page().goto("about:blank")
    except Error as error:
        browser.unlink()
        print(f"the browser does not start: {error}")
    return browser.exists()


def listened(browser, **options):
    """A new page, what its console complains of, and the addresses that it and its workers ask for, as they come."""
    context = browser.new_context(**options)
    said, asked = [], []
    context.on("request", lambda request: asked.append(request.url))
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    return page, said, asked


if __name__ == "__main__" and found() is None and shutil.which("npm") and shutil.which("node"):
    print("a browser for the tests:", "fetched" if install(FOLDER) else "none")
