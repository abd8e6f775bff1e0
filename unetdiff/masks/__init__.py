"""The work of `sample/masks.py`: images found and read, masks, objects and figures written."""
