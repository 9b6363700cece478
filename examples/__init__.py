"""Classifiers of files, images, texts and tables as OOD detectors; run them as ``python -m examples.NAME``."""
