"""The command ``mpbuffer``, and what it reads in segments. Uses ``buffer`` and ``weights``."""
