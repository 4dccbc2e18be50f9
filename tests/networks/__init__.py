"""Primary networks of the tables in `tests/cases.py`: small versions of what people train, written for these tests."""
