"""The housekeeper, and what it tells of itself."""
