"""What a run reports about itself: events, metric names and the Prometheus exporter."""
