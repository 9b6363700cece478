"""Classifiers of text and of tables as out-of-distribution detectors; run them as ``python -m examples.NAME``."""
