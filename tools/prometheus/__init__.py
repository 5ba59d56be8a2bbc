"""A Prometheus server (Thanos and Mimir speak the same API) as a source of the same numbers that two scrapes give."""
