"""Arguments that several rooms take: tensors, and the range of a dtype. Uses no other room."""
