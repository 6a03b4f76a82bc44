"""Reports: blocks of plain data as one HTML page that loads nothing, plots, pictures and tables as files."""

from gendistill.reporting.bars import Estimate, Group, dumbbell, shares, worst
from gendistill.reporting.colours import colour_numbers
from gendistill.reporting.csv import write_csv
from gendistill.reporting.page import (
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
    PictureComparison,
    PictureRow,
    Row,
    Section,
    Table,
    Text,
    Warning,
    render,
    write_page,
)
from gendistill.reporting.pictures import write_png
from gendistill.reporting.plot import Plot
from gendistill.reporting.plots import Point, Series, guidance_curve, lines, on_front, pareto, quality_against_steps

__all__ = [
    "Block",
    "Card",
    "Cards",
    "Cell",
    "Column",
    "Details",
    "Estimate",
    "Figure",
    "Galleries",
    "Gallery",
    "Group",
    "Page",
    "PictureComparison",
    "PictureRow",
    "Plot",
    "Point",
    "Row",
    "Section",
    "Series",
    "Table",
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
