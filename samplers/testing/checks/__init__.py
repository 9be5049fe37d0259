"""The checks of the kit: those for every family, for tokens, and for real numbers. samplers.testing.kit finds them."""
