"""Throughput, accuracy and memory against peers; ``python -m bench`` or ``gpukoop bench``."""
