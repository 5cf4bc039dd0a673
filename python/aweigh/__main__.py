"""``python -m aweigh`` is the program ``aweigh``."""

from aweigh import main

main()
