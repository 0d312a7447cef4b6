"""The field of `speed.py`: which models are raced, and who runs on them."""
