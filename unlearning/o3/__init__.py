"""O3: continual unlearning with orthogonal LoRAs, each behind a gate of its own request."""
