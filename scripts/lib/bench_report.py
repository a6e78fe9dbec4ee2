"""The figures as JSON and as a Markdown table."""

import json
from statistics import median

from bench_monitors import OURS

HOST = "host"


def summary(conditions, figures, samples, missing, names):
    """Everything that is known, in plain types. `samples[key][name]` is a list with one value (or None) per round."""
    rows = []
    for figure in figures:
        taken = samples.get(figure.key, {})
        own = taken.get(OURS, [])
        row = {"key": figure.key, "title": figure.title, "unit": figure.unit, "higher_is_better": figure.higher_is_better}
        row["monitors"] = {name: _spread(taken[name]) for name in names if _present(taken.get(name, []))}
        # How many times better ours is, round by round, so that what slows a whole round down counts for neither.
        row["better_than"] = {
            name: ratio
            for name in names
            if name not in (OURS, HOST) and (ratio := _ratio(own, taken.get(name, []), figure.higher_is_better)) is not None
        }
        if _present(taken.get(HOST, [])):
            row["share_of_host"] = {
                name: share
                for name in names
                if name != HOST and (share := _ratio(taken.get(name, []), taken[HOST], True)) is not None
            }
        row.update(_goal(figure, row))
        row["binding"] = figure.binding
        rows.append(row)
    return {"conditions": conditions, "figures": rows, "missing": missing}


def failures(result):
    """What a run has failed by: the goals that it has to reach and did not."""
    missed = [row for row in result["figures"] if row["binding"] and not row.get("reached", True)]
    return [f"{row['title']}: {number(row['monitors'][OURS]['median'])} {row['unit']}; its goal is {row['goal']}" for row in missed]


def _present(values):
    return [value for value in values if value is not None]


def _spread(values):
    known = _present(values)
    return {"median": median(known), "least": min(known), "most": max(known), "samples": known}


def _ratio(over, under, higher_is_better):
    """The median of round-by-round quotients."""
    if not higher_is_better:
        over, under = under, over
    quotients = [a / b for a, b in zip(over, under) if a is not None and b]
    return median(quotients) if quotients else None


def _goal(figure, row):
    value = row["monitors"].get(OURS, {}).get("median")
    share = row.get("share_of_host", {}).get(OURS)
    if figure.goal_share is not None and share is not None:
        return {"goal": f"{figure.goal_share:.2f} of the host", "reached": share >= figure.goal_share}
    if figure.goal is not None and value is not None:
        reached = value >= figure.goal if figure.higher_is_better else value <= figure.goal
        return {"goal": number(figure.goal) + f" {figure.unit}".rstrip(), "reached": reached}
    return {}


def number(value):
    """Three significant digits, without an exponent."""
    if value == 0:
        return "0"
    magnitude = abs(value)
    if magnitude >= 100:
        return f"{value:.0f}"
    if magnitude >= 10:
        return f"{value:.1f}"
    if magnitude >= 1:
        return f"{value:.2f}"
    return f"{value:.3f}" if magnitude >= 0.01 else f"{value:.2g}" if magnitude >= 1e-4 else f"{value:.6f}"


def markdown(result):
    """The table, what it was taken on, and what is missing from it."""
    names = [name for name in result["conditions"]["monitors"] if any(name in row["monitors"] for row in result["figures"])]
    head = ["figure", "unit", *names, "goal"]
    lines = ["# Figures", "", "| " + " | ".join(head) + " |", "|---|---|" + "---:|" * len(names) + "---|"]
    for row in result["figures"]:
        cells = [row["title"], row["unit"], *(_cell(row, name) for name in names), _goal_cell(row)]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Medians; behind a peer's figure, how many times better {OURS}'s is (the median of the same quotient in each"
        " round). `%` is the share of what the host's own io_uring does with the same file.",
        "",
    ]
    for name, text in result["conditions"].items():
        if isinstance(text, dict):
            lines += [f"- {key}: {value}" for key, value in text.items()]
        else:
            lines.append(f"- {name}: {text}")
    if result["missing"]:
        lines += ["", "Missing:", ""]
        lines += [f"- {entry['monitor']}, {entry['experiment']}: {entry['why']}" for entry in result["missing"]]
    return "\n".join(lines) + "\n"


def _cell(row, name):
    if name not in row["monitors"]:
        return ""
    text = number(row["monitors"][name]["median"])
    remarks = []
    if name in row.get("share_of_host", {}):
        remarks.append(f"{row['share_of_host'][name] * 100:.0f} %")
    if name in row["better_than"]:
        remarks.append(f"{number(row['better_than'][name])}×")
    return f"{text} ({', '.join(remarks)})" if remarks else text


def _goal_cell(row):
    if "goal" not in row:
        return ""
    return f"{row['goal']}: {'reached' if row['reached'] else '**missed**'}"


def write(folder, result):
    """Writes `figures.json` and `figures.md`."""
    (folder / "figures.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "figures.md").write_text(markdown(result))
