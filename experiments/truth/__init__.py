"""What the twin says, held against what is known."""
