"""Writes the tables and figures of the pages from benchmarks/results.

    python benchmarks/tables.py

A table stands in README.md or in docs/ between `<!-- table: NAME -->` and `<!-- end: NAME -->`. Its
rows, its headings and all its words are the page's own. A row is of the chapter that it links to;
after a comma may follow how it was drawn, as in `[ddpm.py](ddpm.py), guided`. Of each row this
tool writes the cells whose headings it knows (cells.py), and no others. So a table gets a column
by its heading and a row by its link. Runs that are missing, and those whose script has changed
since, are named in the end.
"""

import re
import sys

import figures
import runs
from cells import TABLES

PAGES = [runs.ROOT / "README.md", *sorted((runs.ROOT / "docs").glob("*.md"))]
TABLE = re.compile(r"(<!-- table: ([\w ]+) -->\n)(.*?)(<!-- end: \2 -->)", re.S)
LINK = re.compile(r"\[\W*(\w+)\.py\W*\]\([^)]*\)(, [^|]*)?")
WAYS = ["guided", "Algorithm 2", "temperature 0.7", "one draw of noise", "8 importance samples"]
NO_MODELS = ["validation digits", "noise"]


def split(line):
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]


def row_of(line):
    """The name of a line's row in the results; None if it is of none of the models here."""
    link = LINK.search(line)
    if not link:
        first = split(line)[0].strip("*")
        return first if first in NO_MODELS else None
    way = (link[2] or "").strip(", ")
    if way and way not in WAYS:
        sys.exit(f"`{way}` is no way to draw: after {link[1]}.py and a comma, write one of {WAYS}")
    return f"{link[1]}, {way}" if way else link[1]


def table(match):
    """A table with its cells written anew."""
    begin, name, text, end = match.groups()
    if name not in TABLES:
        sys.exit(f"there is no table `{name}`: there are {', '.join(TABLES)}")
    first, line, *lines = text.rstrip("\n").split("\n")
    headings = [heading.rstrip("¹²³") for heading in split(first)]  # without footnotes
    rows = [first, line]
    for line in lines:
        row, cells = row_of(line), split(line)
        known = TABLES[name](row) if row else {}
        for i, heading in enumerate(headings):
            cells[i] = known.get(heading, cells[i])
        rows.append(f"| {' | '.join(cells)} |")
    return begin + "\n".join(rows) + "\n" + end


def filled(text):
    """The text of a page with its tables as the results have them."""
    return TABLE.sub(table, text)


def stale():
    """A line for each run that is missing or whose script has changed since it was trained."""
    for run in runs.FLAGS:
        if not runs.read(run):
            yield f"{run}: not trained yet"
        elif runs.changed(run):
            yield f"{run}: {' and '.join(runs.changed(run))} changed since it was trained"


def main():
    figures.main()
    for page in PAGES:
        text = filled(page.read_text(encoding="utf-8"))
        page.write_text(text, encoding="utf-8")
    lines = list(stale())
    print("\n".join(lines))
    if lines:
        print("`python benchmarks/train.py` trains these")


if __name__ == "__main__":
    main()
