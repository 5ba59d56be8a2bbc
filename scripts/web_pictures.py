"""Takes the pictures of the web pages from a real server: python scripts/web_pictures.py

``vllm-diagnose serve`` runs in an empty home on a free port, gets a captured log, and Chromium looks at its pages. Needs
/usr/bin/chromium and fonts with Chinese characters.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from small_png import make_small

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "pictures"
LOG = ROOT / "tests/data/lab/kv-cache-too-small/server.log"
QUESTION = "服务启动后卡住不动"
#: Name, path ({log} and {words} are the incidents), width, height, dark.
SHOTS = (
    ("web-diagnosis-en", "/incidents/{log}?lang=en", 1100, 1162, False),
    ("web-diagnosis-zh-dark", "/incidents/{log}?lang=zh", 1100, 1060, True),
    ("web-memory-en", "/memory?lang=en&model=Qwen/Qwen3-8B&gpu=A10&max_model_len=32768", 1100, 900, False),
)
#: Side by side in web-phone-zh.
PHONE = ("/?lang=zh", "/incidents/{log}?lang=zh", "/incidents/{words}?lang=zh")
PHONE_WIDTH, PHONE_HEIGHT = 390, 1000


@contextlib.contextmanager
def serving(home: Path) -> Iterator[str]:
    """The address of a server in an empty home, where everybody may look and ask."""
    given = {"PATH": os.environ["PATH"], "HOME": str(home), "VLLM_DIAGNOSE_SERVER_ANONYMOUS": "viewer"}
    command = [str(Path(sys.executable).with_name("vllm-diagnose")), "serve", "--port", "0"]
    process = subprocess.Popen(command, env=given, stderr=subprocess.PIPE, text=True)
    try:
        address = next(word for line in process.stderr or () for word in line.split() if word.startswith("http://127"))
        address = address.strip('",')
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/readyz", timeout=5):
                break
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.communicate(timeout=30)


def diagnosed(address: str, body: dict[str, object]) -> str:
    """The id of a new incident."""
    request = urllib.request.Request(
        f"{address}/v1/diagnoses", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(json.load(answer)["incident"])


def shoot(page: str, to: Path, size: tuple[int, int], profile: Path, dark: bool = False) -> None:
    """One page as Chromium shows it."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("Chromium is needed to take the pictures.")
    subprocess.run(
        [
            *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *(f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}", f"--screenshot={to}"),
            *(("--blink-settings=preferredColorScheme=0",) if dark else ()),
            page,
        ],
        capture_output=True,
        timeout=90,
        check=True,
    )


def main() -> int:
    """Writes docs/pictures/web-*.png."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with serving(folder) as address:
            ids = {
                "words": diagnosed(address, {"text": QUESTION, "language": "zh"}),
                "log": diagnosed(
                    address, {"logs": [{"name": "server.log", "content": LOG.read_text("utf-8")}], "language": "en"}
                ),
            }
            for shot, path, width, height, dark in SHOTS:
                to = TARGET / f"{shot}.png"
                shoot(address + path.format(**ids), to, (width, height), folder / "profile", dark)
                make_small(to)
            columns = []
            for number, path in enumerate(PHONE):
                one = folder / f"{number}.png"
                shoot(address + path.format(**ids), one, (PHONE_WIDTH, PHONE_HEIGHT), folder / "profile")
                columns.append(base64.b64encode(one.read_bytes()).decode())
        together = folder / "phone.html"
        pictures = "".join(f'<img src="data:image/png;base64,{column}">' for column in columns)
        together.write_text(f"<style>body{{margin:0;background:#888;display:flex;gap:12px}}</style>{pictures}")
        to = TARGET / "web-phone-zh.png"
        shoot(together.as_uri(), to, (3 * PHONE_WIDTH + 24, PHONE_HEIGHT), folder / "profile")
        make_small(to)
    return 0


if __name__ == "__main__":
    sys.exit(main())
