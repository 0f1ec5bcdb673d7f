"""Durable work: claimed, kept by a heartbeat, watched, cancelled, and gone on with after a crash."""
