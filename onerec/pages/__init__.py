"""Self-contained HTML pages: blocks of tables, charts, lines and cards; no script, no font, small inline SVG charts.

    html_page("Title", "note", [*charts("Heading", [{"heading": "lengths", "svg": histogram(bounds, counts)}])])

Charts and pages take their colours from the variables of page.css.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

Block = dict[str, Any]

_WIDTH = 420
_HEIGHT, _LEFT, _BOTTOM = 210, 44, 26
_COLOURS = 5


def html_page(title: str, note: str, blocks: Sequence[Block]) -> str:
    """One HTML page. Headings with an id are linked to at its top."""
    from jinja2 import Environment, FileSystemLoader

    folder = Path(__file__).parent
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, trim_blocks=True)
    nav = [block for block in blocks if block["kind"] == "heading" and block["id"]]
    style = (folder / "page.css").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(title=title, note=note, style=style, nav=nav, blocks=blocks)


def heading(text: str, id: str = "", note: str = "", level: int = 2) -> Block:
    return {"kind": "heading", "text": text, "id": id, "note": note, "level": level}


def folded_lines(text: str, found: Sequence[str]) -> list[Block]:
    """Lines that a click on ``text`` shows; nothing where there are none."""
    return [{"kind": "folded", "text": text, "lines": found}] if found else []


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]], **more: Any) -> Block:
    """A table of texts; a cell may be ``{"text", "small", "best"}``. More: ``id``, and ``classes`` of the rows."""
    return {"kind": "table", "headings": headings, "rows": rows, **more}


def folded(text: str, headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> Block:
    """A table that a click on ``text`` shows."""
    return {"kind": "folded", "text": text, "headings": headings, "rows": rows}


def lines(text: str, found: Sequence[str]) -> list[Block]:
    """A heading and a list of lines; nothing where there are none."""
    return [heading(text), {"kind": "lines", "lines": found}] if found else []


def charts(text: str, found: Sequence[dict[str, str]], id: str = "") -> list[Block]:
    """A heading and charts, each ``{"heading", "svg"}``; nothing where there are none."""
    return [heading(text, id), cards(found)] if found else []


def cards(found: Sequence[dict[str, Any]], wide: bool = False, id: str = "") -> Block:
    """Cards side by side: ``heading`` and ``aside``, then what there is of the following.

    ``svg``, ``bars`` (`bars`), ``said`` (triples: ``holds``, ``fails`` or ``open``, a text, a smaller one), ``note``,
    ``rows`` of a table, ``terms``: pairs of a name and a text or a list of ``{"title", "hit"}``.
    """
    return {"kind": "cards", "cards": found, "wide": wide, "id": id}


@dataclasses.dataclass(frozen=True)
class Bar:
    """A bar: its kind (``stage``, ``prior`` or ``baseline``) picks the colour; ``value`` None says "not measured"."""

    label: str
    kind: str
    value: float | None
    interval: Sequence[float] | None = None


def bars(found: Sequence[Bar], line: tuple[str, float] | None = None) -> dict[str, Any]:
    """Horizontal bars over a common axis that begins at zero, for the key ``bars`` of a card.

    Intervals are whiskers; ``line``: what it is and the value of a line across all bars.
    """
    ends = [x for bar in found for x in (bar.value, *(bar.interval or ())) if x is not None]
    top = max([*ends, line[1] if line else 0], default=0) or 1

    def place(x: float) -> str:
        return f"{100 * min(max(x, 0), top) / top:.2f}%"

    rows = []
    for bar in found:
        row: dict[str, Any] = {"label": bar.label, "kind": bar.kind, "text": "not measured"}
        if bar.value is not None:
            row |= {"text": f"{bar.value:.4f}", "width": place(bar.value)}
        if bar.interval is not None:
            low, high = bar.interval
            row |= {"low": place(low), "span": place(high - low), "small": f"{low:.3f} to {high:.3f}"}
        rows.append(row)
    return {"rows": rows, "line": line and {"text": f"{line[0]}: {line[1]:.4f}", "place": place(line[1])}}


def line_chart(
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]], x_label: str = "step", marks: bool = False
) -> str:
    """Lines of (name, [(x, y), …]) over a common axis that begins at zero; series without points are left out.

    ``x_label`` names the horizontal axis; ``marks`` puts a dot on every point. Colours repeat after five lines.
    """
    series = [(name, points) for name, points in series if points]
    everything = [point for _, points in series for point in points]
    if not everything:
        return ""
    x_max = max(x for x, _ in everything) or 1
    y_max = max(y for _, y in everything) or 1

    legend, top = _legend([name for name, _ in series])

    def place(x: float, y: float) -> str:
        return f"{_LEFT + (_WIDTH - _LEFT - 10) * x / x_max:.1f},{top + (_HEIGHT - 10 - _BOTTOM) * (1 - y / y_max):.1f}"

    height = _HEIGHT - 10 + top
    parts = [f'<svg viewBox="0 0 {_WIDTH} {height}" role="img">', *legend]
    for share in (0, 0.5, 1):
        y = place(0, share * y_max).split(",")[1]
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - 10}" y1="{y}" y2="{y}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{float(y) + 4:.1f}" class="label end">{share * y_max:.2f}</text>')
    for i, (_, points) in enumerate(series):
        places = [place(x, y) for x, y in points]
        parts.append(f'<polyline points="{" ".join(places)}" class="line s{i % _COLOURS}"/>')
        for x, y in (p.split(",") for p in places if marks):
            parts.append(f'<circle cx="{x}" cy="{y}" r="3" class="t{i % _COLOURS}"/>')
    parts.append(f'<text x="{_WIDTH - 10}" y="{height - 8}" class="label end">{escape(x_label)} {x_max:,.0f}</text>')
    return "".join([*parts, "</svg>"])


def _legend(names: Sequence[str]) -> tuple[list[str], int]:
    """Names in their lines' colours above the plot, in rows, and where the plot then begins."""
    parts, x, y = [], _LEFT, 16
    for i, name in enumerate(names):
        width = 8 * len(name) + 16
        if x + width > _WIDTH and x > _LEFT:
            x, y = _LEFT, y + 18
        parts.append(f'<text x="{x}" y="{y}" class="label t{i % _COLOURS}">{escape(name)}</text>')
        x += width
    return parts, y + 12


def histogram(bounds: Sequence[float], counts: Sequence[int]) -> str:
    """Vertical bars of ``counts`` between consecutive ``bounds`` (one more than the counts)."""
    top, n = max(counts, default=0) or 1, max(len(counts), 1)
    width = (_WIDTH - _LEFT - 10) / n
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">']
    for i, count in enumerate(counts):
        height = (_HEIGHT - 10 - _BOTTOM) * count / top
        x, y = _LEFT + i * width, _HEIGHT - _BOTTOM - height
        title = f"<title>{bounds[i]:,.0f} to {bounds[i + 1]:,.0f}: {count:,}</title>"
        box = f'x="{x:.1f}" y="{y:.1f}" width="{max(width - 1, 1):.1f}" height="{height:.1f}"'
        parts.append(f'<rect {box} class="stage">{title}</rect>')
    parts.append(f'<text x="{_LEFT - 6}" y="18" class="label end">{top:,}</text>')
    for place, bound in ((0, bounds[0]), (len(bounds) // 2, bounds[len(bounds) // 2]), (n, bounds[-1])):
        x = _LEFT + place * width
        parts.append(
            f'<text x="{x:.1f}" y="{_HEIGHT - 8}" class="label {"end" if place == n else ""}">{bound:,.0f}</text>'
        )
    return "".join([*parts, "</svg>"])
