"""What persists between runs of the relay: admins, services and the digests of their tokens."""
