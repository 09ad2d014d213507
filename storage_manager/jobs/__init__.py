"""What is decided about a store, and carried out."""
