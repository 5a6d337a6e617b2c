"""Outages played with the real parts: what fails, which alert fires when, what the relay says, and how it heals."""
