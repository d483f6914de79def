"""report_page: one page that needs nothing else, whose figures are those of the report, whatever the file's names."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from diffq_fast.packed.coding import CodedTensor, code_levels
from diffq_fast.packed.contents import read_packed
from diffq_fast.packed.header import PackedFileError
from diffq_fast.packed.report import inspect
from diffq_fast.packed.report_page import html_page, mean_widths, write_page
from support.browser import browser, dumped_page
from support.packed_examples import DATA, Example, coded, example_weight, kinds, short_ranges

HOSTILE = "</td><script>alert(1)</script>&amp;\"'<b>\x1b\x00"


def parsed(page):
    """The page as a tree: a parser that takes nothing but well-formed XML has read it."""
    return ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def cells(page):
    """Name of each weight -> the values that its row is sorted by."""
    (table,) = (each for each in parsed(page).iter("table") if each.get("class") == "weights")
    rows = [[cell.get("data-value") for cell in row.iter("td")] for row in table.find("tbody").iter("tr")]
    return {row[0]: row[1:] for row in rows}


def big():
    """A file that has everything: fixed, coded, steps, ties, buffers."""
    levels, codes = torch.arange(-8, 8).repeat(40).reshape(20, 32), torch.arange(20) - 90
    packed = {
        "layer.weight": example_weight((64, 32), [2, 3, 4, 4], 8),
        "wide.weight": example_weight((16, 32), [11], 8, seed=3),
        "steps.weight": code_levels(levels, codes, group_size=32),
    }
    return Example(packed, {"bias": torch.zeros(3), "mean": torch.ones(2)}, {"tied": "layer.weight"}, buffers={"mean"})


@pytest.mark.parametrize("example", [kinds, coded, short_ranges, big, lambda: Example({})])
def test_every_file_has_a_page_that_is_well_formed_and_needs_nothing_else(example, tmp_path):
    page = html_page(example().write(tmp_path / "a"))
    tree = parsed(page)
    assert not re.findall(r"https?:|src=|href=|@import|url\(", page)
    assert "default-src 'none'" in next(tree.iter("meta")).get("content", "") + page
    tags = []

    class Balance(HTMLParser):
        def handle_starttag(self, tag, attributes):
            tags.append(tag)

        def handle_endtag(self, tag):
            assert tags.pop() == tag

        def handle_startendtag(self, tag, attributes):
            assert tag in ("meta", "wbr", "br", "rect")

    Balance(convert_charrefs=True).feed(page)
    assert tags == []


def test_the_rows_are_those_of_the_report(tmp_path):
    path = big().write(tmp_path / "a")
    report, rows = inspect(path), cells(html_page(path))
    assert list(rows) == [weight.name for weight in report.weights]
    for weight in report.weights:
        shape, count, group, bits, _, size, _, coding, coded_size, fixed_size = rows[weight.name]
        assert shape == "x".join(map(str, weight.shape))
        assert (int(count), int(size), coding) == (weight.count, weight.bytes, weight.coding)
        assert int(group) == weight.group_size
        assert float(bits) == pytest.approx(weight.bits_per_weight, rel=1e-5)
        if not weight.has_steps:
            assert int(fixed_size) == weight.fixed_bytes
        assert (int(coded_size) > 0) == (weight.coding == "coded")


def test_bytes_by_purpose_and_shares_of_widths_are_those_of_the_report(tmp_path):
    path = big().write(tmp_path / "a")
    report, page = inspect(path), html_page(path)
    for purpose, size in report.bytes_by_purpose.items():
        assert (f'{purpose}</td><td class="number">{size:,}</td>' in page) == bool(size)
    assert f"{report.file_bytes / 2**10:.1f} KB" in page
    of_widths = 64 * 32 + 16 * 32 + 20 * 32
    assert f'title="{64 * 32 // 4:,} elements"><span>{64 * 32 / 4 / of_widths:.1%}</span>' in page
    assert "Of 1 weight with steps: the bits that the largest level of each group needs." in page


def test_a_weight_with_steps_is_shown_with_the_bits_that_its_levels_need(tmp_path):
    """Rows of levels that need 1, 2, 4 and 9 bits: both ends of two's complement, and zeros."""
    rows = [[0, 0, 0, -1], [-2, 1, 0, 0], [-8, 7, 1, 1], [255, 0, -256, 1]]
    levels = torch.tensor(rows, dtype=torch.int32).repeat(1, 16)
    path = Example({"steps": code_levels(levels, torch.zeros(4, dtype=torch.int16), group_size=64)}).write(
        tmp_path / "a"
    )
    page = html_page(path)
    for width in (1, 2, 4, 9):
        assert f'title="64 elements"><span>25.0%</span><i class="w{width}"' in page
    mean, _, _, _, coded_size, fixed_size = cells(page)["steps"][4:]
    assert float(mean) == (1 + 2 + 4 + 9) / 4
    assert int(fixed_size) == 64 * (1 + 2 + 4 + 9) // 8
    assert int(coded_size) == 2 * len(read_packed(path).packed["steps"].coded)
    assert f"{int(coded_size) / int(fixed_size):.1%} of fixed widths" in page


