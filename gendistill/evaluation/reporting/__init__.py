"""Reports: blocks of plain data as one HTML page that loads nothing, plots, pictures and tables as files."""

from gendistill.evaluation.reporting.bars import Group, PlottedValue, dumbbell, shares
from gendistill.evaluation.reporting.colours import colour_numbers
from gendistill.evaluation.reporting.csv import write_csv
from gendistill.evaluation.reporting.curves import Point, Series, guidance_curve, on_front, pareto, quality_against_steps
from gendistill.evaluation.reporting.page import (
    Block,
    Card,
    Cards,
    Cell,
    Column,
    Details,
    Figure,
    Galleries,
    Gallery,
    Notice,
    Page,
    PageSection,
    PictureComparison,
    PictureRow,
    Table,
    TableRow,
    Text,
    render,
    write_page,
)
from gendistill.evaluation.reporting.plot import Plot

__all__ = [
    "Block",
    "Card",
    "Cards",
    "Cell",
    "Column",
    "Details",
    "Figure",
    "Galleries",
    "Gallery",
    "Group",
    "Notice",
    "Page",
    "PageSection",
    "PictureComparison",
    "PictureRow",
    "Plot",
    "PlottedValue",
    "Point",
    "Series",
    "Table",
    "TableRow",
    "Text",
    "colour_numbers",
    "dumbbell",
    "guidance_curve",
    "on_front",
    "pareto",
    "quality_against_steps",
    "render",
    "shares",
    "write_csv",
    "write_page",
]
