"""Files of transitions, as cpprb writes and reads them. Uses ``_segment``."""