@pytest.mark.parametrize(("shape", "group_size"), [((5, 7), 8), ((5, 7), 0), ((5, 7), 1 << 40), ((0, 7), 8), ((), 0)])
def test_least_widths_are_one_for_each_group(shape, group_size):
    count = torch.Size(shape).numel()
    groups = -(-count // (group_size or max(count, 1)))
    levels = torch.arange(count, dtype=torch.int32).reshape(shape)
    weight = code_levels(levels, torch.zeros(groups, dtype=torch.int16), group_size=group_size)
    last = [min((number + 1) * (group_size or count), count) - 1 for number in range(groups)]
    assert weight.least_widths().tolist() == [each.bit_length() + 1 for each in last]


def test_a_damaged_level_is_told_with_the_weight_s_name(tmp_path):
    path = big().write(tmp_path / "a")
    (coded,) = [each for each in read_packed(path).packed.values() if isinstance(each, CodedTensor)]
    blob, stored = path.read_bytes(), coded.coded.numpy().tobytes()
    assert blob.count(stored) == 1
    path.write_bytes(blob.replace(stored, bytes(len(stored))))
    with pytest.raises(PackedFileError, match=r"steps\.weight"):
        html_page(path)


def test_a_file_without_coded_weights_has_no_columns_of_theirs(tmp_path):
    page = html_page(kinds().write(tmp_path / "a"))
    assert "Coded against fixed widths" not in page
    assert {len(row) for row in cells(page).values()} == {7}
    page = html_page(coded().write(tmp_path / "b"))
    sizes = [[int(size) for size in row[-2:]] for row in cells(page).values() if "coded" in row[-3]]
    assert len(sizes) > 1
    coded_size, fixed_size = map(sum, zip(*sizes, strict=True))
    assert f"{coded_size / fixed_size:.1%} of fixed widths" in page


def test_widths_along_the_groups_are_means_of_equal_runs():
    assert mean_widths(np.array([3, 5, 9], dtype=np.uint8)) == [3, 5, 9]
    means = mean_widths(np.repeat(np.array([2, 10], dtype=np.uint8), 320))
    assert means == [2.0] * 32 + [10.0] * 32
    assert len(mean_widths(np.full(1000, 255 % 17, dtype=np.uint8))) == 64
    assert mean_widths(np.empty(0, dtype=np.uint8)) == []


def test_names_from_the_file_are_text_and_nothing_else(tmp_path):
    info = {"class": HOSTILE, "arguments": {HOSTILE: [HOSTILE]}}
    packed = {HOSTILE: example_weight((40,), [3, 4], 8)}
    page = html_page(Example(packed, {}, {HOSTILE + "t": HOSTILE}, quantizer_info=info).write(tmp_path / "<i>&"))
    tree = parsed(page)
    assert [len(list(tree.iter(tag))) for tag in ("script", "b")] == [1, 5 + 2]  # tiles and columns
    assert not any(each in page for each in ("\x1b", "\x00", "<i>&", "alert(1)</script>"))
    (name,) = cells(page)
    assert name == ascii(HOSTILE)


def test_a_page_is_written_all_or_nothing_and_never_over_its_file(tmp_path):
    path = big().write(tmp_path / "a")
    before = path.read_bytes()
    for output, words in ((path, "is the input itself"), (tmp_path, "is a folder")):
        with pytest.raises(ValueError, match=words):
            write_page(path, output)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(ValueError, match="is the input itself"):
        write_page(path, tmp_path / "link")
    assert path.read_bytes() == before
    path.write_bytes(before[:-1])
    (tmp_path / "page.html").write_text("old")
    with pytest.raises(ValueError, match="truncated"):
        write_page(path, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == "old"


@pytest.mark.skipif(browser() is None, reason="needs a browser: apt-get install chromium")
def test_a_browser_shows_the_page_and_its_table_sorts(tmp_path):
    write_page(big().write(tmp_path / "a"), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    click = """<script>
      const heads = document.querySelectorAll("th button");
      const order = [];
      for (const column of [6, 6, 0]) {
        heads[column].click();
        order.push(Array.from(document.querySelectorAll("tbody .name"), function (each) { return each.textContent; }));
      }
      document.title = JSON.stringify([order, getComputedStyle(document.body).backgroundColor]);
    </script></body>"""
    (tmp_path / "clicked.html").write_text(page.replace("</body>", click))
    sizes = {weight.name: weight.bytes for weight in inspect(tmp_path / "a").weights}
    falling = sorted(sizes, key=lambda name: -sizes[name])
    seen = set()
    for scheme, options in (("light", ()), ("dark", ("--blink-settings=preferredColorScheme=0",))):
        shown = dumped_page(tmp_path / "clicked.html", tmp_path / scheme, *options)
        (title,) = re.findall("<title>(.*?)</title>", shown)
        order, background = ElementTree.fromstring(f"<a>{title}</a>").text.rsplit(",", 3)[0], title
        names = re.findall(r"[\w.]+\.weight", order)
        assert names == falling + falling[::-1] + sorted(sizes)
        seen.add(re.findall(r"rgb\([\d, ]+\)", background)[0])
    assert len(seen) == 2


def test_the_golden_file_is_not_changed_by_its_page(tmp_path):
    path = DATA / "packed_v1_kinds.safetensors"
    before = path.read_bytes()
    write_page(path, tmp_path / "page.html")
    assert path.read_bytes() == before
