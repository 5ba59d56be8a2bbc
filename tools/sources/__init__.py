"""Where a target's lines and events come from: Loki, Kubernetes, Docker, the journal. One small interface for all."""
