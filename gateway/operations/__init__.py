"""Settings, errors, metrics, logging, auth, doctor. Used from anywhere; uses `domain` only."""
