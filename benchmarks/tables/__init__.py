"""Tables of the documents, from the benchmarks' JSON: `python -m benchmarks.tables` fills them in."""
