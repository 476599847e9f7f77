"""`python -m homeostat` is the command line."""

from homeostat.cli import main

main()
