"""A run as an encoder for benchmarks of others: mteb and X-ARES (``docs/adapters.md``)."""
