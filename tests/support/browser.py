"""Runs a page in a browser without a window, if there is one."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium")


def in_browser(page: str, script: str, folder: Path) -> dict[str, Any]:
    """What a script leaves after it was run at the end of the page's own."""
    own = re.search(r"<script>(.*)</script>", page, re.S)
    assert own
    both = own[1] + script
    hashed = [
        "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (own[1], both)
    ]
    assert hashed[0] in page  # the policy allows the script of the page
    path = folder / "page.html"
    path.write_text(page.replace(own[1], both).replace(*hashed), encoding="utf-8")
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [
        "--virtual-time-budget=20000",
        f"--user-data-dir={folder / 'profile'}",
        path.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="results">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))
