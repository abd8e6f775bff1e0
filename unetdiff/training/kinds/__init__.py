"""The kinds of segmentation run, a file each; `unetdiff.training.segment` has their table."""
