"""The hunt: random schedules of changes, faults and crashes against the whole relay in one process, looking for losses.

`python -m tests.hunt --schedules 10000 --seed 1 --workers 2`; a schedule that fails is cut down to a short script.
"""
