"""Acceptance point 5 of issue 9: whoever tries tokens gets nowhere, and nobody else notices."""
