"""Moving bytes: one contract over every place that can hold them. Nothing here knows what a checkpoint is."""
