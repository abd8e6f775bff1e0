"""What sampling costs: images per second beside diffusers' pipelines, and the price of reused features."""
