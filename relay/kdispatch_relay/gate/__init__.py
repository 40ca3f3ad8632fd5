"""The input and output around the switch: upgrades, access, the sessions' links."""
