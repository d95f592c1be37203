"""An HTML page of tables and pictures in one file, which loads no other."""

import base64
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from string import Template
from typing import Any, NamedTuple

from etils import epath

from ..evaluation.tables import markdown_table

# A right-aligned cell: a number, perhaps followed by "± 0.1" or "(spread 0.2)".
NUMBER = re.compile(r"(nan|-?inf|-?[\d.,]+(e[-+]?\d+)?)( .*\d\)?)?")


class Picture(NamedTuple):
    """A section of a page: a PNG file under its heading and caption.

    Attributes:
      heading: of the section.
      caption: what the rows are, what the columns are, and what to notice.
      path: of the PNG file.
    """

    heading: str
    caption: str
    path: epath.Path


class Table(NamedTuple):
    """A table, which can be sorted on the page.

    Attributes:
      caption: above the table; '' for none.
      header: a title for each column.
      rows: a text for each cell.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The table and its caption in Markdown.

        >>> print(Table("Costs", ["model", "updates"], [["teacher", "2,000"]]).markdown())
        Costs
        <BLANKLINE>
        | model | updates |
        | --- | --- |
        | teacher | 2,000 |
        """
        return f"{self.caption}\n\n{markdown_table([self.header, *self.rows])}"


def render_page(
    title: str,
    environment: Mapping[str, Any],
    tables: Sequence[Table],
    pictures: Sequence[Picture],
    configs: Mapping[str, str],
    *,
    summary: str = "",
    measurements: Sequence[Table] = (),
) -> str:
    """Write a page, with its pictures inside: what it shows first, how it was made last.

    Args:
      title: of the page.
      environment: what made the page, from `environment.describe_environment`.
      tables: shown after the first picture.
      pictures: in order.
      configs: JSON texts to unfold at the end of the page, by name.
      summary: the result in a sentence or two, under the title.
      measurements: tables with all numbers, shown after the pictures.

    Returns:
      The text of the HTML file.
    """
    all_numbers = "<h2>All measurements</h2>" * bool(measurements) + "\n".join(map(_table, measurements))
    return PAGE.substitute(
        title=html.escape(title),
        summary=f'<p class="summary">{html.escape(summary)}</p>' * bool(summary),
        first="".join(map(_section, pictures[:1])),
        tables="\n".join(map(_table, tables)),
        sections="\n".join(map(_section, pictures[1:])),
        measurements=all_numbers,
        configs="".join(_details(name, config) for name, config in configs.items()),
        made=_made(environment),
    )


def _made(environment: Mapping[str, Any]) -> str:
    """When, with which versions and devices, and by which command a page was made."""
    versions = environment["versions"]
    devices = environment["devices"]
    time = environment["time"].replace("T", " ").replace("+00:00", " UTC")
    package = f"diffusion_distillation {versions['diffusion_distillation']}"
    if environment["commit"]:
        package += f" ({environment['commit']})"
    libraries = f"JAX {versions['jax']} and Python {versions['python']}"
    machine = f"{devices['count']} {devices['kind']} device{'' if devices['count'] == 1 else 's'}"
    text = html.escape(f"Made on {time} with {package}, {libraries}, on {machine}, by")
    return f"{text} <code>{html.escape(environment['command'])}</code>"


def _table(table: Table) -> str:
    columns = [[row[number] for row in table.rows] for number in range(len(table.header))]
    classes = [' class="text"' * any(cell and not NUMBER.fullmatch(cell) for cell in column) for column in columns]
    header = _row("th", classes, [f"<button>{html.escape(title)}</button>" for title in table.header])
    rows = "\n".join(_row("td", classes, map(html.escape, row)) for row in table.rows)
    caption = f"<caption>{html.escape(table.caption)}</caption>" if table.caption else ""
    return f'<div class="wide"><table>{caption}<thead>{header}</thead><tbody>{rows}</tbody></table></div>'


def _row(tag: str, classes: Iterable[str], contents: Iterable[str]) -> str:
    cells = [f"<{tag}{attribute}>{content}</{tag}>" for attribute, content in zip(classes, contents, strict=True)]
    return f"<tr>{''.join(cells)}</tr>"


def _section(picture: Picture) -> str:
    heading = html.escape(picture.heading)
    data = base64.b64encode(picture.path.read_bytes()).decode()
    image = f'<img alt="{heading}" src="data:image/png;base64,{data}">'
    return (
        f"<section><h2>{heading}</h2><p>{html.escape(picture.caption)}</p>"
        f'<button class="picture">{image}</button></section>'
    )


