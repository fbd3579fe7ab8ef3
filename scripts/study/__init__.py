"""A study of codes for K and V: what each idea would gain at equal bytes. `python scripts/study --help`."""
