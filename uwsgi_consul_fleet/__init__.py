"""Everything of uwsgi-consul-fleet that runs as Python; see docs/architecture.md."""
