"""How and where runs are executed."""
