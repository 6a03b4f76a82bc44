"""`python -m gendistill.cli`."""

from gendistill.cli import main

main()
