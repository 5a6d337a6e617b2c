"""ESET Connect's Incident Management API as the relay uses it: wire format, login, one client a source, rate budget.

Not here: which pages to ask for (`relay.poller`) and what an incident's version is (`relay.incidents`).
"""