def _details(name: str, config: str) -> str:
    return f"<details><summary>{html.escape(name)}</summary><pre>{html.escape(config)}</pre></details>"


PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
  :root { color-scheme: light dark; --text: #22262b; --back: #fff; --line: #e5e7ea; --muted: #6b7280; --mark: #d1495b;
          --shade: #0002; }
  @media (prefers-color-scheme: dark) {
    :root { --text: #e6e8eb; --back: #15181c; --line: #31363d; --muted: #9aa1ab; --mark: #f0788a;
            --shade: #fff4; }
  }
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
         color: var(--text); background: var(--back); }
  h1 { line-height: 1.2; }
  h2 { margin-top: 2.5rem; }
  p, summary { color: var(--muted); max-width: 44rem; }
  .summary { font-size: 1.15rem; color: var(--text); }
  .made { font-size: .85rem; margin-top: 2rem; max-width: none; overflow-wrap: anywhere; }
  button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; }
  .picture { display: block; cursor: zoom-in; background: #fff; border-radius: .5rem; padding: .5rem; max-width: 100%; }
  .picture img { display: block; max-width: 100%; max-height: 56rem; margin: auto; }
  dialog { max-width: 96vw; max-height: 96vh; padding: .5rem; border: 0; background: #fff; overflow: auto;
           cursor: zoom-out; }
  dialog img { display: block; min-width: min(92vw, 60rem); image-rendering: pixelated; }
  dialog::backdrop { background: #000c; }
  .wide { position: relative; left: 50%; transform: translateX(-50%); overflow-x: auto;
          width: max-content; min-width: 100%; max-width: calc(100vw - 2rem);
          background: linear-gradient(to left, var(--back) 50%, transparent) right / 4rem 100% no-repeat local,
                      linear-gradient(to left, transparent 2px, var(--shade) 2px, transparent) right / 2rem 100%
                      no-repeat scroll; }
  .wide { margin-top: 1.5rem; }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; margin-bottom: 1rem; }
  caption { text-align: left; font-weight: 600; }
  th, td { padding: .25rem .75rem .25rem 0; text-align: right; border-bottom: 1px solid var(--line); }
  th.text, td.text { text-align: left; }
  th { vertical-align: bottom; white-space: normal; width: 1px; min-width: 3rem; }
  th button { font-weight: 600; text-align: inherit; }
  th[aria-sort] button { color: var(--mark); }
  th[aria-sort=ascending] button::after { content: " ↑"; }
  th[aria-sort=descending] button::after { content: " ↓"; }
  pre { font-size: 12px; overflow: auto; }
  @media print {
    :root { color-scheme: light; --text: #22262b; --back: #fff; --line: #e5e7ea; --muted: #6b7280; }
    body { margin: 0; max-width: none; }
    section, table, tr { break-inside: avoid; }
    h2, section p { break-after: avoid; }
    .picture img { max-height: 16cm; }
    .wide { background: none; position: static; transform: none; width: auto; min-width: 0;
            max-width: none; overflow: visible; }
    table { font-size: 9px; white-space: normal; }
    th, td { padding-right: .4rem; }
    pre { white-space: pre-wrap; overflow: visible; }
  }
</style>
<h1>$title</h1>
$summary
$first
$tables
$sections
$measurements
$configs
<p class="made">$made</p>
<dialog><img alt=""></dialog>
<script>
  addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details")) part.open = true; });
  const dialog = document.querySelector("dialog");
  for (const picture of document.querySelectorAll(".picture"))
    picture.onclick = () => { dialog.firstChild.src = picture.firstChild.src; dialog.showModal(); };
  dialog.onclick = () => dialog.close();
  for (const button of document.querySelectorAll("th button"))
    button.onclick = () => {
      const head = button.parentNode, body = head.closest("table").tBodies[0], column = head.cellIndex;
      const down = head.ariaSort === "ascending";
      for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
      head.ariaSort = down ? "descending" : "ascending";
      const key = row => row.cells[column].textContent, number = row => parseFloat(key(row).replaceAll(",", ""));
      const order = (a, b) => isNaN(number(a) + number(b)) ? key(a).localeCompare(key(b)) : number(a) - number(b);
      body.append(...[...body.rows].sort((a, b) => down ? order(b, a) : order(a, b)));
    };
</script>
</html>
""")
