"""Consoles: what is shown stands as it is. Paths, sentences and deaths may have brackets, which are nobody's marks."""

from rich.console import Console

output = Console(highlight=False, markup=False)
errors = Console(stderr=True, markup=False)
