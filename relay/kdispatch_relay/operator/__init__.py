"""Commands for the operator of the relay on this machine."""
