"""The buffers, their fields, batches and writers. Uses ``_segment`` and ``_arguments``."""
