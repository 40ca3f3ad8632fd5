"""What an operator asks of the relay on its machine."""
