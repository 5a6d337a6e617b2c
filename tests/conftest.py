"""Fixtures that every test may ask for."""

from tests.support.kafka import kafka, three_brokers

__all__ = ["kafka", "three_brokers"]
