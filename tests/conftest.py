"""Fixtures that every test may ask for."""

from tests.support.browser import chromium
from tests.support.kafka import kafka, three_brokers

__all__ = ["chromium", "kafka", "three_brokers"]
