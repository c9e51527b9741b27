"""Arguments that several rooms take: tensors, integers, ranges of dtypes. Uses no other room."""
