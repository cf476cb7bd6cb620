"""What a checkpoint is: its manifest, how people refer to it, and how each library writes it. Never sees a network."""
