"""What a run tells about itself: events, metric names and the Prometheus exporter."""
