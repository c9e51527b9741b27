"""The processes that explore: started, watched, restarted. Uses ``buffer`` and ``_segment``."""
