"""Reports: blocks of plain data as one self-contained HTML page, with plots that need no script."""
