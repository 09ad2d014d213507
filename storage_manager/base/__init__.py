"""What knows nothing of stores."""
