"""Shipping events to a Seq server."""
