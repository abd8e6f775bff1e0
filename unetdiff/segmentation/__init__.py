"""Masks: objectives, figures, tiles and uncertainty. What is here receives a callable and never imports models."""
