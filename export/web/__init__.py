"""A page that explains in the browser: an exported file with everything that it needs beside it.

This folder is also the npm package that the page runs on (`package.json`, `index.js`), for the pages of others.
"""

from omenn_fx.export.web.page import Page, write_page
from omenn_fx.export.web.runtime import RUNTIME, runtime_files

__all__ = ["RUNTIME", "Page", "runtime_files", "write_page"]
