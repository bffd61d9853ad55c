"""Studies over many runs or arms."""
