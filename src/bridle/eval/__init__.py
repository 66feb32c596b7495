"""Frozen features and codes, judged: probes, few-shot, retrieval, tags, nested choices, metrics, statistics of codes."""
