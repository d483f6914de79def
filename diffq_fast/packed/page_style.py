"""The style and the script of the page that `report_page` makes: both colour schemes, and a table that sorts."""

from __future__ import annotations

from ..reference.sizes import MAX_WIDTH


def _ramp(first: int, last: int) -> str:
    """A colour for each width, as CSS variables, of a lightness from `first` to `last`; small widths far apart."""
    steps = [(width, ((width - 1) / (MAX_WIDTH - 1)) ** 0.65) for width in range(1, MAX_WIDTH + 1)]
    colours = [(width, 150 + 150 * part, first + (last - first) * part) for width, part in steps]
    return " ".join(f"--w{width}: hsl({hue:.0f} 52% {light:.0f}%);" for width, hue, light in colours)


LIGHT = (
    f"--page: #fbfbfa; --card: #ffffff; --text: #1c2024; --quiet: #5d666f; --line: #e2e4e7; --bar: #2f6f9f;"
    f" {_ramp(84, 26)} --p0: #2f6f9f; --p1: #d08a2e; --p2: #4d9a6a;"
    " --p3: #8a63b8; --p4: #b0557a; --p5: #7d7a3c; --p6: #8b949e;"
)
DARK = (
    f"--page: #15181c; --card: #1d2126; --text: #e6e8ea; --quiet: #a0a8b1; --line: #343a41; --bar: #5fa3d3;"
    f" {_ramp(26, 82)} --p0: #5fa3d3; --p1: #dba24f; --p2: #6cba89;"
    " --p3: #ad8bd8; --p4: #d07c9e; --p5: #b3af5e; --p6: #7d868f;"
)
STYLE = (
    f":root {{ color-scheme: light dark; {LIGHT} }}\n"
    f"@media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}\n"
    + """
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 28px 24px 48px; max-width: 1400px; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 22px; margin: 0 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 0 0 12px; }
p { margin: 0; color: var(--quiet); }
h2 + p { margin: -8px 0 12px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 18px 20px; margin-top: 18px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-top: 18px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px; }
.tile b { display: block; font-size: 21px; font-weight: 600; }
.tile span { color: var(--quiet); font-size: 13px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 18px;
  margin-top: 18px; }
.pair section { margin: 0; }
.stack { display: flex; height: 22px; border-radius: 5px; overflow: hidden; background: var(--line); }
.stack i { display: block; height: 100%; }
.stack + .bars { margin-top: 12px; }
.bars { width: 100%; border-collapse: collapse; }
.bars td { padding: 3px 0; }
.bars td + td { padding-left: 12px; }
.bars .track { width: 46%; }
.dot { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 7px; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.columns { display: flex; align-items: flex-end; gap: 4px; height: 190px; }
.column { flex: 1 1 0; min-width: 0; max-width: 56px; display: flex; flex-direction: column; justify-content: flex-end;
  height: 100%; text-align: center; font-size: 11px; color: var(--quiet); font-variant-numeric: tabular-nums; }
.column i { display: block; border-radius: 4px 4px 0 0; }
.column i:not([style="height: 0.0%"]) { min-height: 2px; }
.column b { color: var(--text); font-weight: 500; border-top: 1px solid var(--line); padding-top: 4px; }
.wide { overflow-x: auto; }
.weights { width: 100%; border-collapse: collapse; font-size: 14px; }
.weights th { text-align: left; padding: 0; border-bottom: 2px solid var(--line); vertical-align: bottom; }
.weights th button { all: unset; cursor: pointer; padding: 6px 8px; font-weight: 600; width: 100%;
  box-sizing: border-box; }
.weights th.number button { text-align: right; }
.weights th button:focus-visible { outline: 2px solid var(--bar); border-radius: 4px; }
.weights th button::after { content: "\\2195"; color: var(--quiet); opacity: 0.45; margin-left: 4px; }
.weights th[aria-sort=ascending] button::after { content: "\\2191"; opacity: 1; }
.weights th[aria-sort=descending] button::after { content: "\\2193"; opacity: 1; }
.weights td { padding: 6px 8px; border-bottom: 1px solid var(--line); }
.weights tbody tr:hover { background: color-mix(in srgb, var(--bar) 9%, transparent); }
.weights td { white-space: nowrap; }
.weights .name { min-width: 170px; max-width: 380px; white-space: normal; overflow-wrap: anywhere;
  font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 13px; }
.shares { min-width: 130px; }
.shares .stack { height: 13px; border-radius: 3px; }
.shares svg { display: block; width: 100%; height: 9px; margin-top: 3px; border-radius: 3px; }
.key { display: flex; flex-wrap: wrap; gap: 4px 14px; font-size: 12px; color: var(--quiet); margin-bottom: 10px; }
footer { color: var(--quiet); font-size: 13px; margin-top: 18px; }
"""
    + "\n".join(
        f".w{width} {{ background: var(--w{width}); fill: var(--w{width}); }}" for width in range(1, MAX_WIDTH + 1)
    )
    + "\n"
    + "\n".join(f".p{index} {{ background: var(--p{index}); }}" for index in range(7))
    + "\n.bar { background: var(--bar); }\n"
)

# Without "<" and "&", so that the page is well-formed XML too.
SCRIPT = """
"use strict";
document.querySelectorAll("table.weights").forEach(function (table) {
  const body = table.tBodies[0];
  const heads = Array.from(table.tHead.rows[0].cells);
  function key(row, column) {
    const value = row.cells[column].dataset.value;
    return heads[column].classList.contains("number") ? Number(value) : value;
  }
  heads.forEach(function (head, column) {
    head.querySelector("button").addEventListener("click", function () {
      const numeric = head.classList.contains("number");
      const before = head.getAttribute("aria-sort");
      const falling = before ? before === "ascending" : numeric;
      heads.forEach(function (each) { each.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const rows = Array.from(body.rows);
      rows.sort(function (one, two) {
        const a = key(one, column), b = key(two, column);
        const order = numeric ? a - b : a.localeCompare(b, "en", { numeric: true });
        return falling ? -order : order;
      });
      rows.forEach(function (row) { body.appendChild(row); });
    });
  });
});
"""
