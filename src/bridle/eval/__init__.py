"""Frozen features and codes, judged: linear probe, nearest neighbours, nested choice of both, statistics of codes."""
