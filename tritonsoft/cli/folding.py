"""Tables on narrow terminals: columns that do not fit go below, and no number is cut."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table

LONGEST_WORD = 12  # longer ones of a text may be broken
SPACE = 2  # that the tables of `common.table_of` leave beside each column


def folded(table: Table, console: Console, num_keys: int = 1) -> Iterator[Table]:
    """A table in parts that fit a console; the table itself where it fits.

    Numbers, the columns that are justified to the right, stay whole. Texts are wrapped before a column goes below.

    Args:
        table: may be changed.
        console: where it is going to be printed.
        num_keys: how many columns, from the left, say what a row is of: each part has them.
    """
    for column in table.columns:
        column.overflow = "fold"
    if sum(_widest(column, console) for column in table.columns) <= console.width:
        yield table
        return
    keys, others = table.columns[:num_keys], table.columns[num_keys:]
    for column in keys:
        if column.no_wrap and _widest(column, console) > console.width // 2:
            column.no_wrap, column.max_width = False, console.width // 2 - SPACE
    parts: list[list[Column]] = [[]]
    for column in others:
        needed = sum(_narrowest(each, console) for each in (*keys, *parts[-1], column))
        if parts[-1] and needed > console.width:
            parts.append([])
        parts[-1].append(column)
    for column in others:
        if column.justify == "right":
            column.width = _narrowest(column, console) - SPACE
    for number, part in enumerate(parts):
        yield _part(table, [*keys, *part], is_first=number == 0, is_last=number == len(parts) - 1)


def _texts(column: Column, console: Console) -> list[Measurement]:
    texts = (column.header, column.footer, *column.cells)
    return [Measurement.get(console, console.options, text) for text in texts]


def _widest(column: Column, console: Console) -> int:
    """What a column takes where nothing in it is wrapped, with the space beside it."""
    return SPACE + max(text.maximum for text in _texts(column, console))


def _narrowest(column: Column, console: Console) -> int:
    """The least that it needs: its longest number, or word; with the space beside it."""
    heading, *texts = _texts(column, console)
    if column.justify == "right":
        return SPACE + max(heading.minimum, *(text.maximum for text in texts))
    widest = max(text.maximum if column.no_wrap else min(text.minimum, LONGEST_WORD) for text in (heading, *texts))
    return SPACE + (widest if column.max_width is None else min(widest, column.max_width))


def _part(table: Table, columns: Sequence[Column], is_first: bool, is_last: bool) -> Table:
    part = Table(
        title=table.title if is_first else None,
        caption=table.caption if is_last else None,
        title_style=table.title_style,
        show_footer=table.show_footer,
        box=table.box,
        pad_edge=table.pad_edge,
        padding=table.padding,
    )
    for column in columns:
        part.add_column(
            column.header,
            column.footer,
            justify=column.justify,
            overflow=column.overflow,
            no_wrap=column.no_wrap,
            width=column.width,
            max_width=column.max_width,
        )
    for row, cells in zip(table.rows, zip(*(column.cells for column in columns), strict=True), strict=True):
        part.add_row(*cells, style=row.style, end_section=row.end_section)
    return part
