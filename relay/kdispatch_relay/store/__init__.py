"""What outlives the relay's process: admins, services and the digests of their tokens."""
