# SPDX-License-Identifier: Apache-2.0
"""Rows of a comparison: ours beside a peer's, as a table for people and as JSON for programs."""

import json


class Report:
    """Collects rows. A goal is a bound on the ratio ours / peer, or on ours itself when there is no peer: an upper
    bound, or a lower one if `higher` is better."""

    def __init__(self, title):
        self.title = title
        self.rows = []

    def add(self, name, ours, peer, unit, goal=None, higher=False, spread=None):
        ratio = None if ours is None or not peer else ours / peer
        judged = ours if peer is None else ratio
        met = None if goal is None or judged is None else judged >= goal if higher else judged <= goal
        self.rows.append({"name": name, "ours": ours, "peer": peer, "unit": unit, "ratio": ratio, "goal": goal,
                          "higher_is_better": higher, "met": met, "spread": spread})

    def add_samples(self, name, ours, peer, unit, goal=None, higher=False):
        """Medians of repeated measurements; their spread is the larger (highest - lowest) / median of the two."""
        spread = max((max(values) - min(values)) / median(values) for values in (ours, peer))
        self.add(name, median(ours), median(peer), unit, goal, higher, spread)

    @property
    def met(self):
        return all(row["met"] is not False for row in self.rows)

    def to_json(self):
        return json.dumps(self.rows, indent=2)

    def to_table(self):
        def number(value, digits=2):
            return "-" if value is None else f"{value:.{digits}f}"

        lines = [["", "ours", "peer", "unit", "ratio", "goal", "spread", ""]]
        for row in self.rows:
            mark = {True: "met", False: "MISSED", None: ""}[row["met"]]
            sign = ">=" if row["higher_is_better"] else "<="
            goal = "-" if row["goal"] is None else f"{sign} {row['goal']:g}"
            spread = "-" if row["spread"] is None else f"{row['spread']:.0%}"
            values = [number(row["ours"]), number(row["peer"]), row["unit"], number(row["ratio"])]
            lines.append([row["name"], *values, goal, spread, mark])
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        text = [self.title]
        for line in lines:
            cells = [cell.ljust(width) if column in (0, 3) else cell.rjust(width)
                     for column, (cell, width) in enumerate(zip(line, widths))]
            text.append("  " + "  ".join(cells).rstrip())
        return "\n".join(text)


def median(values):
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
