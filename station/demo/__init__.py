"""The demo: a sample line with planted defects, a broker, and a run of the real daemon between them."""
