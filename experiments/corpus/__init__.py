"""Text to pre-train on (III.A): fetched from package registries, cleaned, cut, with documents held
out."""
