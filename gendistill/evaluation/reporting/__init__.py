"""Reports: blocks of plain data as one HTML page that loads nothing, plots, pictures and tables as files."""

from gendistill.evaluation.reporting.bars import Group, PlottedValue, dumbbell, shares, worst
from gendistill.evaluation.reporting.colours import colour_numbers
from gendistill.evaluation.reporting.csv import write_csv
from gendistill.evaluation.reporting.image_files import write_png
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
    Page,
    PageSection,
    PictureComparison,
    PictureRow,
    Table,
    TableRow,
    Text,
    Warning,
    render,
    write_page,
)
from gendistill.evaluation.reporting.plot import Plot
from gendistill.evaluation.reporting.plots import Point, Series, guidance_curve, lines, on_front, pareto, quality_against_steps

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
    "Warning",
    "colour_numbers",
    "dumbbell",
    "guidance_curve",
    "lines",
    "on_front",
    "pareto",
    "quality_against_steps",
    "render",
    "shares",
    "worst",
    "write_csv",
    "write_page",
    "write_png",
]
