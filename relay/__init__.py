"""Incident Relay: carries security incidents out of ESET Connect, every version once, and loses none."""

__version__ = "0.1.0"
