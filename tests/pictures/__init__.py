"""The pictures of chat messages in the documentation, and the events that they show: `python -m tests.pictures`."""
