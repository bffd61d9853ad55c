"""The twin's neural modules: their training and what they are worth."""
