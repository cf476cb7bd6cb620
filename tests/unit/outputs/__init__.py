"""Units of launcher/outputs."""
