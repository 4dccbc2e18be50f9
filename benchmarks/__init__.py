"""Benchmarks: scripts that write JSON, from which the tables in the documents are made."""
