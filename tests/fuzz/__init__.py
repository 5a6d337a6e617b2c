"""Answers of ESET Connect, mutated by the million, against everything that reads them. `python -m tests.fuzz`."""
