"""Reports: blocks of plain data as one HTML page that loads nothing, with plots that need no script."""
