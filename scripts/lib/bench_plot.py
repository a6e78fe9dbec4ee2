"""The figures as a picture: a row for each, a dot for each peer, at how many times better ours is (SVG 1.1)."""

import math
import shutil
import subprocess
from xml.sax.saxutils import escape

from bench_monitors import OURS
from report import note

LABEL_WIDTH = 330
PLOT_WIDTH = 520
ROW_HEIGHT = 24
TOP = 64
BOTTOM = 56
# Told apart with any colour vision (Okabe and Ito), and by their shapes.
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]
SHAPES = ["circle", "square", "diamond"]


def draw(result):
    """The SVG's text; empty when there is nothing to compare."""
    rows = [row for row in result["figures"] if any(value > 0 for value in row["better_than"].values())]
    names = [name for name in result["conditions"]["monitors"] if any(name in row["better_than"] for row in rows)]
    if not rows:
        return ""
    ratios = [value for row in rows for value in row["better_than"].values() if value > 0]
    low, high = _limits(ratios)

    def x(ratio):
        share = (math.log10(ratio) - math.log10(low)) / (math.log10(high) - math.log10(low))
        return LABEL_WIDTH + PLOT_WIDTH * share

    bottom = TOP + ROW_HEIGHT * len(rows)
    width, height = LABEL_WIDTH + PLOT_WIDTH + 40, bottom + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12" fill="#222">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        _text(12, 22, f"How many times better {OURS} is", size=15, weight="bold"),
    ]
    parts += _legend(names)
    for tick in _ticks(low, high):
        at = x(tick)
        colour = "#666" if tick == 1 else "#ddd"
        parts.append(f'<line x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{bottom}" stroke="{colour}"/>')
        parts.append(_text(at, bottom + 18, f"{tick:g}×", anchor="middle"))
    parts.append(_text(x(1) - 8, bottom + 38, "← peer is better", anchor="end"))
    parts.append(_text(x(1) + 8, bottom + 38, f"{OURS} is better →"))
    for index, row in enumerate(rows):
        middle = TOP + ROW_HEIGHT * index + ROW_HEIGHT / 2
        if index % 2 == 0:
            parts.insert(2, f'<rect y="{middle - ROW_HEIGHT / 2}" width="{width}" height="{ROW_HEIGHT}" fill="#f7f7f7"/>')
        parts.append(_text(LABEL_WIDTH - 12, middle + 4, row["title"].removeprefix("- "), anchor="end"))
        for name, ratio in row["better_than"].items():
            if ratio > 0:
                parts.append(_dot(names.index(name), x(ratio), middle, f"{name}: {ratio:.2f}×"))
    parts.append("</svg>\n")
    return "\n".join(parts)


def write(folder, result):
    """Writes `figures.svg`, and `figures.png` where a converter is installed."""
    text = draw(result)
    if not text:
        return
    path = folder / "figures.svg"
    path.write_text(text)
    converter = shutil.which("rsvg-convert")
    if converter:
        subprocess.run([converter, "-z", "2", path, "-o", folder / "figures.png"], check=False)
    else:
        note("no PNG: rsvg-convert is not installed (package librsvg2-bin)")


def _limits(ratios):
    """Whole powers of ten, or 2 and 5 times them, around all ratios and 1."""
    steps = [base * 10.0**power for power in range(-6, 7) for base in (1, 2, 5)]
    low, high = min(*ratios, 0.8), max(*ratios, 1.25)
    return max(step for step in steps if step <= low), min(step for step in steps if step >= high)


def _ticks(low, high):
    wide = high / low > 1000
    bases = (1,) if wide else (1, 2, 5)
    ticks = [base * 10.0**power for power in range(-6, 7) for base in bases]
    return [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]


def _legend(names):
    parts, at = [], LABEL_WIDTH
    for index, name in enumerate(names):
        parts.append(_dot(index, at, 44, name))
        parts.append(_text(at + 12, 48, name))
        at += 32 + 7 * len(name)
    return parts


def _dot(index, x, y, title):
    colour, shape = COLOURS[index % len(COLOURS)], SHAPES[index % len(SHAPES)]
    style = f'fill="{colour}" fill-opacity="0.85"><title>{escape(title)}</title>'
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" {style}</circle>'
    if shape == "square":
        return f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9" {style}</rect>'
    points = f"{x:.1f},{y - 6:.1f} {x + 6:.1f},{y:.1f} {x:.1f},{y + 6:.1f} {x - 6:.1f},{y:.1f}"
    return f'<polygon points="{points}" {style}</polygon>'


def _text(x, y, text, anchor="start", size=12, weight="normal"):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}">{escape(text)}</text>'
