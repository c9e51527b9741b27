"""From environments to rows: fields of spaces, steps of vector environments. Uses no other room."""
