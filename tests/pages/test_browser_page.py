"""The figures of docs/browser.md are those that are stored."""

import json
import re

from support.paths import ROOT

PAGE = (ROOT / "docs" / "browser.md").read_text()
STORED = json.loads((ROOT / "benchmarks" / "results" / "wasm_2core_avx2.json").read_text())["results"]


def test_the_rates_are_stored_ones():
    rows = re.findall(r"^\| (.+?) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", PAGE, re.MULTILINE)
    found = {row[0]: [int(figure.replace(",", "")) for figure in row[1:]] for row in rows}
    expected = {}
    for name, rates in STORED["million_weights_per_second"].items():
        ours, python = rates["javascript"], rates["python"]
        expected[name] = [round(rate) for rate in (ours["open"], ours["read"], python["read"], ours["product"])]
    assert found == expected
    assert len(found) == 3


def test_the_size_is_the_stored_one():
    (kilobytes,) = re.findall(r"`diffq_fast.wasm`, which takes (\d+) kB", PAGE)
    assert int(kilobytes) == round(STORED["wasm_bytes"] / 1000)
