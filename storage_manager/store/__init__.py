"""One storage directory: reading, locking, committing."""
